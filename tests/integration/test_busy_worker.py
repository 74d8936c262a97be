"""Nothing is frozen: what must answer does so while a task computes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.integration.conftest import Stage
from tests.support.node import ROOT
from tests.support.processes import wait_for


def greenq(stage: Stage, *line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "greenq", "-A", "tests.support.worker_tasks", "-b", stage.url, *line]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


@pytest.mark.parametrize("pool", ["eventlet", "gevent", "solo"])
def test_inspect_answers_within_a_second_while_a_task_computes(stage: Stage, pool: str) -> None:
    node = stage.worker(pool=pool, concurrency=1 if pool == "solo" else 10)
    stage.send("compute", "busy", 30)
    wait_for(lambda: stage.ledger.running(), 10, "the computing task")
    for _ in range(3):
        done = greenq(stage, "inspect", "ping", "--timeout", "1", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout) == {node.name: {"ok": "pong"}}
    active = json.loads(greenq(stage, "inspect", "active", "--json").stdout)[node.name]
    assert [task["args"] for task in active] == [["busy", 30]]
    assert stage.ledger.running(), "the task had ended before the last answer"


def test_a_task_that_does_not_yield_is_named_in_the_log_once(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    redis_stage.send("compute", "busy", 3, task_id="the-busy-one")
    node.wait_output(r"Nothing else ran for 1\.\d s: task tests\.support\.worker_tasks\.compute\[the-busy-one\]")
    node.wait_output(r"in compute")
    node.wait_output(r"The main hub turns again")
    assert node.output().count("Nothing else ran") == 1


def test_a_change_is_accepted_while_the_hub_computes_and_takes_effect_after(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    redis_stage.send("compute", "busy", 3)
    wait_for(lambda: redis_stage.ledger.running(), 10, "the computing task")
    reply = redis_stage.app.control.rate_limit("tests.support.worker_tasks.nap", "1/m", reply=True)
    assert "accepted" in str(reply) and "compute" in str(reply)
    wait_for(lambda: not redis_stage.ledger.running(), 10, "the end of the computing task")
    for number in range(3):
        redis_stage.send("nap", str(number), 0)
    wait_for(lambda: len(redis_stage.app.control.inspect().reserved()[node.name]) == 2, 10, "two limited tasks")


def test_leases_are_kept_while_the_hub_computes(redis_stage: Stage) -> None:
    """The lease is two seconds; a task that computes for eight may not run twice."""
    redis_stage.worker(name="busy", env={"GREENQ_TEST_LEASE": "2"})
    redis_stage.send("compute", "long", 8)
    wait_for(lambda: redis_stage.ledger.running(), 10, "the computing task")
    redis_stage.worker(name="idle", env={"GREENQ_TEST_LEASE": "2"})
    began = time.monotonic()
    wait_for(lambda: not redis_stage.ledger.running(), 15, "the end")
    assert time.monotonic() - began > 3
    assert redis_stage.ledger.starts()["long"] == 1
