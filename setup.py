"""Build the one compiled extension; everything else about the package stands in pyproject.toml.

There is no pure-Python twin: without a C compiler the build fails here, loudly.
"""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("greenq._speedups", ["greenq/_speedups.pyx"], extra_compile_args=["-O2", "-g0"])],
        language_level=3,
    )
)
