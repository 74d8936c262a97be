"""Workers of both kinds on one queue: every task once, whoever sent it, whoever runs it, whoever dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import exceptions

from tests.interop.fleet import Fleet
from tests.support.processes import wait_for

# Stock workers look for what is overdue only so often (wire.md 5.9); these make them look at once.
QUICK = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def options(**more: Any) -> dict[str, Any]:
    return {"broker_transport_options": {**QUICK, **more}, "broker_lease": 2, "task_acks_late": True}


def unacked(fleet: Fleet) -> int:
    count: int = fleet.stock.backend.client.hlen("unacked")
    return count


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_both_take_part_and_every_task_runs_once(make_fleet: Callable[..., Fleet], broker: str) -> None:
    fleet = make_fleet(broker, worker_prefetch_multiplier=1)
    green = fleet.green_node(concurrency=4)
    stock = fleet.stock_node(pool="prefork", concurrency=2)
    names = [f"t{n}" for n in range(400)]
    for number, name in enumerate(names):
        (fleet.send if number % 2 else fleet.post)("nap", name, 0.01)
    wait_for(lambda: set(names) <= set(fleet.ledger.dones()), 40, lambda: str(fleet.ledger.check(names)))
    check = fleet.ledger.check(names)
    assert (len(check.ok), check.duplicated, check.restarted) == (400, {}, {}), str(check)

    def shares() -> list[int]:
        return [node.output().count("] succeeded in") for node in (green, stock)]

    wait_for(lambda: sum(shares()) == 400, 5, lambda: f"every line: {shares()}")
    assert min(shares()) >= 40, shares()
    if broker == "redis":
        wait_for(lambda: unacked(fleet) == 0, 10, "nothing unacknowledged")


def test_a_killed_greenqs_work_comes_back_to_another(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet("redis", **options())
    first = fleet.green_node("first", concurrency=5)
    names = [f"k{n}" for n in range(10)]
    for number, name in enumerate(names):
        (fleet.send if number % 2 else fleet.post)("nap", name, 1.0)
    wait_for(lambda: len(fleet.ledger.starts()) == 5, 10, "five that run")
    first.kill()
    killed = time.monotonic()
    fleet.green_node("second")
    wait_for(lambda: set(names) <= set(fleet.ledger.dones()), 30, lambda: str(fleet.ledger.check(names)))
    assert time.monotonic() - killed < 30
    assert not fleet.ledger.check(names).duplicated
    wait_for(lambda: unacked(fleet) == 0, 10, "nothing unacknowledged")


def test_a_killed_greenqs_work_comes_back_to_celery_after_the_visibility_timeout(
    make_fleet: Callable[..., Fleet],
) -> None:
    """Stock workers know no owners: they wait for their own timeout, counted from the last renewal."""
    fleet = make_fleet("redis", **options(visibility_timeout=3))
    green = fleet.green_node(concurrency=2)
    for name in ("a", "b"):
        fleet.send("nap", name, 3.0)
    wait_for(lambda: len(fleet.ledger.starts()) == 2, 10, "two that run")
    green.kill()
    fleet.stock_node(pool="prefork", concurrency=2)
    wait_for(lambda: {"a", "b"} <= set(fleet.ledger.dones()), 40, lambda: str(fleet.ledger.check("ab")))
    wait_for(lambda: unacked(fleet) == 0, 10, "nothing unacknowledged")
    check = fleet.ledger.check("ab")
    assert set(check.restarted) == check.ok == {"a", "b"}, str(check)


def test_a_killed_celerys_late_work_comes_back_to_greenq(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet("redis", **options(visibility_timeout=4))
    stock = fleet.stock_node(pool="prefork", concurrency=2, options=["--prefetch-multiplier", "2"])
    names = [f"c{n}" for n in range(4)]
    for name in names:
        fleet.post("late", name, 30)
    wait_for(lambda: len(fleet.ledger.starts()) == 2, 10, "two that run")
    wait_for(lambda: unacked(fleet) == 4, 10, "four held by Celery")
    held = time.monotonic()
    stock.kill()
    green = fleet.green_node()
    time.sleep(1.0)
    assert fleet.post("note", "meanwhile").get(timeout=10) == "meanwhile"
    assert len(fleet.ledger.starts()) == 3, "a stock worker has its visibility timeout, not our lease"
    wait_for(lambda: all(fleet.ledger.starts()[name] >= 1 for name in names), 20, lambda: green.output())
    wait_for(lambda: sum(fleet.ledger.starts()[name] for name in names) == 6, 20, lambda: green.output())
    assert time.monotonic() - held >= 3
    for request in fleet.green.control.inspect(["green@test"]).active()["green@test"]:
        fleet.green.control.terminate(request["id"])
    wait_for(lambda: unacked(fleet) == 0, 10, "nothing unacknowledged")


def test_celery_leaves_what_greenq_holds_alone(make_fleet: Callable[..., Fleet]) -> None:
    """A task of 12 s under a visibility timeout of 5 s: its lease is renewed, so nobody restores it."""
    fleet = make_fleet("redis", **options(visibility_timeout=5))
    fleet.green_node()
    sent = fleet.send("nap", "long", 12)
    wait_for(lambda: fleet.ledger.starts()["long"] == 1, 10, "the long task")
    fleet.stock_node(pool="prefork", concurrency=2)
    with pytest.raises(exceptions.TimeoutError):
        sent.get(timeout=5)
    assert sent.get(timeout=20) == "long"
    assert fleet.ledger.starts()["long"] == 1
    wait_for(lambda: unacked(fleet) == 0, 10, "nothing unacknowledged")


@pytest.mark.parametrize("dead", ["green", "stock"])
def test_rabbitmq_hands_a_killed_workers_late_work_to_the_other_kind(
    make_fleet: Callable[..., Fleet], dead: str
) -> None:
    fleet = make_fleet("rabbitmq", task_acks_late=True)
    green = fleet.green_node if dead == "green" else fleet.stock_node
    other = fleet.stock_node if dead == "green" else fleet.green_node
    first = green(pool="gevent" if dead == "green" else "solo", concurrency=2 if dead == "green" else 1)
    for name in ("a", "b"):
        fleet.post("late", name, 2.0)
    wait_for(lambda: len(fleet.ledger.starts()) >= 1, 10, "one that runs")
    first.kill()
    other(pool="solo", concurrency=1)
    wait_for(lambda: {"a", "b"} <= set(fleet.ledger.dones()), 20, lambda: str(fleet.ledger.check("ab")))
    assert fleet.ledger.check("ab").duplicated == {}
