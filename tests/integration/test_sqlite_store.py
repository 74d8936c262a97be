"""The embedded broker's store within one process: order, settling, delays, waiting."""

from __future__ import annotations

import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery, Post
from greenq.transports.sqlite import SqliteStore, open_store
from greenq.transports.sqlite.settling import DEAD_KEPT
from tests.integration.sqlite_children import envelope, number_of

Opener = Callable[[str], SqliteStore]


@pytest.fixture
def opened(sqlite_url: str) -> Iterator[Opener]:
    stores: list[SqliteStore] = []

    def open_one(owner: str) -> SqliteStore:
        stores.append(open_store(sqlite_url, owner))
        return stores[-1]

    yield open_one
    for store in stores:
        store.settle(store.recover())
        store.close()


def numbers(deliveries: list[Delivery]) -> list[Any]:
    return [number_of(delivery.raw) for delivery in deliveries]


def post(store: SqliteStore, *what: int, queue: str = "q", priority: int = 0) -> None:
    store.post([Post(queue, envelope(number), priority) for number in what])


def test_messages_come_in_the_order_they_were_posted_and_byte_for_byte(opened: Opener) -> None:
    a, b = opened("a"), opened("b")
    raw = b'{"headers":{"id":1}, "properties":{},   "odd": "\xff\x00"}'
    a.post([Post("q", raw)])
    post(a, 2, 3)
    deliveries = b.claim(["q"], 10)
    assert deliveries[0].raw == raw
    assert numbers(deliveries[1:]) == [2, 3]
    assert b.recover() == [delivery.tag for delivery in deliveries]


def test_priority_0_is_served_first_across_queues(opened: Opener) -> None:
    store = opened("a")
    post(store, 9, priority=9)
    post(store, 3, priority=3)
    post(store, 0)
    post(store, 30, queue="r", priority=3)
    post(store, 1, queue="r")
    assert numbers(store.claim(["q"], 1)) == [0]
    assert numbers(store.claim(["q", "r"], 3))[0] == 1
    assert numbers(store.claim(["q", "r"], 3)) == [9]


def test_a_long_queue_does_not_keep_others_waiting(opened: Opener) -> None:
    store = opened("a")
    post(store, *range(100), queue="long")
    post(store, *range(1000, 1005), queue="short")
    queues = [delivery.queue for delivery in store.claim(["long", "short", "empty"], 10)]
    assert queues.count("short") == 5
    first = [store.claim(["long", "other"], 1)[0].queue for _ in range(2)]
    post(store, 1, 2, queue="other")
    first += [store.claim(["long", "other"], 1)[0].queue for _ in range(4)]
    assert first.count("other") == 2


def test_what_one_owner_claimed_no_other_gets_or_settles(opened: Opener) -> None:
    a, b = opened("a"), opened("b")
    post(a, 1)
    (delivery,) = a.claim(["q"], 10)
    assert b.claim(["q"], 10) == []
    assert b.settle([delivery.tag]) == 1
    assert b.settle((), [Settlement(delivery.tag, "q", Settle.REQUEUE)]) == 1
    assert b.reclaim() == 0
    assert a.settle([delivery.tag]) == 0
    assert a.settle([delivery.tag]) == 1


def test_a_tag_of_an_earlier_delivery_settles_nothing(opened: Opener) -> None:
    store, sibling = opened("a"), opened("a")
    post(store, 1)
    (first,) = store.claim(["q"], 1)
    store.settle((), [Settlement(first.tag, "q", Settle.REQUEUE)])
    (second,) = sibling.claim(["q"], 1)
    assert store.settle([first.tag]) == 1
    assert store.settle([second.tag]) == 0
    assert store.settle(["nonsense", "", "7"]) == 3


def test_a_tag_is_not_taken_for_a_new_message_with_the_same_row_number(opened: Opener) -> None:
    store = opened("a")
    post(store, 1)
    (old,) = store.claim(["q"], 1)
    store.settle([old.tag])
    post(store, 2)
    (new,) = store.claim(["q"], 1)
    assert old.tag.partition("-")[0] == new.tag.partition("-")[0]
    assert store.settle([old.tag]) == 1
    assert store.recover() == [new.tag]


