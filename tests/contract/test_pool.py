"""The pool contract, over every pool with its real runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from greenq.pools.table import POOLS

DRIVER = Path(__file__).with_name("pool_driver.py")
SCENARIOS = subprocess.run(
    [sys.executable, str(DRIVER), "solo", "list"], capture_output=True, text=True, check=True
).stdout.split()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("pool", sorted(POOLS))
def test_the_pool_keeps_its_contract(pool: str, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, str(DRIVER), pool, scenario], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == "kept", done.stdout + done.stderr
