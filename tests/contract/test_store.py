"""The Store contract (greenq/transports/base.py), over every batched broker."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from greenq._speedups import decode_envelope
from greenq.broker.stores import blocks_in_c, open_store
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery, Post, Store
from greenq.wire.messages import build_task_message, to_envelope
from tests.support.processes import Process, ended, wait_for

LEASE = 1.0
ROOT = Path(__file__).parents[2]
Open = Callable[[str], Store]


@pytest.fixture(params=["redis", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def options(url: str) -> dict[str, Any]:
    """A short lease where there is one; a lock of the kernel needs none."""
    return {} if blocks_in_c(url) else {"lease": LEASE}


@pytest.fixture
def opened(url: str, options: dict[str, Any]) -> Iterator[Open]:
    """`opened(owner)`: a new store; it gives back what it holds, and is closed."""
    stores: list[Store] = []

    def make(owner: str) -> Store:
        stores.append(open_store(url, owner, options))
        return stores[-1]

    yield make
    for store in stores:
        store.settle(store.recover())
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> Store:
    return opened("here")


@pytest.fixture
def lost(url: str, options: dict[str, Any], store: Store, tmp_path: Path) -> Iterator[tuple[Process, list[str]]]:
    """A living owner "lost" of another process, and the tags of the three messages it holds."""
    post(store, 1, 2, 3)
    argv = [sys.executable, "-m", "tests.contract.store_driver", url, "lost", json.dumps(options), "3"]
    with ended(Process(argv, output=tmp_path / "lost.out", cwd=ROOT)) as holder:
        wait_for(lambda: "\n" in holder.output() or not holder.running, 20, "the claim")
        tags: list[str] = json.loads(holder.output())
        assert len(tags) == 3
        yield holder, tags


def envelope(number: int, queue: str = "q", priority: int = 0) -> bytes:
    message = build_task_message(
        name="proj.add",
        args=[number],
        kwargs={},
        task_id=str(number),
        origin="contract",
        routing_key=queue,
        now=datetime.now(timezone.utc),
        priority=priority,
    )
    return to_envelope(message, f"tag-{number}")


def post(store: Store, *numbers: int, queue: str = "q", priority: int = 0) -> None:
    store.post([Post(queue, envelope(number, queue, priority), priority) for number in numbers])


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(decode_envelope(delivery.raw, delivery.queue, delivery.tag).id) for delivery in deliveries]


def all_back(store: Store, count: int) -> int:
    """Reclaim until `count` messages came back, or the lease is long over; how many came back."""
    until, back = time.monotonic() + LEASE + 5, 0
    while back < count and time.monotonic() < until:
        back += store.reclaim()
        time.sleep(0.05)
    return back


def test_a_claim_returns_the_envelope_its_queue_and_a_tag_byte_for_byte(store: Store) -> None:
    raw = envelope(1)
    store.post([Post("q", raw)])
    (delivery,) = store.claim(["q"], 10)
    assert (delivery.raw, delivery.queue) == (raw, "q")
    assert store.recover() == [delivery.tag]


def test_messages_are_claimed_in_the_order_they_were_posted(store: Store) -> None:
    post(store, *range(120))
    post(store, *range(120, 150))
    assert numbers([d for _ in range(5) for d in store.claim(["q"], 40)]) == list(range(150))


def test_a_claim_takes_no_more_than_its_limit(store: Store) -> None:
    post(store, *range(10))
    assert len(store.claim(["q"], 3)) == 3
    assert store.length("q") == 7


def test_a_claim_of_nothing_returns_at_once(store: Store) -> None:
    began = time.monotonic()
    assert store.claim(["q", "never-declared"], 10) == []
    assert time.monotonic() - began < 1


def test_two_owners_at_once_claim_each_message_once(opened: Open) -> None:
    total = 400
    stores = [opened("one"), opened("two")]
    post(stores[0], *range(total))
    together = threading.Barrier(2)

    def drain(store: Store) -> list[int]:
        together.wait(10)
        found: list[int] = []
        while batch := store.claim(["q"], 7):
            found += numbers(batch)
        return found

    with ThreadPoolExecutor(2) as threads:
        shares = list(threads.map(drain, stores))
    assert sorted(itertools.chain(*shares)) == list(range(total))


def test_a_long_queue_leaves_a_short_one_its_share(store: Store) -> None:
    post(store, *range(100), queue="long")
    post(store, *range(5), queue="short")
    assert Counter(d.queue for d in store.claim(["long", "short"], 20)) == {"long": 15, "short": 5}


def test_claims_of_one_message_take_the_queues_in_turn(store: Store) -> None:
    for queue in ("a", "b"):
        post(store, *range(20), queue=queue)
    assert Counter(store.claim(["a", "b"], 1)[0].queue for _ in range(10)) == {"a": 5, "b": 5}


def test_higher_priorities_are_served_first_and_zero_is_the_highest(store: Store) -> None:
    for priority in (9, 0, 6, 3):
        post(store, priority, priority=priority)
    assert numbers(store.claim(["q"], 2)) == [0, 3]
    assert numbers(store.claim(["q"], 2)) == [6, 9]


def test_a_wait_ends_when_a_message_is_posted_and_takes_nothing(opened: Open) -> None:
    waiter, sender = opened("waiter"), opened("sender")
    assert waiter.claim(["q"], 1) == []
    timer = threading.Timer(0.2, post, (sender, 1))
    timer.start()
    began = time.monotonic()
    assert waiter.wait(["q"], 10) is True
    assert time.monotonic() - began < 5
    timer.join()
    assert waiter.recover() == []
    assert numbers(sender.claim(["q"], 1)) == [1]


def test_a_wait_that_sees_nothing_ends_after_its_timeout(store: Store) -> None:
    assert store.claim(["q"], 1) == []
    began = time.monotonic()
    assert store.wait(["q"], 0.3) is False
    assert 0.25 < time.monotonic() - began < 3


def test_an_interrupt_from_another_thread_ends_a_wait(store: Store) -> None:
    assert store.claim(["q"], 1) == []
    timer = threading.Timer(0.2, store.interrupt)
    timer.start()
    began = time.monotonic()
    store.wait(["q"], 20)
    assert 0.1 < time.monotonic() - began < 5
    timer.join()
    post(store, 1)
    assert numbers(store.claim(["q"], 1)) == [1]


def test_what_is_acknowledged_is_gone_and_what_is_not_is_still_held(store: Store) -> None:
    post(store, 1, 2, 3)
    first, *others = store.claim(["q"], 3)
    assert store.settle([other.tag for other in others]) == 0
    assert store.recover() == [first.tag]
    assert store.claim(["q"], 3) == []


def test_requeued_messages_are_at_the_head_of_their_queue_at_once(store: Store) -> None:
    post(store, 1, 2, 3, 4)
    held = store.claim(["q"], 2)
    assert store.settle((), [Settlement(d.tag, d.queue, Settle.REQUEUE) for d in held]) == 0
    assert store.recover() == []
    assert numbers(store.claim(["q"], 4)) == [1, 2, 3, 4]


@pytest.mark.parametrize("raw", [envelope(1), b"\xff\x00 not {json"], ids=["message", "junk"])
def test_a_dead_message_lies_byte_for_byte_in_the_dead_queue(store: Store, raw: bytes) -> None:
    store.post([Post("q", raw)])
    (held,) = store.claim(["q"], 1)
    assert held.raw == raw
    assert store.settle((), [Settlement(held.tag, "q", Settle.DEAD, reason="unknown_task")]) == 0
    assert store.claim(["q"], 1) == []
    (dead,) = store.claim(["q.dead"], 2)
    assert dead.raw == raw


def test_a_delayed_message_is_served_when_due_and_never_early(store: Store) -> None:
    post(store, 1)
    (held,) = store.claim(["q"], 1)
    due = time.time() + 0.6
    assert store.settle((), [Settlement(held.tag, "q", Settle.DELAY, due=due)]) == 0
    assert store.recover() == []
    again = wait_for(lambda: store.claim(["q"], 1), 10, "the delayed message")
    assert time.time() >= due
    assert numbers(again) == [1]


def test_a_wait_ends_when_a_delayed_message_is_due(store: Store) -> None:
    post(store, 1)
    (held,) = store.claim(["q"], 1)
    store.settle((), [Settlement(held.tag, "q", Settle.DELAY, due=time.time() + 0.3)])
    assert store.claim(["q"], 1) == []
    began = time.monotonic()
    assert store.wait(["q"], 20) is True
    assert time.monotonic() - began < 5
    assert len(wait_for(lambda: store.claim(["q"], 1), 5, "the due message")) == 1


def test_endings_of_every_kind_go_in_one_call(store: Store) -> None:
    post(store, 1, 2, 3, 4)
    one, two, three, four = store.claim(["q"], 4)
    others = [
        Settlement(two.tag, "q", Settle.REQUEUE),
        Settlement(three.tag, "q", Settle.DEAD, reason="envelope"),
        Settlement(four.tag, "q", Settle.DELAY, due=time.time() + 3600),
    ]
    assert store.settle([one.tag], others) == 0
    assert store.recover() == []
    assert (store.length("q"), store.length("q.dead")) == (1, 1)


def test_a_second_ending_is_counted_and_changes_nothing(store: Store) -> None:
    post(store, 1)
    (held,) = store.claim(["q"], 1)
    assert store.settle([held.tag]) == 0
    others = [Settlement(held.tag, "q", how) for how in (Settle.REQUEUE, Settle.DEAD, Settle.DELAY)]
    assert store.settle([held.tag], others) == 4
    assert (store.length("q"), store.length("q.dead")) == (0, 0)


def test_instances_of_one_owner_claim_settle_and_renew_for_each_other(opened: Open) -> None:
    claimer, settler, renewer = (opened("shared") for _ in range(3))
    post(claimer, 1, 2)
    tags = [d.tag for d in claimer.claim(["q"], 2)]
    assert renewer.renew(tags) is True
    assert settler.settle(tags) == 0
    assert claimer.recover() == []


def test_a_lost_owners_messages_come_back_by_reclaim(store: Store, lost: tuple[Process, list[str]]) -> None:
    holder, _ = lost
    holder.kill()
    assert all_back(store, 3) == 3
    assert numbers(store.claim(["q"], 10)) == [1, 2, 3]


def test_a_living_owner_that_renews_loses_nothing(store: Store, lost: tuple[Process, list[str]]) -> None:
    holder, _ = lost
    until = time.monotonic() + 1.3 * LEASE
    while time.monotonic() < until:
        assert store.reclaim() == 0
        time.sleep(0.05)
    assert holder.running, holder.output()
    assert store.claim(["q"], 10) == []


def test_what_a_stale_owner_settles_has_no_effect_and_is_counted(
    opened: Open, store: Store, lost: tuple[Process, list[str]]
) -> None:
    holder, tags = lost
    holder.kill()
    assert all_back(store, 3) == 3
    held = store.claim(["q"], 1)
    stale = opened("lost")
    others = [Settlement(tags[1], "q", Settle.REQUEUE), Settlement(tags[2], "q", Settle.DEAD, reason="late")]
    assert stale.settle([tags[0]], others) == 3
    assert (store.length("q"), store.length("q.dead")) == (2, 0)
    assert store.settle([held[0].tag]) == 0


def test_length_counts_all_priorities_but_nothing_claimed_or_delayed(store: Store) -> None:
    post(store, 1, 2, 3)
    post(store, 4, priority=9)
    held = store.claim(["q"], 2)
    assert store.length("q") == 2
    store.settle((), [Settlement(held[0].tag, "q", Settle.DELAY, due=time.time() + 3600)])
    assert store.length("q") == 2
    assert store.length("never-declared") == 0


def test_a_purge_deletes_what_is_ready_and_says_how_many(store: Store) -> None:
    post(store, 1, 2, 3)
    post(store, 4, priority=9)
    post(store, 5, queue="other")
    (held,) = store.claim(["q"], 1)
    assert store.purge("q") == 3
    assert store.purge("q") == 0
    assert (store.length("q"), store.length("other")) == (0, 1)
    assert store.recover() == [held.tag]


def test_closing_twice_is_legal_and_what_is_claimed_stays_claimed(opened: Open) -> None:
    closed, sibling, stranger = opened("owner"), opened("owner"), opened("stranger")
    post(closed, 1)
    (held,) = closed.claim(["q"], 1)
    closed.close()
    closed.close()
    assert stranger.claim(["q"], 1) == []
    assert sibling.settle([held.tag]) == 0


def test_a_silent_owner_learns_from_renew_whether_it_was_given_up_for_dead(
    store: Store, lost: tuple[Process, list[str]]
) -> None:
    holder, _ = lost
    holder.signal(signal.SIGSTOP)
    until, back = time.monotonic() + 1.6 * LEASE, 0
    while time.monotonic() < until:
        back += store.reclaim()
        time.sleep(0.05)
    holder.signal(signal.SIGCONT)
    if back:
        assert holder.wait(10) != 0
        assert "given up for dead" in holder.output()
    else:
        time.sleep(0.3)
        assert holder.running, holder.output()
    assert len(store.claim(["q"], 10)) == back
