"""The Runtime contract (greenq/runtime/base.py), over every runtime, each scenario in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import run

DRIVER = Path(__file__).with_name("runtime_driver.py")
SCENARIOS = subprocess.run(
    [sys.executable, str(DRIVER), "threads", "list"], capture_output=True, text=True, check=True
).stdout.split()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("runtime", ["eventlet", "gevent", "threads"])
def test_the_runtime_keeps_its_contract(runtime: str, scenario: str) -> None:
    done = run([sys.executable, str(DRIVER), runtime, scenario])
    assert done.returncode == 0 and done.stdout.strip() == "kept", done.stdout + done.stderr
