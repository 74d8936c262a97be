"""The pool contract, over every pool with its real runtime."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import fields

import pytest

from greenq.pools.base import Capabilities
from greenq.pools.table import POOLS
from tests.contract.pool_scenarios import REFUSALS, SCENARIOS
from tests.contract.pool_traces import MARK, end_all, marked
from tests.support.node import ROOT
from tests.support.processes import die_with_parent, wait_for

SECONDS = 90.0
CAPABILITIES = [field.name for field in fields(Capabilities)]
CHEAPEST = {  # of those that need it
    need: next(name for name, scenario in SCENARIOS.items() if scenario.needs == need) for need in CAPABILITIES
}


class Drive:
    """What a driver has said, and with which code it ended; nothing it started outlives this."""

    def __init__(self, pool: str, *arguments: str) -> None:
        mark = uuid.uuid4().hex
        driver = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.contract.pool_driver", pool, *arguments],
            cwd=ROOT,
            env=os.environ | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (one C call, on memory made before the fork)
        )
        try:
            self.output, _ = driver.communicate(timeout=SECONDS)
            wait_for(lambda: not marked(mark), 5.0, lambda: f"the end of {marked(mark)}; it said {self.output}")
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(5.0)
            end_all(mark)
            self.output = f"hangs after {SECONDS:g} s:\n{driver.communicate()[0]}"
        finally:
            end_all(mark)
            driver.wait()
        self.code = driver.returncode


def _can(pool: str) -> dict[str, bool]:
    drive = Drive(pool)
    assert drive.code == 0, drive.output
    can: dict[str, bool] = json.loads(drive.output.splitlines()[-1])
    return can


CAN = {pool: _can(pool) for pool in sorted(POOLS)}
KEPT = [
    pytest.param(pool, name, id=f"{pool}-{name}")
    for pool, can in CAN.items()
    for name, scenario in SCENARIOS.items()
    if not scenario.needs or can[scenario.needs]
]


@pytest.mark.parametrize(("pool", "scenario"), KEPT)
def test_the_pool_keeps_its_contract(pool: str, scenario: str) -> None:
    drive = Drive(pool, scenario)
    assert drive.code == 0 and drive.output.strip().endswith("kept"), drive.output


@pytest.mark.parametrize("pool", CAN)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_a_pool_has_not_it_refuses_and_what_it_has_it_cannot_deny(pool: str, capability: str) -> None:
    """Else a pool could leave out half of the contract by saying so."""
    drive = Drive(pool, CHEAPEST[capability], capability)
    if CAN[pool][capability]:
        assert drive.code == 1 and "AssertionError" in drive.output, drive.output
    else:
        assert drive.code == 0 and drive.output.strip().endswith("kept"), drive.output


def test_every_capability_has_a_scenario_and_a_refusal() -> None:
    assert set(CAPABILITIES) == {scenario.needs for scenario in SCENARIOS.values()} - {""} == set(REFUSALS)
