"""Whatever user code does, the worker lives: a failure is stored, the slot is free, nothing runs twice."""

from __future__ import annotations

import time

import pytest
import redis

from tests.chaos.conftest import Scene
from tests.support.processes import wait_for

POOLS = ("gevent", "solo")
RAISING = (
    *("system_exit", "keyboard_interrupt", "base_exception", "generator_exit", "greenlet_exit", "memory_error"),
    *("recursion", "unprintable", "leaving", "meddling", "chained_exceptions", "surrogates"),
    *("returns_rubbish", "returns_unserialisable", "returns_a_lock", "returns_itself", "returns_deep"),
)
GREEN = ("own_greenlet_killed", "own_greenlet_thrown", "gevent_timeout")


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def size(pool: str, wanted: int = 2) -> int:
    return wanted if pool == "gevent" else 1


def test_each_way_to_misbehave_is_a_stored_failure(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    pid = node.pid
    sent = {how: redis_scene.send("misbehave", how) for how in RAISING + (GREEN if pool == "gevent" else ())}
    wait_for(
        lambda: {each.state for each in sent.values()} == {"FAILURE"},
        20,
        lambda: f"{ {how: each.state for how, each in sent.items()} }\n{node.output()[-3000:]}",
    )
    for number in range(10):
        assert redis_scene.send("add", number, 1).get(timeout=10) == number + 1
    assert node.running and node.pid == pid
    assert "inside the worker" not in node.output()
    with redis.Redis.from_url(redis_scene.url) as client:
        wait_for(lambda: not client.hlen("unacked"), 5, "every settlement")
    assert not redis_scene.length()


@pytest.mark.parametrize("how", ["retries_unprintable", "autoretries_leaving"])
def test_a_retry_whose_reason_cannot_be_printed_is_one_retry(redis_scene: Scene, how: str) -> None:
    node = redis_scene.worker()
    sent = redis_scene.send(how)
    wait_for(lambda: sent.state == "FAILURE", 10, lambda: f"{sent.state}\n{node.output()[-3000:]}")
    assert node.output().count("] received") == 2
    assert "inside the worker" not in node.output()


def test_a_value_whose_repr_leaves_is_a_success(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    assert redis_scene.send("quiet").get(timeout=10) == "quiet"
    node.wait_output("whose repr raises KeyboardInterrupt")


@pytest.mark.parametrize("how", ["late_timeout", "late_kill"])
def test_what_strikes_a_slot_after_its_task_costs_no_slot_and_no_task(redis_scene: Scene, how: str) -> None:
    node = redis_scene.worker(concurrency=3)
    for sent in [redis_scene.send(how, 0.2) for _ in range(6)]:
        assert sent.get(timeout=10) in {"forgot", "later"}
    time.sleep(0.5)  # for what was set off to strike
    began = time.monotonic()
    sent = [redis_scene.send("nap", str(number), 0.3) for number in range(9)]
    for each in sent:
        each.get(timeout=10)
    assert time.monotonic() - began < 2.5, "slots are missing"
    node.term()
    assert node.wait(10) == 0
    assert not redis_scene.length()


def test_greenlets_left_behind_do_not_keep_the_worker(redis_scene: Scene) -> None:
    node = redis_scene.worker()
    for sent in [redis_scene.send("leak_greenlets", 1000) for _ in range(5)]:
        assert sent.get(timeout=10) == 1000
    node.term()
    assert node.wait(10) == 0


@pytest.mark.parametrize(("how", "code"), [("hard", 7), ("soft", 7), ("return", 0), ("wait", 4)])
def test_a_forked_child_reads_and_settles_nothing(redis_scene: Scene, pool: str, how: str, code: int) -> None:
    redis_scene.worker(pool=pool, concurrency=size(pool))
    forked = redis_scene.send("fork_and_exit", how)
    time.sleep(0.2)  # so that the child meets a parent at work
    names = redis_scene.send_naps(40, 0.02)
    assert forked.get(timeout=15) == code
    assert redis_scene.send("add", 1, 1).get(timeout=10) == 2
    wait_for(lambda: not redis_scene.ledger.check(names).lost, 10, "all naps")
    assert not redis_scene.ledger.check(names).restarted


def test_a_greenlet_of_a_task_that_leaves_is_no_end(redis_scene: Scene) -> None:
    node = redis_scene.worker()
    assert redis_scene.send("greenlet_exits").get(timeout=10) == "stayed"
    assert redis_scene.send("add", 1, 1).get(timeout=10) == 2
    node.term()
    assert node.wait(10) == 0


def test_a_thread_that_leaves_is_no_end(redis_scene: Scene, pool: str) -> None:
    redis_scene.worker(pool=pool, concurrency=size(pool))
    assert redis_scene.send("thread_exit").get(timeout=10) == "stayed"
    assert redis_scene.send("add", 1, 1).get(timeout=10) == 2


def test_a_spoiled_process_still_settles_and_stops(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    assert redis_scene.send("spoil_process").get(timeout=10) == "spoiled"
    for number in range(20):
        assert redis_scene.send("add", number, 1).get(timeout=10) == number + 1
    node.term()
    assert node.wait(10) == 0


@pytest.mark.chaos
def test_a_log_that_raises_ends_the_worker_and_loses_nothing(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    redis_scene.send("spoil_logging")
    sent = [redis_scene.send("add", number, 1) for number in range(20)]
    assert node.wait(18) in {1, 70}, "a worker that reads no more must not live on"
    redis_scene.worker(name="second")
    for number, each in enumerate(sent):
        assert each.get(timeout=30) == number + 1


def test_cut_connections_are_made_again(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    for number in range(5):
        assert redis_scene.send("cut_sockets").get(timeout=15) == "cut"
        assert redis_scene.send("add", number, 1).get(timeout=15) == number + 1
    assert "ended by an error" not in node.output()
    node.term()
    assert node.wait(10) == 0


def test_a_task_that_takes_the_signals_does_not_keep_the_worker(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    assert redis_scene.send("change_signals").get(timeout=10) == "changed"
    redis_scene.app.control.shutdown()
    assert node.wait(10) == 0


def test_fifty_megabytes_are_a_result_like_any_other(redis_scene: Scene, pool: str) -> None:
    redis_scene.worker(pool=pool, concurrency=size(pool))
    assert len(redis_scene.send("big", 50 << 20).get(timeout=30)) == 50 << 20
    assert redis_scene.send("add", 1, 1).get(timeout=10) == 2
