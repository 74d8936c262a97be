"""The types of the public face: every wrong call is reported, and no right one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CALLS = Path(__file__).with_name("calls.py")
ROOT = Path(__file__).parents[2]


def mypy(path: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty", str(path)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def test_mypy_reports_every_wrong_call_and_no_right_one(tmp_path: Path) -> None:
    text = CALLS.read_text()
    assert text.count("# type: ignore[") >= 20
    done = mypy(CALLS)
    assert done.returncode == 0, done.stdout + done.stderr
    harmless = tmp_path / "harmless.py"
    harmless.write_text(text.replace("add.delay()  #", "add.delay(1)  #"))
    assert "unused-ignore" in mypy(harmless).stdout, "or the ignores would prove nothing"