def test_a_requeued_message_stands_at_the_head_again_and_shows_it(opened: Opener) -> None:
    a, b = opened("a"), opened("b")
    post(a, 1, 2, 3)
    (first,) = a.claim(["q"], 1)
    assert a.settle((), [Settlement(first.tag, "q", Settle.REQUEUE)]) == 0
    again, other = b.claim(["q"], 2)
    assert numbers([again, other]) == [1, 2]
    seen = json.loads(again.raw)
    assert seen["headers"]["redelivered"] is True
    assert seen["properties"]["delivery_info"]["redelivered"] is True
    assert "redelivered" not in json.loads(other.raw)["headers"]
    stored = b.database.connect().execute("SELECT body FROM message WHERE redelivered = 1").fetchone()[0]
    assert stored == first.raw


def test_what_is_no_envelope_comes_back_as_it_is(opened: Opener) -> None:
    store = opened("a")
    for raw in (b"\x80\x81", b"[1]", b"[" * 100_000, b'{"headers": 1}', b""):
        store.post([Post("q", raw)])
        (first,) = store.claim(["q"], 1)
        store.settle((), [Settlement(first.tag, "q", Settle.REQUEUE)])
        (second,) = store.claim(["q"], 1)
        assert second.raw == raw
        store.settle([second.tag])


def test_a_delayed_message_is_served_when_it_is_due_and_not_as_redelivered(opened: Opener) -> None:
    store = opened("a")
    post(store, 1)
    (delivery,) = store.claim(["q"], 1)
    due = time.time() + 0.4
    assert store.settle((), [Settlement(delivery.tag, "q", Settle.DELAY, due=due)]) == 0
    assert (store.claim(["q"], 1), store.length("q"), store.recover()) == ([], 0, [])
    assert store.wait(["q"], 5.0)
    assert 0 <= time.time() - due < 0.1
    (again,) = store.claim(["q"], 1)
    assert again.raw == delivery.raw


def test_who_waits_is_told_of_a_message_delayed_meanwhile(opened: Opener) -> None:
    a, b = opened("a"), opened("b")
    post(a, 1)
    (delivery,) = a.claim(["q"], 1)
    assert b.claim(["q"], 1) == []
    due = time.time() + 0.3
    a.settle((), [Settlement(delivery.tag, "q", Settle.DELAY, due=due)])
    deadline = time.monotonic() + 5
    while not (claimed := b.claim(["q"], 1)) and time.monotonic() < deadline:
        b.wait(["q"], 5.0)
    assert numbers(claimed) == [1]
    assert 0 <= time.time() - due < 0.1


def test_a_dead_message_keeps_its_bytes_and_tells_its_reason(opened: Opener, sqlite_url: str) -> None:
    store = opened("a")
    raw = b'{"headers": {"id": 1},\t"properties": {}} \xfe'
    store.post([Post("q", raw, 7)])
    (delivery,) = store.claim(["q"], 1)
    assert store.settle((), [Settlement(delivery.tag, "q", Settle.DEAD, reason="unknown_task: x")]) == 0
    assert (store.length("q"), store.length("q.dead")) == (0, 1)
    reason = store.database.connect().execute("SELECT reason FROM message WHERE queue = 'q.dead'").fetchone()[0]
    assert reason == "unknown_task: x"
    (dead,) = store.claim(["q.dead"], 1)
    assert dead.raw == raw


def test_a_dead_queue_keeps_the_newest_ten_thousand(opened: Opener) -> None:
    store = opened("a")
    post(store, *range(DEAD_KEPT + 50))
    while deliveries := store.claim(["q"], 2000):
        store.settle((), [Settlement(d.tag, "q", Settle.DEAD, reason="x") for d in deliveries])
    assert store.length("q.dead") == DEAD_KEPT
    assert numbers(store.claim(["q.dead"], 1)) == [50]


def test_one_settle_is_one_transaction(opened: Opener, sqlite_url: str) -> None:
    store = opened("a")
    post(store, 1, 2, 3, 4)
    tags = [delivery.tag for delivery in store.claim(["q"], 4)]
    commits: list[str] = []
    store.database.connect().set_trace_callback(commits.append)
    lost = store.settle(
        [tags[0], "99-1"],
        [
            Settlement(tags[1], "q", Settle.REQUEUE),
            Settlement(tags[2], "q", Settle.DEAD, reason="r"),
            Settlement(tags[3], "q", Settle.DELAY, due=time.time() + 99),
        ],
    )
    store.database.connect().set_trace_callback(None)
    assert lost == 1
    assert [line for line in commits if line.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]


def test_purge_deletes_what_is_ready_and_nothing_else(opened: Opener) -> None:
    store = opened("a")
    post(store, *range(5))
    held, delayed = store.claim(["q"], 2)
    store.settle((), [Settlement(delayed.tag, "q", Settle.DELAY, due=time.time() + 99)])
    assert store.length("q") == 3
    assert store.purge("q") == 3
    assert store.purge("q") == 0
    assert store.recover() == [held.tag]
    kept = store.database.connect().execute("SELECT count(*) FROM message").fetchone()[0]
    assert kept == 2


