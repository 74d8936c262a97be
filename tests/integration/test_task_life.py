"""What becomes of a task: every outcome, seen through its result, on a real broker."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest

from greenq.exceptions import MaxRetriesExceeded, NotRegistered, TaskRevokedError, TimeLimitExceeded
from tests.integration.conftest import Stage
from tests.support.processes import wait_for

POOLS = ("eventlet", "gevent", "solo")


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def size(pool: str, wanted: int = 10) -> int:
    return 1 if pool == "solo" else wanted


def test_a_task_returns_its_value(stage: Stage, pool: str) -> None:
    stage.worker(pool=pool, concurrency=size(pool))
    results = [stage.send("add", n, 1) for n in range(50)]
    assert [result.get(timeout=20) for result in results] == list(range(1, 51))


def test_failures_say_what_was_raised(redis_stage: Stage, pool: str) -> None:
    redis_stage.worker(pool=pool, concurrency=size(pool))
    failed = redis_stage.send("fail", "boom")
    with pytest.raises(ValueError, match="boom"):
        failed.get(timeout=20)
    assert failed.state == "FAILURE"
    assert 'raise ValueError(text)' in failed.traceback
    assert "greenq/execution" not in failed.traceback
    left = redis_stage.send("leave")
    with pytest.raises(BaseException) as caught:
        left.get(timeout=20)
    assert "3" in str(caught.value)
    assert redis_stage.send("add", 1, 1).get(timeout=20) == 2


def test_an_expected_exception_is_no_error_in_the_log(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    with pytest.raises(KeyError):
        redis_stage.send("expected").get(timeout=20)
    node.wait_output(r"INFO.*expected\[.*raised expected: KeyError")


def test_retries_run_again_and_then_give_up(stage: Stage) -> None:
    stage.worker()
    assert stage.send("retried", "a").get(timeout=20) == 2
    assert stage.ledger.starts()["a"] == 3
    with pytest.raises((OSError, MaxRetriesExceeded)):
        stage.send("autoretried", "b").get(timeout=20)
    assert stage.ledger.starts()["b"] == 2


def test_ignore_and_reject_are_no_failures(stage: Stage) -> None:
    node = stage.worker()
    stage.send("ignored")
    assert stage.send("rejected", "r").get(timeout=20) == "r"
    assert stage.ledger.starts()["r"] == 2
    node.wait_output(r"ignored\[.*\] ignored")


def test_the_request_tells_a_task_about_itself(stage: Stage) -> None:
    stage.worker(name="me")
    sent = stage.send("about", task_id="my-own-id", headers={"custom": "yes"})
    assert sent.get(timeout=20) == {
        "id": "my-own-id",
        "task": "tests.support.worker_tasks.about",
        "args": [],
        "retries": 0,
        "hostname": "me@test",
        "queue": "celery",
        "header": "yes",
        "eager": False,
    }


def test_a_task_may_send_tasks(stage: Stage, pool: str) -> None:
    stage.worker(pool=pool, concurrency=size(pool))
    child = stage.send("sends", "child").get(timeout=20)
    assert stage.app.AsyncResult(child).get(timeout=20) == "child"


def test_nothing_starts_before_its_eta(stage: Stage) -> None:
    stage.worker()
    began = time.time()
    soon = stage.send("nap", "soon", 0, countdown=1.0)
    moment = datetime.now(timezone.utc) + timedelta(seconds=1.5)
    later = stage.send("nap", "later", 0, eta=moment)
    assert stage.send("nap", "now", 0).get(timeout=20) == "now"
    assert time.time() - began < 1.0
    soon.get(timeout=20)
    assert time.time() - began >= 1.0
    later.get(timeout=20)
    assert time.time() >= moment.timestamp()


def test_what_has_expired_never_runs(redis_stage: Stage) -> None:
    sent = redis_stage.send("nap", "old", 0, expires=0.05)
    time.sleep(0.1)  # the expiry itself is what is waited for
    redis_stage.worker()
    with pytest.raises(TaskRevokedError, match="expired"):
        sent.get(timeout=20)
    assert "old" not in redis_stage.ledger.starts()


def test_a_rate_limit_holds_and_starves_nobody(stage: Stage) -> None:
    stage.worker(concurrency=4)
    for number in range(25):
        stage.send("limited", str(number))
    free = [stage.send("nap", f"free{n}", 0) for n in range(20)]
    for result in free:
        result.get(timeout=10)
    assert sum(stage.ledger.dones()[str(n)] for n in range(25)) < 20
    began = time.monotonic()
    wait_for(lambda: all(stage.ledger.dones()[str(n)] == 1 for n in range(25)), 15, "the limited tasks")
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("how", ["sleep", "compute"])
def test_a_soft_limit_can_be_caught(redis_stage: Stage, pool: str, how: str) -> None:
    redis_stage.worker(pool=pool, concurrency=size(pool))
    sent = redis_stage.send("soft", how)
    began = time.monotonic()
    assert sent.get(timeout=20) == "tidied up"
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("how", ["sleep", "compute"])
def test_a_hard_limit_ends_even_who_swallows_exceptions(redis_stage: Stage, pool: str, how: str) -> None:
    redis_stage.worker(pool=pool, concurrency=size(pool))
    sent = redis_stage.send("hard", how)
    with pytest.raises(TimeLimitExceeded):
        sent.get(timeout=10)
    assert redis_stage.send("add", 1, 2).get(timeout=10) == 3


def test_started_is_stored_for_tasks_that_ask(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    sent = redis_stage.send("tracked", 1.0)
    wait_for(lambda: sent.state == "STARTED", 10, "STARTED")
    assert sent.result["hostname"] == node.name
    sent.get(timeout=10)
    assert sent.state == "SUCCESS"


def test_a_success_is_never_overwritten(redis_stage: Stage) -> None:
    redis_stage.worker()
    assert redis_stage.send("add", 1, 2, task_id="twice").get(timeout=10) == 3
    redis_stage.send("fail", "later", task_id="twice")
    redis_stage.send("add", 0, 0).get(timeout=10)
    time.sleep(0.3)  # the failure must have had its chance
    assert redis_stage.app.AsyncResult("twice").state == "SUCCESS"


def test_a_link_gets_the_value_in_front(stage: Stage) -> None:
    stage.worker()
    follow = {
        "task": "tests.support.worker_tasks.add",
        "args": [10],
        "kwargs": {},
        "options": {"task_id": "linked"},
        "subtask_type": None,
        "immutable": False,
    }
    stage.send("add", 1, 2, link=follow)
    assert stage.app.AsyncResult("linked").get(timeout=20) == 13


def test_an_unknown_task_fails_once_and_its_message_is_kept(stage: Stage) -> None:
    node = stage.worker()
    sent = stage.app.send_task("tests.support.worker_tasks.ad", (1,), {})
    with pytest.raises(NotRegistered):
        sent.get(timeout=20)
    node.wait_output(r"unknown to this app \(nearest: tests.support.worker_tasks.add\)")
    wait_for(lambda: stage.app.producer.publisher().length("celery.dead") == 1, 10, "the dead queue")
    assert stage.send("add", 1, 1).get(timeout=20) == 2


def test_a_revoked_task_never_starts_and_a_terminated_one_ends(stage: Stage, pool: str) -> None:
    stage.worker(pool=pool, concurrency=size(pool, 2))
    running = [stage.send("nap", f"run{n}", 30) for n in range(size(pool, 2))]
    wait_for(lambda: len(stage.ledger.starts()) == len(running), 10, "the running tasks")
    waiting = stage.send("nap", "waiting", 0)
    stage.app.control.revoke(waiting.id)
    began = time.monotonic()
    for result in running:
        stage.app.control.revoke(result.id, terminate=True)
    for result in (*running, waiting):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=15)
    assert time.monotonic() - began < 5
    assert "waiting" not in stage.ledger.starts()
    assert not stage.ledger.dones()


