"""When a greenq worker acknowledges what Celery sent: the late and the early column of wire.md 8.7."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from billiard.exceptions import TimeLimitExceeded

from tests.interop.fleet import Fleet
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    """One slot and no look-ahead: what is unacknowledged is what runs."""
    fleet = make_fleet(broker_kind)
    fleet.green_node(concurrency=2, options=["--prefetch-multiplier", "1"])
    return fleet


def waiting(fleet: Fleet, queue: str = "celery") -> int:
    """Messages in a queue, not counting those a worker holds."""
    return fleet.green.producer.publisher().length(queue)


def settled(fleet: Fleet) -> None:
    """Wait until the broker holds nothing any more, waiting or delivered."""
    if fleet.url.startswith("redis"):
        client = fleet.stock.backend.client
        wait_for(lambda: not client.exists("celery", "unacked", "unacked_index"), 10, "an empty broker")
    else:
        fleet.nodes[0].stop()  # gives back whatever it holds
        assert waiting(fleet) == 0
        fleet.nodes[0].start()
        fleet.nodes[0].wait_ready()


def test_success_exception_ignore_and_retry_are_acknowledged(fleet: Fleet) -> None:
    assert fleet.send("add", 1, 2).get(timeout=10) == 3
    with pytest.raises(ValueError):
        fleet.send("fail", "value").get(timeout=10)
    fleet.send("ignores", "ignored")
    assert fleet.send("again", "again").get(timeout=10) == 2
    wait_for(lambda: fleet.ledger.starts()["ignored"], 10, "the ignoring task")
    settled(fleet)
    assert fleet.ledger.starts()["again"] == 3
    assert fleet.ledger.starts()["ignored"] == 1
    assert waiting(fleet, "celery.dead") == 0


def test_a_hard_limit_acknowledges(fleet: Fleet) -> None:
    with pytest.raises(TimeLimitExceeded):
        fleet.send("nap", "limit", 30, time_limit=1).get(timeout=10)
    settled(fleet)
    assert fleet.ledger.starts()["limit"] == 1


def test_a_rejected_message_comes_again_or_is_kept_aside(fleet: Fleet) -> None:
    sent = fleet.send("rejects", "requeued", True)
    assert sent.get(timeout=10) == "second"
    assert fleet.ledger.starts()["requeued"] == 2
    dropped = fleet.send("rejects", "dropped", False)
    if fleet.backend != "rpc://":
        wait_for(lambda: fleet.stock.AsyncResult(dropped.id).state == "FAILURE", 10, "its end")
    wait_for(lambda: waiting(fleet, "celery.dead") == 1, 10, "the dead queue")
    settled(fleet)
    assert fleet.ledger.starts()["dropped"] == 1


@pytest.mark.parametrize("late", [True, False])
def test_a_killed_workers_task_comes_back_only_if_it_was_acknowledged_late(
    make_fleet: Callable[..., Fleet], broker_kind: str, late: bool
) -> None:
    fleet = make_fleet(broker_kind, task_acks_late=late, broker_transport_options={"visibility_timeout": 3600})
    first = fleet.green_node("first", settings={"broker_lease": 2})
    fleet.send("nap", "cut", 30)
    wait_for(lambda: fleet.ledger.starts()["cut"] == 1, 10, "the task")
    fleet.send("note", "after").get(timeout=10)  # the early ack of the one before has gone out
    first.kill()
    second = fleet.green_node("second", settings={"broker_lease": 2})
    if late:
        wait_for(lambda: fleet.ledger.starts()["cut"] == 2, 20, lambda: f"the second run: {second.output()}")
    else:
        # What the kill left is given back within the lease; a marker behind it shows that nothing came.
        time.sleep(4)
        assert fleet.send("note", "later").get(timeout=10) == "later"
        assert fleet.ledger.starts()["cut"] == 1
