"""Nothing is lost and nothing doubled: kills, stops and losses, on each broker."""

from __future__ import annotations

import signal
import time

import pytest

from tests.integration.conftest import Stage
from tests.support.processes import wait_for

BACK = {"redis": 30.0, "sqlite": 4.0, "amqp": 10.0}


def within(stage: Stage) -> float:
    return BACK[stage.url.split(":", 1)[0]]


def test_a_worker_killed_amid_500_tasks_loses_none(stage: Stage) -> None:
    published = stage.send_many("nap", 500, 1.0)
    first = stage.worker(name="first", concurrency=200)
    wait_for(lambda: len(stage.ledger.running()) >= 150, 20, "150 running tasks")
    first.kill()
    cut = stage.ledger.running()
    stage.worker(name="second", concurrency=500)
    began = time.monotonic()
    wait_for(lambda: not stage.ledger.check(published).lost, within(stage) + 15, "all tasks")
    assert time.monotonic() - began < within(stage) + 5
    check = stage.ledger.check(published)
    assert not check.lost and not check.unexpected, check
    assert set(check.restarted) <= cut, "a task that had not started, or had ended, was started twice"
    assert not check.duplicated, check


def test_a_warm_stop_finishes_what_runs_and_gives_back_the_rest(stage: Stage) -> None:
    published = stage.send_many("nap", 30, 1.5)
    node = stage.worker(concurrency=5)
    wait_for(lambda: len(stage.ledger.running()) == 5, 10, "five running tasks")
    began = time.monotonic()
    node.term()
    assert node.wait(10) == 0
    assert time.monotonic() - began < 4
    assert not stage.ledger.running()
    assert len(stage.ledger.starts()) == 5
    assert stage.app.producer.publisher().length("celery") == 25
    stage.worker(name="second", concurrency=30)
    wait_for(lambda: not stage.ledger.check(published).lost, 20, "the rest")
    assert not stage.ledger.check(published).restarted


@pytest.mark.parametrize("pool", ["eventlet", "gevent", "solo"])
@pytest.mark.parametrize("signals", [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT]])
def test_a_cold_stop_gives_back_what_runs(stage: Stage, pool: str, signals: list[int]) -> None:
    stage.send_many("nap", 10, 60)
    slots = 1 if pool == "solo" else 4
    node = stage.worker(pool=pool, concurrency=slots)
    wait_for(lambda: len(stage.ledger.running()) == slots, 10, "running tasks")
    began = time.monotonic()
    for number in signals:
        node.signal(number)
        time.sleep(0.2)  # two Ctrl-C, as a person types them
    code = node.wait(10)
    assert code == (0 if signals == [signal.SIGQUIT] else 1)
    assert time.monotonic() - began < 4
    wait_for(lambda: stage.app.producer.publisher().length("celery") == 10, 5, "ten messages on the queue")
    assert "Traceback" not in node.output()


def test_a_computing_task_is_cut_by_a_cold_stop(redis_stage: Stage) -> None:
    node = redis_stage.worker(concurrency=4)
    redis_stage.send("compute", "busy", 60)
    wait_for(lambda: redis_stage.ledger.running(), 10, "the computing task")
    node.interrupt()
    time.sleep(0.2)
    node.interrupt()
    assert node.wait(8) == 1
    wait_for(lambda: redis_stage.app.producer.publisher().length("celery") == 1, 5, "its message")


def test_an_early_acked_task_that_is_cut_short_is_reported_lost(redis_stage: Stage) -> None:
    sent = redis_stage.send("early", "e", 60)
    node = redis_stage.worker()
    wait_for(lambda: redis_stage.ledger.running(), 10, "the task")
    node.signal(signal.SIGQUIT)
    node.wait(8)
    assert "is LOST" in node.output()
    assert redis_stage.app.producer.publisher().length("celery") == 0
    assert sent.state == "FAILURE"


def test_two_workers_share_and_repeat_nothing(stage: Stage) -> None:
    published = stage.send_many("nap", 400, 0.01)
    stage.worker(name="a", concurrency=20)
    stage.worker(name="b", concurrency=20)
    wait_for(lambda: not stage.ledger.check(published).lost, 30, "all tasks")
    check = stage.ledger.check(published)
    assert not check.restarted and not check.unexpected, check


@pytest.mark.parametrize("pool", ["eventlet", "gevent"])
def test_every_ack_arrives_at_high_concurrency(stage: Stage, pool: str) -> None:
    published = stage.send_many("nap", 400, 0.2)
    node = stage.worker(pool=pool, concurrency=100)
    wait_for(lambda: not stage.ledger.check(published).lost, 30, "all tasks")
    node.term()
    assert node.wait(10) == 0
    stage.worker(name="second", concurrency=10)
    assert stage.send("add", 1, 1).get(timeout=10) == 2
    assert not stage.ledger.check(published).restarted
    assert stage.app.producer.publisher().length("celery") == 0
