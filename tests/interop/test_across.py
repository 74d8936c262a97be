"""Work that passes from one kind of worker to the other: links, chains, children, and the embedded broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from celery import chain, signature

from tests.interop.fleet import Fleet
from tests.interop.shop import KINDS
from tests.support.processes import wait_for

EXPECTED = {key: [type(each).__name__, repr(each)] for key, each in KINDS.items()}


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    """One worker of each kind, each with a queue of its own."""
    fleet = make_fleet(broker_kind)
    fleet.green_node(options=["-Q", "green"])
    fleet.stock_node(pool="solo", concurrency=1, options=["-Q", "stock"])
    return fleet


def test_a_chain_changes_sides_at_every_step(fleet: Fleet) -> None:
    queues = ["green", "stock", "green", "green", "stock", "green"]
    steps = [
        signature("shop.add", (number, *([0] if not number else [])), queue=queue, app=fleet.stock)
        for number, queue in enumerate(queues)
    ]
    last = chain(*steps, app=fleet.stock).apply_async()
    assert last.get(timeout=15) == sum(range(6))


@pytest.mark.parametrize(("first", "second"), [("green", "stock"), ("stock", "green")])
def test_links_cross_over(fleet: Fleet, first: str, second: str) -> None:
    name = f"linked-{first}"
    link = signature("shop.nap", kwargs={"seconds": 0}, queue=second, app=fleet.stock)
    assert fleet.send("echo", queue=first, link=signature(
        "shop.nap", (name, 0), immutable=True, queue=second, app=fleet.stock
    )).get(timeout=10) == [[], {}]  # fmt: skip
    assert fleet.send("note", f"{name}-value", queue=first, link=link).get(timeout=10) == f"{name}-value"
    wait_for(lambda: {name, f"{name}-value"} <= set(fleet.ledger.dones()), 10, "the linked tasks")
    errors = [signature("shop.failed_old", queue=second, app=fleet.stock)]
    sent = fleet.send("fail", "value", queue=first, link_error=errors)
    with pytest.raises(ValueError):
        sent.get(timeout=10)
    wait_for(lambda: fleet.ledger.starts()[f"old:{sent.id}"] == 1, 10, "the errback")


def test_a_retry_may_end_on_the_other_side(fleet: Fleet) -> None:
    """What greenq's retry publishes is run by Celery, and the other way round: both serve one queue."""
    for number in range(6):
        sent = fleet.send if number % 2 else fleet.post
        queue = "green" if number < 3 else "stock"
        assert sent("again", f"retry{number}", queue=queue).get(timeout=10) == 2
        assert fleet.ledger.starts()[f"retry{number}"] == 3


def test_celerys_client_uses_the_embedded_broker(tmp_path: Path) -> None:
    """With `greenq.transports.sqlite` registered, Celery's producer and control client know sqlite:// URLs."""
    from kombu.transport import TRANSPORT_ALIASES

    from greenq.transports.sqlite import register

    before = dict(TRANSPORT_ALIASES)
    register()
    try:
        with Fleet(f"sqlite:///{tmp_path}/broker.db", f"sqlite:///{tmp_path}/results.db", tmp_path) as fleet:
            fleet.stock.conf.result_backend = "disabled://"
            fleet.green_node()
            sent = fleet.send("kinds", KINDS, compression="zlib")
            assert fleet.green.AsyncResult(sent.id).get(timeout=10) == EXPECTED
            assert fleet.stock.control.ping(timeout=3, limit=1) == [{"green@test": {"ok": "pong"}}]
            later = fleet.send("note", "revoked", countdown=600)
            fleet.stock.control.revoke(later.id, reply=True, timeout=3, limit=1)
            wait_for(lambda: fleet.green.AsyncResult(later.id).state == "REVOKED", 10, "the revoked task")
            fleet.stock.control.shutdown()
            assert fleet.nodes[0].wait(10) == 0
    finally:
        TRANSPORT_ALIASES.clear()
        TRANSPORT_ALIASES.update(before)
