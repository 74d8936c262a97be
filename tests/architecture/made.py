"""Pages that scripts make."""

from __future__ import annotations

import os
import sys

from tests.architecture.source import ROOT
from tests.support.processes import run


def assert_made(page: str, script: str) -> None:
    """The page is what the script prints now."""
    done = run([sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (ROOT / page).read_text() == done.stdout, f"run: .venv/bin/python {script} > {page}"