def test_an_empty_claim_takes_no_write_lock(opened: Opener, sqlite_url: str) -> None:
    store = opened("a")
    store.claim(["q"], 1)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    assert store.claim(["q"], 1) == []
    assert time.monotonic() - begun < 1.0
    other.close()


def test_a_wait_ends_by_timeout_by_a_message_and_by_interrupt(opened: Opener) -> None:
    store, other = opened("a"), opened("b")
    store.claim(["q"], 1)
    begun = time.monotonic()
    assert store.wait(["q"], 0.2) is False
    assert 0.2 <= time.monotonic() - begun < 0.5
    store.claim(["q"], 1)
    timer = threading.Timer(0.2, store.interrupt)
    begun = time.monotonic()
    timer.start()
    store.wait(["q"], 10.0)
    assert time.monotonic() - begun < 1.0
    assert store.claim(["q"], 1) == []
    post(other, 1)
    assert store.wait(["q"], 10.0) is True
    assert numbers(store.claim(["q"], 1)) == [1]


@pytest.mark.alone
def test_a_message_between_an_empty_claim_and_the_wait_is_not_slept_through(opened: Opener) -> None:
    store, other = opened("a"), opened("b")
    for number in range(50):
        assert store.claim(["q"], 1) == []
        post(other, number)
        begun = time.monotonic()
        assert store.wait(["q"], 5.0)
        assert time.monotonic() - begun < 0.04
        store.settle([delivery.tag for delivery in store.claim(["q"], 1)])


def test_a_consumer_without_its_doorbell_is_woken_by_the_poll(opened: Opener) -> None:
    store, other = opened("a"), opened("b")
    store.claim(["q"], 1)
    for bell in store.database.directory.glob("*.bell"):
        bell.unlink()
    threading.Timer(0.2, other.post, [[Post("q", envelope(1))]]).start()
    begun = time.monotonic()
    assert store.wait(["q"], 10.0)
    assert time.monotonic() - begun < 0.5


def test_a_bell_rings_only_for_the_queues_its_store_waits_for(opened: Opener) -> None:
    store, other = opened("a"), opened("b")
    store.claim(["q"], 1)
    assert store._bell is not None
    post(other, 1, queue="elsewhere")
    assert store._bell.wait(0) is False
    store.claim(["elsewhere"], 0)
    post(other, 2, queue="elsewhere")
    assert store._bell.wait(1) is True


@pytest.mark.alone
def test_a_waiting_consumer_wakes_within_milliseconds(opened: Opener, record_property: Any) -> None:
    store, other = opened("a"), opened("b")
    begun: list[float] = []
    taken: list[float] = []

    def publish() -> None:
        begun.append(time.perf_counter())
        other.post([Post("q", b"{}")])

    for _ in range(100):
        assert store.claim(["q"], 1) == []
        threading.Timer(0.005, publish).start()
        assert store.wait(["q"], 5.0)
        (delivery,) = store.claim(["q"], 1)
        taken.append(time.perf_counter() - begun[-1])
        store.settle([delivery.tag])
    p50 = statistics.median(taken) * 1000
    record_property("wake_up_p50_ms", p50)
    print(f"wake-up p50 {p50:.2f} ms, max {max(taken) * 1000:.2f} ms")
    assert p50 < 25  # half of the poll that would stand in for a doorbell that never rings


def test_closing_twice_is_legal_and_the_next_call_connects_again(opened: Opener) -> None:
    store = opened("a")
    post(store, 1)
    store.close()
    store.close()
    assert store.length("q") == 1


def test_close_leaves_what_is_claimed_claimed_while_the_process_lives(opened: Opener) -> None:
    a, b = opened("a"), opened("b")
    post(a, 1)
    (delivery,) = a.claim(["q"], 1)
    a.close()
    assert b.reclaim() == 0
    assert b.claim(["q"], 1) == []
    assert a.recover() == [delivery.tag]


def test_the_last_store_to_close_takes_the_owners_files_along(opened: Opener) -> None:
    first, second = opened("a"), opened("a")
    first.claim(["q"], 1)
    second.claim(["q"], 1)
    directory = first.database.directory
    assert {path.suffix for path in directory.iterdir()} == {".lock", ".bell"}
    first.close()
    assert list(directory.glob("*.lock"))
    second.close()
    assert list(directory.iterdir()) == []
