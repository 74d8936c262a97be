"""The embedded broker between processes: deaths, forks, crowds, and green threads."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from greenq.exceptions import BrokerUnreachable
from greenq.transports.base import Post
from greenq.transports.sqlite import SqliteStore, open_store
from greenq.transports.sqlite.ownership import lock_file
from tests.integration.sqlite_children import envelope, number_of
from tests.support.processes import Process, ended, wait_for

ROOT = Path(__file__).parents[2]
Child = Callable[..., Process]


@pytest.fixture
def child(tmp_path: Path, sqlite_url: str) -> Iterator[Child]:
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(role: str, *arguments: object) -> Process:
            argv = [sys.executable, "-m", "tests.integration.sqlite_children", role, sqlite_url]
            output = tmp_path / f"{role}{next(numbers)}.out"
            # Lines on its output are read as JSON; eventlet's remark on its own age is none.
            env = {"PYTHONWARNINGS": "ignore"}
            process = Process([*argv, *map(str, arguments)], output=output, cwd=ROOT, env=env)
            return stack.enter_context(ended(process))

        yield start


def said(process: Process) -> list[Any]:
    """What the process has said so far; a line cut off by its death is left out."""
    lines = process.output().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def said_much(process: Process) -> bool:
    return len(said(process)) > 50


def first_word(process: Process) -> Any:
    def word() -> list[Any]:
        assert process.running or said(process), process.output()
        return said(process)

    return wait_for(word, 20.0, lambda: f"{process.argv[3:]} to speak: {process.output()}")[0]


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqliteStore]:
    opened = open_store(sqlite_url, "main")
    yield opened
    opened.settle(opened.recover())
    opened.close()


def claim_all(store: SqliteStore, count: int, seconds: float) -> list[Any]:
    """Claim as a worker does: look for the dead every so often, wait in between."""
    numbers: list[Any] = []
    deadline = time.monotonic() + seconds
    while len(numbers) < count and time.monotonic() < deadline:
        store.reclaim()
        numbers += [number_of(delivery.raw) for delivery in store.claim(["q"], 100)]
        if len(numbers) < count:
            store.wait(["q"], 0.2)
    return numbers


def test_a_killed_consumers_messages_are_back_within_two_seconds(store: SqliteStore, child: Child) -> None:
    store.post([Post("q", envelope(number)) for number in range(50)])
    holder = child("hold", 20)
    assert first_word(holder) == list(range(20))
    assert store.reclaim() == 0
    assert len(claim_all(store, 30, 5.0)) == 30
    assert store.claim(["q"], 100) == []
    holder.signal(signal.SIGSTOP)  # hung, not dead: its messages stay its own
    assert claim_all(store, 1, 1.0) == []
    holder.signal(signal.SIGCONT)
    killed = time.monotonic()
    holder.signal(signal.SIGKILL)
    assert sorted(claim_all(store, 20, 10.0)) == list(range(20))
    assert time.monotonic() - killed < 2.0
    assert claim_all(store, 1, 0.3) == []
    assert len(store.recover()) == 50
    assert {path.suffix for path in store.database.directory.iterdir()} == {".lock", ".bell"}
    assert len(list(store.database.directory.iterdir())) == 2


def test_messages_of_a_dead_consumer_show_that_they_were_delivered_before(store: SqliteStore, child: Child) -> None:
    store.post([Post("q", envelope(1))])
    holder = child("hold", 1)
    first_word(holder)
    holder.kill()
    assert store.reclaim() == 1
    (delivery,) = store.claim(["q"], 1)
    seen = json.loads(delivery.raw)
    assert seen["headers"]["redelivered"] and seen["properties"]["delivery_info"]["redelivered"]
    deliveries = store.database.connect().execute("SELECT deliveries FROM message").fetchone()[0]
    assert deliveries == 2


def test_of_two_siblings_one_gets_each_message_of_a_dead_consumer(
    store: SqliteStore, child: Child, sqlite_url: str
) -> None:
    store.post([Post("q", envelope(number)) for number in range(100)])
    holder, sibling = child("hold", 100), open_store(sqlite_url, "sibling")
    first_word(holder)
    holder.kill()
    counts = [store.reclaim(), sibling.reclaim()]
    assert sorted(counts) == [0, 100]
    got = [*store.claim(["q"], 60), *sibling.claim(["q"], 60)]
    assert sorted(number_of(delivery.raw) for delivery in got) == list(range(100))
    sibling.settle(sibling.recover())
    sibling.close()


def test_a_successor_of_the_same_name_takes_over_what_its_predecessor_left(
    store: SqliteStore, sqlite_url: str
) -> None:
    store.post([Post("q", envelope(1))])
    pid = os.fork()
    if pid == 0:
        open_store(sqlite_url, "worker@host").claim(["q"], 1)
        os._exit(0)
    os.waitpid(pid, 0)
    successor = open_store(sqlite_url, "worker@host")
    assert [number_of(delivery.raw) for delivery in successor.claim(["q"], 1)] == [1]
    successor.settle(successor.recover())
    successor.close()


def test_two_living_processes_cannot_have_one_owner_name(
    store: SqliteStore, sqlite_url: str, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.transports.sqlite.ownership._TRIES", 5)
    store.post([Post("q", envelope(1))])
    holder = child("hold", 1)
    first_word(holder)
    with pytest.raises(BrokerUnreachable, match="same owner name"):
        open_store(sqlite_url, f"holder-{holder.pid}").claim(["q"], 1)


def test_a_lock_taken_away_from_a_living_owner_is_noticed_by_renew(store: SqliteStore, sqlite_url: str) -> None:
    store.post([Post("q", envelope(1))])
    store.claim(["q"], 1)
    assert store.renew(store.recover()) is True
    lock_file(store.database.directory, store.owner).unlink()
    other = open_store(sqlite_url, "other")
    assert other.reclaim() == 1
    assert store.renew(["1-1"]) is False
    assert store.renew([]) is True
    assert len(other.claim(["q"], 1)) == 1
    other.settle(other.recover())
    other.close()


def test_stores_of_one_process_share_their_owner_and_its_lock(sqlite_url: str) -> None:
    claimer, settler, renewer = (open_store(sqlite_url, "shared") for _ in range(3))
    claimer.post([Post("q", envelope(number)) for number in range(3)])
    tags = [delivery.tag for delivery in claimer.claim(["q"], 3)]
    settler.claim(["q"], 1)
    settler.close()
    assert renewer.reclaim() == 0
    pid = os.fork()
    if pid == 0:  # a stranger, who sees whether the lock is still held
        os._exit(open_store(sqlite_url, "stranger").reclaim())
    assert os.waitpid(pid, 0)[1] == 0
    assert renewer.settle(tags) == 0
    claimer.close()
    renewer.close()


def test_four_producers_and_two_consumers_move_every_message_exactly_once(store: SqliteStore, child: Child) -> None:
    consumers = [child("consume", 10) for _ in range(2)]
    producers = [child("publish", 5_000) for _ in range(4)]
    for producer in producers:
        assert producer.wait(90) == 0, producer.output()
    seen: Counter[str] = Counter()
    for consumer in consumers:
        assert consumer.wait(60) == 0, consumer.output()
        *batches, last = said(consumer)
        assert last == "done"
        seen.update(itertools.chain.from_iterable(batches))
    assert len(seen) == 20_000
    assert set(seen.values()) == {1}
    assert store.length("q") == 0
    assert not any("locked" in process.output() for process in (*consumers, *producers))


def test_a_publisher_killed_while_publishing_leaves_whole_messages_only(store: SqliteStore, child: Child) -> None:
    for _ in range(5):
        publisher = child("publish_and_say")
        wait_for(partial(said_much, publisher), 20.0, "fifty messages")
        publisher.kill()
        known = said(publisher)
        stored = [number_of(delivery.raw) for delivery in store.claim(["q"], 100_000)]
        assert stored[: len(known)] == known
        assert len(stored) - len(known) in {0, 1}
        store.settle(store.recover())
    assert store.database.connect().execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_forked_child_is_an_owner_of_its_own_and_leaves_the_parents_messages_alone(store: SqliteStore) -> None:
    store.post([Post("q", envelope(number)) for number in range(3)])
    (mine,) = store.claim(["q"], 1)
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        lost = store.settle([mine.tag])
        theirs = [number_of(delivery.raw) for delivery in store.claim(["q"], 1)]
        os.write(into, json.dumps([lost, theirs, store.owner, store.reclaim()]).encode())
        os._exit(0)
    lost, theirs, owner, reclaimed = json.loads(os.read(out, 10_000))
    os.waitpid(pid, 0)
    os.close(out)
    os.close(into)
    assert (lost, theirs, reclaimed) == (1, [1], 0)
    assert owner == f"main+{pid}"
    assert store.owner == "main"
    assert store.reclaim() == 1  # the child is dead, and what it held is back
    assert store.settle([mine.tag]) == 0
    assert [number_of(delivery.raw) for delivery in store.claim(["q"], 9)] == [1, 2]


def test_a_fork_that_outlives_its_parent_does_not_hold_the_parents_messages(
    store: SqliteStore, sqlite_url: str
) -> None:
    store.post([Post("q", envelope(1))])
    out, into = os.pipe()
    parent = os.fork()
    if parent == 0:
        open_store(sqlite_url, "parent").claim(["q"], 1)
        if os.fork() == 0:
            os.write(into, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    orphan = int(os.read(out, 100))
    try:
        assert store.reclaim() == 0
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert store.reclaim() == 1
    finally:
        os.kill(orphan, signal.SIGKILL)
        os.close(out)
        os.close(into)


def test_many_processes_may_make_the_file_at_once(sqlite_url: str, tmp_path: Path, child: Child) -> None:
    producers = [child("publish", 20) for _ in range(8)]
    assert [producer.wait(60) for producer in producers] == [0] * 8, [p.output() for p in producers]
    connection = sqlite3.connect(tmp_path / "broker.db")
    assert connection.execute("SELECT count(*) FROM message").fetchone() == (160,)
    connection.close()


@pytest.mark.alone
def test_an_idle_consumer_takes_less_than_half_a_percent_of_a_core(child: Child, record_property: Any) -> None:
    idle = child("idle", 4)
    share = first_word(idle)
    record_property("idle_cpu_percent", share * 100)
    print(f"idle CPU {share * 100:.2f} %")
    assert share < 0.005


@pytest.mark.alone
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_waiting_lets_other_fibers_run_and_ends_by_ring_and_by_interrupt(child: Child, library: str) -> None:
    report = first_word(child("green", library))
    (message, first), (nothing, second) = report["seen"]
    assert (message, nothing, report["dead"]) == ("1", "0", True)
    assert 0.1 < first < 0.5 and second < 0.5
    assert report["ticks"] > 30
    assert report["longest"] < 0.1
