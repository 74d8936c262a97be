"""Time limits hold in every pool, whatever the task does, from wherever they come."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import timezone
from typing import Any

import pytest

from greenq.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from greenq.pools.table import POOLS
from tests.integration.conftest import Stage
from tests.support.node import Node
from tests.support.processes import wait_for

SECONDS = 0.6  # every limit here,
SOFT = 0.3  # but for the soft one where there are both
LATEST = 0.6  # how late it may be on a busy machine
EARLIEST = 0.1  # and how early: a clock starts when a child is given the task, and that may have to wait for a core
WAITING = ("sleeps", "reads a socket")
HOWS = (*WAITING, "swallows", "computes")
ENDS = ("soft, caught", "soft", "hard")


@pytest.fixture(params=sorted(POOLS))
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def size(pool: str, wanted: int) -> int:
    return 1 if pool == "solo" else wanted


def settings(**values: Any) -> dict[str, str]:
    return {"GREENQ_TEST_SETTINGS": json.dumps(values)}


def started(stage: Stage, what: str) -> float:
    """Unix seconds at which the task started; it started once."""
    moments = [word.split("@")[1] for word in stage.ledger.starts().elements() if word.startswith(f"{what}@")]
    assert len(moments) == 1, f"{what} started {len(moments)} times"
    return float(moments[0])


def stored(stage: Stage, what: str) -> float:
    done = stage.app.AsyncResult(what).date_done
    assert done is not None
    return done.replace(tzinfo=done.tzinfo or timezone.utc).timestamp()


def overdue(stage: Stage, how: str, end: str) -> str:
    """Send a task that will be struck; returns its id."""
    what = f"{how}-{end}".replace(" ", "_").replace(",", "")
    limit = {"time_limit": SECONDS} if end == "hard" else {"soft_time_limit": SECONDS}
    stage.send("overdue", what, how, end == "soft, caught", task_id=what, **limit)
    return what


def check(stage: Stage, what: str, end: str) -> None:
    """The one outcome is the right one, and it came in time."""
    result = stage.app.AsyncResult(what)
    if end == "soft, caught":
        late = result.get(timeout=20) - SECONDS
        assert result.state == "SUCCESS"
    else:
        with pytest.raises(TimeLimitExceeded if end == "hard" else SoftTimeLimitExceeded) as caught:
            result.get(timeout=20)
        assert str(SECONDS) in str(caught.value)
        assert result.state == "FAILURE"
        late = stored(stage, what) - started(stage, what) - SECONDS
    assert -EARLIEST < late < LATEST, f"{what} came {late:.2f} s late"


def said_once(node: Node, what: str, end: str) -> None:
    level, kind = ("ERROR", "Hard") if end == "hard" else ("WARNING", "Soft")
    name = re.escape(f"tests.support.worker_tasks.overdue[{what}]")
    node.wait_output(rf"Task {name} (succeeded|raised)")
    lines = re.findall(rf".*(?:time limit|succeeded|raised).*{name}.*|.*{name} (?:succeeded|raised).*", node.output())
    limit = [line for line in lines if f"{level}/" in line and f"{kind} time limit ({SECONDS}s) exceeded" in line]
    outcome = [line for line in lines if "time limit" not in line]
    assert len(limit) == 1, lines
    assert len(outcome) == 1, lines


def test_a_limit_ends_a_task_whatever_it_does(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    node = stage.worker(pool=pool, concurrency=size(pool, 6))
    # What computes is in the way of those that wait, so it has its turn after them.
    for hows in (WAITING, ("swallows",), ("computes",)):
        # Who swallows every exception swallows the soft limit too: that is "soft, caught" or nothing.
        cases = [(how, end) for how in hows for end in ENDS if (how, end) != ("swallows", "soft")]
        sent = [(overdue(stage, how, end), end) for how, end in cases]
        for what, end in sent:
            check(stage, what, end)
            said_once(node, what, end)
    assert stage.send("add", 1, 2).get(timeout=10) == 3
    slots_are_free(stage, node)


def slots_are_free(stage: Stage, node: Node) -> None:
    def free() -> bool:
        stats = stage.app.control.inspect([node.name], timeout=5).stats()[node.name]["pool"]
        return bool(stats["running"] == 0)

    wait_for(free, 10, "free slots")


def test_an_ended_task_leaves_nothing_locked(redis_stage: Stage, pool: str) -> None:
    """It is struck in the midst of a lock of the log, of the publisher, of a finalizer: others go on."""
    redis_stage.worker(pool=pool, concurrency=size(pool, 2))
    for name in ("logs_for_ever", "sends_for_ever", "finalizes_for_ever") * 2:
        began = time.monotonic()
        with pytest.raises(TimeLimitExceeded):
            redis_stage.send(name, name, time_limit=0.2).get(timeout=20)
        # An ending that strikes in a finalizer is lost, and comes again until it strikes elsewhere.
        assert time.monotonic() - began < 8.0
        child = redis_stage.send("sends", "child").get(timeout=10)
        assert redis_stage.app.AsyncResult(child).get(timeout=10) == "child"


def of_the_command_line(stage: Stage, pool: str) -> Node:
    options = [f"--soft-time-limit={SOFT}", f"--time-limit={SECONDS}"]
    return stage.worker(pool=pool, concurrency=size(pool, 2), options=options)


def of_the_settings(stage: Stage, pool: str) -> Node:
    values = settings(task_soft_time_limit=SOFT, task_time_limit=SECONDS)
    return stage.worker(pool=pool, concurrency=size(pool, 2), env=values)


def of_the_task(stage: Stage, pool: str) -> Node:
    options = {"soft_time_limit": SOFT, "time_limit": SECONDS}
    values = settings(
        task_annotations={"tests.support.worker_tasks.overdue": options}, task_soft_time_limit=20, task_time_limit=20
    )
    return stage.worker(pool=pool, concurrency=size(pool, 2), env=values)


def of_a_command(stage: Stage, pool: str) -> Node:
    values = settings(task_soft_time_limit=20, task_time_limit=20)
    node = stage.worker(pool=pool, concurrency=size(pool, 2), env=values)
    set_limits(stage, soft=SOFT, hard=SECONDS)
    return node


def set_limits(stage: Stage, **limits: float) -> None:
    arguments = {"task_name": "tests.support.worker_tasks.overdue", **limits}
    replies = stage.app.control.broadcast("time_limit", arguments, reply=True)
    assert [list(reply.values()) for reply in replies] == [[{"ok": "time limits set successfully"}]]


@pytest.mark.parametrize("source", [of_the_command_line, of_the_settings, of_the_task, of_a_command])
def test_limits_may_come_from_anywhere(redis_stage: Stage, source: Callable[[Stage, str], Node], pool: str) -> None:
    """A hard one follows the soft one that was swallowed."""
    node = source(redis_stage, pool)
    redis_stage.send("overdue", "own", "swallows", task_id="own")
    check(redis_stage, "own", "hard")
    said_once(node, "own", "hard")
    assert len(re.findall(rf"WARNING.*Soft time limit \({SOFT}s\) exceeded", node.output())) == 1


def test_the_sender_goes_before_all_others_and_a_command_holds_from_now_on(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(options=["--soft-time-limit=20"])
    set_limits(stage, soft=15.0)
    stage.send("overdue", "sent", "sleeps", task_id="sent", soft_time_limit=SECONDS)
    check(stage, "sent", "soft")
    set_limits(stage, soft=SECONDS)
    stage.send("overdue", "set", "sleeps", task_id="set")
    check(stage, "set", "soft")
    set_limits(stage)  # lifted: what the worker itself says is in force again
    stage.send("overdue", "free", "sleeps", task_id="free")
    wait_for(lambda: any(word.startswith("free@") for word in stage.ledger.starts()), 10, "the start")
    time.sleep(SECONDS + LATEST)  # the limit that was lifted must have had its chance
    assert stage.app.AsyncResult("free").state == "PENDING"
    stage.app.control.revoke("free", terminate=True)
    with pytest.raises(TaskRevokedError):
        stage.app.AsyncResult("free").get(timeout=10)


def test_a_task_may_have_itself_run_again_on_timeout(stage: Stage) -> None:
    node = stage.worker()
    stage.send("once_more_on_timeout", "again", task_id="again")
    wait_for(lambda: stage.ledger.dones()["again"] == 1, 20, "the second run")
    assert stage.ledger.starts()["again"] == 2
    node.wait_output(r"Hard time limit \(0\.5s\) exceeded for \S+once_more_on_timeout\[again\]")
    assert node.output().count("Hard time limit") == 1


def test_a_timeout_is_acknowledged_unless_a_task_says_otherwise(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker()
    with pytest.raises(TimeLimitExceeded):
        stage.send("overdue", "once", "sleeps", task_id="once", time_limit=0.3).get(timeout=20)
    node.term()
    assert node.wait(15) == 0
    stage.worker(name="next")
    assert stage.send("add", 1, 1).get(timeout=20) == 2
    started(stage, "once")
