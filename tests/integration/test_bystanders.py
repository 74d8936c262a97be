"""Thousands of expiring tasks among busy bystanders: nobody but those that were meant is ever struck."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from greenq.pools.table import POOLS
from tests.support.node import ROOT

COUNT = 3300
EXPIRING = 3000
# A child of prefork has one task and nobody beside it; what is raised in it is the contract suite's.
IN_THIS_PROCESS = sorted({"gevent", "eventlet", "solo"} & set(POOLS))


@pytest.mark.parametrize("pool", IN_THIS_PROCESS)
def test_thousands_of_limits_strike_those_that_were_meant_and_nobody_else(pool: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.bystander_driver", pool, str(COUNT)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["wrong"] == []
    assert found["not once"] == {}
    outcomes = found["outcomes"]
    assert set(outcomes) <= {"SUCCESS", "FAILURE TimeLimitExceeded", "FAILURE SoftTimeLimitExceeded"}, outcomes
    # A soft limit that was caught stands in no outcome; one that struck outside of the task's `try` in nothing else.
    ended = outcomes["FAILURE TimeLimitExceeded"] + outcomes.get("FAILURE SoftTimeLimitExceeded", 0)
    assert found["struck"]["soft"] + ended >= EXPIRING, found
    assert outcomes["FAILURE TimeLimitExceeded"] >= found["struck"]["hard"] > 1000
    assert min(found["turns"].values()) > 50, "the bystanders were not busy"
    assert "Traceback" not in run.stderr, run.stderr
