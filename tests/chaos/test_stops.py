"""Stops of every kind, in a loop, under load: nothing is lost."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.chaos.conftest import Scene
from tests.support.processes import wait_for

WAYS: list[list[int]] = [
    [signal.SIGTERM],
    [signal.SIGINT, signal.SIGINT],
    [signal.SIGQUIT],
    [signal.SIGTERM, signal.SIGQUIT],
    # Only in the long form: on Redis what a kill leaves behind comes back with its lease.
    [signal.SIGTERM, signal.SIGKILL],
    [signal.SIGKILL],
]


@pytest.mark.parametrize("stops", [4, pytest.param(30, marks=[pytest.mark.chaos, pytest.mark.timeout(400)])])
def test_worker_after_worker_stopped_at_random_loses_nothing(scene: Scene, stops: int) -> None:
    chance = random.Random(stops)
    names = scene.send_naps(60 * stops, 0.1)
    killed = 0
    for number in range(stops):
        node = scene.worker(name=f"w{number}", concurrency=20)
        time.sleep(chance.uniform(0.0, 0.4))
        way = WAYS[number % len(WAYS)]
        for each in way:
            node.signal(each)
            time.sleep(chance.uniform(0.0, 0.05))
        node.wait(10)
        killed += signal.SIGKILL in way
        assert "Traceback" not in node.output() or killed, node.output()
        assert "could not be written" not in node.output()
    scene.worker(name="last", concurrency=200)
    wait_for(lambda: not scene.ledger.check(names).lost, 60, lambda: str(scene.ledger.check(names)))
    check = scene.ledger.check(names)
    assert not check.unexpected
    # Only what a stop cut short may run again: at most one pool of it for each stop.
    assert sum(times - 1 for times in check.restarted.values()) <= 20 * stops, check
    wait_for(lambda: not scene.length(), 10, "an empty queue")


def test_two_interrupts_within_fifty_milliseconds_end_it(scene: Scene) -> None:
    names = scene.send_naps(10, 1.0)
    node = scene.worker(concurrency=5)
    wait_for(lambda: len(scene.ledger.running()) == 5, 10, "running tasks")
    node.interrupt()
    time.sleep(0.03)
    node.interrupt()
    assert node.wait(5) == 1
    scene.worker(name="second", concurrency=10)
    wait_for(lambda: not scene.ledger.check(names).lost, 20, lambda: str(scene.ledger.check(names)))


@pytest.mark.chaos
def test_a_worker_that_slept_past_its_lease_learns_of_it(redis_scene: Scene) -> None:
    names = redis_scene.send_naps(40, 5.0)
    first = redis_scene.worker(name="first", concurrency=10)
    wait_for(lambda: len(redis_scene.ledger.running()) == 10, 10, "running tasks")
    first.signal(signal.SIGSTOP)
    redis_scene.worker(name="second", concurrency=10)
    time.sleep(40)
    first.signal(signal.SIGCONT)
    first.wait_output("given up for dead", 10)
    wait_for(lambda: not redis_scene.ledger.check(names).lost, 60, lambda: str(redis_scene.ledger.check(names)))
    check = redis_scene.ledger.check(names)
    assert len(check.restarted) <= 10 and max(check.restarted.values(), default=1) == 2, check
    wait_for(lambda: not redis_scene.length(), 10, "an empty queue")
    assert redis_scene.send("add", 1, 1).get(timeout=10) == 2
    assert ": ERROR" not in first.output()


def test_two_workers_of_one_name_both_work(redis_scene: Scene) -> None:
    names = redis_scene.send_naps(60, 0.1)
    first = redis_scene.worker(name="same", concurrency=5)
    second = redis_scene.started_worker(name="same", concurrency=5)
    wait_for(lambda: not redis_scene.ledger.check(names).lost, 20, lambda: str(redis_scene.ledger.check(names)))
    assert not redis_scene.ledger.check(names).restarted
    second.wait_ready()  # it may come up when all is done, and a signal before that is Python's to handle
    for node in (second, first):
        node.term()
        assert node.wait(10) == 0
