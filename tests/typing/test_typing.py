"""The types of the public face: every wrong call is reported, and no right one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CALLS = Path(__file__).with_name("calls.py")
ROOT = Path(__file__).parents[2]


def test_mypy_reports_every_wrong_call_and_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", "--follow-imports=silent",
         "--no-error-summary", "--hide-error-context", "--no-pretty", str(CALLS)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    reported = {int(line) for line in re.findall(r"calls\.py:(\d+): error", done.stdout)}
    lines = enumerate(CALLS.read_text().splitlines(), 1)
    wrong = {number for number, line in lines if line.endswith("# wrong")}
    assert len(wrong) >= 20
    assert reported == wrong, done.stdout + done.stderr
