"""How much a worker holds beyond what it runs: much while tasks are short, nothing behind long ones."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Stage
from tests.support.node import Node
from tests.support.processes import wait_for

SHORT, LONG = 4_000, 120
WENT_BACK = r"(\d+) messages that waited behind long tasks went back"


def short_then_long(stage: Stage) -> None:
    """So many short tasks that the worker asks for many at a time, and then long ones."""
    for _ in range(SHORT):
        stage.send("add", 1, 2, ignore_result=True)
    stage.send_many("nap", LONG, 30)


def reserved(stage: Stage, node: Node) -> int:
    return len(stage.app.control.inspect([node.name], timeout=5).reserved()[node.name])


@pytest.mark.parametrize("pool", ["gevent", "prefork"])
@pytest.mark.parametrize("broker_url", ["redis", "sqlite"], indirect=True)
def test_what_waits_behind_long_tasks_goes_back_for_whoever_is_free(stage: Stage, pool: str) -> None:
    short_then_long(stage)
    node = stage.worker(pool=pool, concurrency=2, loglevel="INFO")
    found = node.wait_output(WENT_BACK, 40)
    assert int(found[1]) > 6, "no more than the default multiplier allows waited here"
    wait_for(lambda: reserved(stage, node) == 0, 10, "an empty reserve")
    assert len(stage.ledger.running()) == 2
    stage.worker(pool="gevent", concurrency=LONG, name="free")
    wait_for(lambda: len(stage.ledger.running()) == LONG, 20, "every long task running")
    assert set(stage.ledger.starts().values()) == {1}


def test_a_multiplier_that_was_chosen_is_a_bound(redis_stage: Stage) -> None:
    short_then_long(redis_stage)
    node = redis_stage.worker(pool="prefork", concurrency=2, options=["--prefetch-multiplier", "2"])
    most = 0
    while len(redis_stage.ledger.running()) < 2:
        most = max(most, reserved(redis_stage, node))
    assert most <= 2
    assert "went back" not in node.output()
