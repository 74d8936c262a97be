"""What stands in strings leads somewhere: module references, settings, compiled modules."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from tests.architecture.source import PACKAGE, ROOT, modules, tree

_REFERENCE = re.compile(r"greenq(\.\w+)+:\w+(\.\w+)*")


def _references() -> set[str]:
    """Every string "greenq.module:attribute" in the package, and in pyproject's entry points."""
    found = {
        node.value
        for path in modules().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _REFERENCE.fullmatch(node.value)
    }
    scripts = re.findall(r'= "(greenq[\w.]+:\w+)"', (ROOT / "pyproject.toml").read_text())
    return found | set(scripts)


@pytest.mark.parametrize("reference", sorted(_references()))
def test_a_reference_in_a_string_leads_to_something(reference: str) -> None:
    module, _, path = reference.partition(":")
    value: object = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    assert value is not None


def test_setup_compiles_exactly_the_modules_on_disk() -> None:
    declared = set(re.findall(r'Extension\("([\w.]+)"', (ROOT / "setup.py").read_text()))
    on_disk = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.pyx")}
    assert declared == on_disk
    for name in declared:
        loaded = importlib.import_module(name).__file__
        assert loaded is not None
        assert loaded.endswith(tuple(EXTENSION_SUFFIXES)), f"{name} is not compiled: {loaded}"
        assert (PACKAGE / f"{name.rpartition('.')[2]}.pyi").exists(), f"{name} has no stub"


def test_every_name_of_the_package_can_be_had() -> None:
    package = importlib.import_module("greenq")
    for name in package.__all__:
        assert getattr(package, name) is not None, name


def test_the_version_stands_in_one_value() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{importlib.import_module("greenq").__version__}"' in text
