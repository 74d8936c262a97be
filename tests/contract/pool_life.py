"""The pool contract: from `submit` to `done`, drain, stop, resize, and what is kept of a task afterwards."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from pathlib import Path

from greenq.exceptions import Killed, PoolCannot, PoolClosed, PoolFull
from greenq.model import Outcome, Request, State
from greenq.pools.base import Capabilities
from tests.contract.pool_bodies import ERRORS, KILL, masks
from tests.contract.pool_rig import SLOW, Book, Rig

book = Book()
MEGABYTE = 1 << 20


@book.tells()
def every_request_is_done_once(rig: Rig) -> None:
    requests = [rig.request("nothing") for _ in range(5000)]
    rig.feed(*requests)
    rig.wait_count(5000, 40.0)
    assert [i for i, s in rig.done if s != State.SUCCESS] == []
    assert sorted(i for i, _ in rig.done) == sorted(request.id for request in requests)
    assert sorted(rig.started()) == sorted(request.id for request in requests)
    assert len(rig.notes("started")) == len(rig.notes("ended")) == 5000
    assert rig.pool.free() == rig.size
    if rig.pool.can.survives_crash:
        assert sorted(rig.begun) == sorted(request.id for request in requests)


@book.tells()
def records_arrive_before_the_outcome(rig: Rig) -> None:
    """STARTED and the like: all of them, in order, small and large."""
    seen: dict[str, int] = {}
    rig.told = lambda task_id: seen.update({task_id: sum(r.task_id == task_id for r in rig.records)})
    for n in range(rig.size):
        rig.feed(rig.request("announce", 50, 0, task_id=f"small-{n}"))
        rig.feed(rig.request("announce", 3, MEGABYTE, task_id=f"large-{n}"))
    rig.wait_count(2 * rig.size)
    assert rig.states() == {State.SUCCESS: 2 * rig.size}
    for task_id, number in seen.items():
        assert number == (50 if task_id.startswith("small") else 3)
        mine = [record.payload for record in rig.records if record.task_id == task_id]
        assert [int(payload.split(b" ", 1)[0]) for payload in mine] == list(range(number))
        assert {len(payload) > MEGABYTE for payload in mine} == {task_id.startswith("large")}


@book.tells()
def whatever_is_raised_ends_only_its_task(rig: Rig) -> None:
    beside = [rig.put("stand_by", "over") for _ in range(rig.size - 1)]
    for _ in range(3):
        for name in ERRORS:
            rig.feed(rig.request("fail", name, task_id=f"{name}-{len(rig.done)}-{len(rig.line)}"))
        rig.feed(rig.request("recurse"))
    rig.feed(rig.request("nothing", task_id="last"))
    rig.wait_count(3 * (len(ERRORS) + 1) + 1)
    ended = {i.split("-")[0]: s for i, s in rig.done}
    assert ended == {name: name for name in ERRORS} | {"recurse": "RecursionError", "last": State.SUCCESS}
    rig.open("over")
    rig.wait_done(*(request.id for request in beside))
    assert rig.states()[State.SUCCESS] == rig.size
    rig.check_whole()


def _refuses(rig: Rig, refusal: type[PoolFull | PoolClosed], task_id: str) -> None:
    """As often as it is tried."""
    for _ in range(3):
        try:
            rig.submit(rig.request("nothing", task_id=task_id))
        except refusal:
            continue
        raise AssertionError(f"the pool took {task_id!r} and raised no {refusal.__name__}")


@book.tells()
def a_full_pool_refuses(rig: Rig) -> None:
    requests = rig.fill_slots("gate")
    assert rig.pool.free() == 0
    _refuses(rig, PoolFull, "over")
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    assert "over" not in rig.started()
    assert rig.pool.free() == rig.size
    rig.check_whole()


@book.tells()
def submit_never_waits(rig: Rig) -> None:
    """Not for a slot, not for a child to come up, not for a pipe to take it."""
    for round_ in range(3):
        for _ in range(rig.size):
            began = time.monotonic()
            rig.submit(rig.request("echo", "x" * MEGABYTE))
            assert time.monotonic() - began < 0.5
        rig.wait_count((round_ + 1) * rig.size)
    assert rig.states() == {State.SUCCESS: 3 * rig.size}


@book.tells()
def after_drain_nothing_starts(rig: Rig) -> None:
    slow = rig.put("gate", "slow")
    rig.wait_started(slow.id)
    assert rig.pool.drain(0.05) is False
    _refuses(rig, PoolClosed, "late")
    rig.open("slow")
    assert rig.pool.drain(SLOW) is True
    assert rig.done == [(slow.id, State.SUCCESS)]
    assert rig.pool.drain(0.0) is True
    assert list(rig.started()) == [slow.id]


@book.tells()
def drain_waits_until_everything_was_told(rig: Rig) -> None:
    told: list[str] = []

    def slowly(task_id: str) -> None:
        rig.runtime.sleep(0.1)
        told.append(task_id)

    rig.told = slowly
    requests = [rig.put("nothing") for _ in range(rig.size)]
    rig.wait(lambda: rig.done, "the first end")
    assert rig.pool.drain(SLOW) is True
    assert sorted(told) == sorted(request.id for request in requests)


@book.tells(size=4)
def whoever_waits_in_done_comes_back_in_any_order(rig: Rig) -> None:
    """As for the lock of the log: the slots come back first in, first out; last in, first out; all at once."""
    for pauses in ((0.02, 0.04, 0.06, 0.08), (0.08, 0.06, 0.04, 0.02), (0.05, 0.05, 0.05, 0.05)):
        left = list(pauses)

        def wait(task_id: str, left: list[float] = left) -> None:
            if left:
                rig.runtime.sleep(left.pop())

        rig.told = wait
        gate = f"together-{pauses}"
        together = rig.fill_slots(gate)
        rig.open(gate)
        rig.wait_done(*(request.id for request in together))
        for _ in range(3):
            rig.run("nothing")
        rig.check_whole()


@book.tells()
def what_fails_while_it_is_told_harms_nobody(rig: Rig) -> None:
    """What a task left behind, a timeout or a kill, may strike there too."""
    kinds = [ValueError, GeneratorExit, KeyboardInterrupt]

    def fail(task_id: str) -> None:
        kinds.append(kinds.pop(0))
        raise kinds[0](task_id)

    rig.told = fail
    rig.feed(*(rig.request("nothing") for _ in range(50)))
    rig.wait_count(50)
    rig.told = lambda task_id: None
    rig.check_whole()
    assert rig.pool.drain(SLOW) is True


@book.tells()
def stopping_twice_is_legal(rig: Rig) -> None:
    rig.run("nothing")
    rig.pool.stop()
    rig.pool.stop()
    assert rig.pool.drain(1.0) is True
    _refuses(rig, PoolClosed, "after the stop")


@book.tells(start=False)
def stopping_before_the_start_is_legal(rig: Rig) -> None:
    began = time.monotonic()
    rig.pool.stop()
    rig.pool.stop()
    assert rig.pool.drain(1.0) is True
    rig.pool.serve()
    assert time.monotonic() - began < 3.0


@book.tells()
def the_stats_are_plain_and_true(rig: Rig) -> None:
    rig.run("nothing")
    requests = rig.fill_slots("gate", max(1, rig.size - 1))
    stats = json.loads(json.dumps(rig.pool.stats()))
    assert stats["implementation"].startswith("greenq.pools.")
    assert stats["max-concurrency"] == rig.size
    assert (stats["running"], stats["free"]) == (len(requests), rig.size - len(requests))
    assert stats["capabilities"] == rig.pool.can.as_dict()
    assert set(stats["capabilities"]) == set(Capabilities.__dataclass_fields__)
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    assert rig.pool.stats()["running"] == 0


@book.tells()
def the_pid_is_that_of_the_process_that_runs_the_request(rig: Rig) -> None:
    not_given = rig.request("nothing")
    assert rig.pool.pid(not_given) is None
    requests = rig.fill_slots("gate")
    pids = rig.started()
    for request in requests:
        assert rig.pool.pid(request) == pids[request.id]
    inside = not rig.pool.can.survives_crash
    assert {pid == os.getpid() for pid in pids.values()} == {inside}
    assert len({pids[request.id] for request in requests}) == (1 if inside else rig.size)
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    assert [rig.pool.pid(request) for request in requests] == [None] * rig.size


@book.tells(size=1)
def nothing_keeps_a_reference(rig: Rig) -> None:
    """Neither to what user code made nor to the request, once it is done; in whatever process that is."""
    for way in ("returned", "raised"):
        request = rig.put("hold_big", way)
        rig.wait_done(request.id)
        del request
        rig.outcomes.clear()
        pid, kept = rig.run("count_big")
        assert kept == 0, f"{kept} objects of a task that {way} are kept"
        assert pid in {int(pid) for _, pid in rig.notes("started")}
    if rig.pool.can.kill:
        rig.kill(rig.wait_begun(rig.put("hold_big", "waiting")), Killed(KILL))
        rig.wait_count(len(rig.done) + 1)
        assert rig.run("count_big")[1] == 0, "an object of a task that was killed is kept"
    rig.outcomes.clear()
    rig.run("nothing")
    rig.outcomes.clear()
    gc.collect()
    kept_here = [thing for thing in gc.get_objects() if isinstance(thing, (Request, Outcome))]
    assert not kept_here, f"{kept_here} kept by {gc.get_referrers(kept_here[0])}"


@book.tells()
def eight_megabytes_go_in_and_out(rig: Rig) -> None:
    length = 8 * MEGABYTE
    rig.feed(*(rig.request("echo", letter * length, task_id=f"in-{letter}") for letter in "abc"))
    rig.feed(*(rig.request("echo", number, task_id=f"small-{number}") for number in range(100)))
    rig.feed(*(rig.request("repeat", letter, length, task_id=f"out-{letter}") for letter in "abc"))
    rig.wait_count(106, 40.0)
    assert rig.states() == {State.SUCCESS: 106}
    assert [rig.value(f"small-{number}") for number in range(100)] == list(range(100))
    for way in ("in", "out"):
        for letter in "abc":
            assert rig.value(f"{way}-{letter}") == letter * length


@book.tells()
def a_task_may_use_threads_and_programs(rig: Rig) -> None:
    rig.feed(*(rig.request("processes_and_threads", task_id=f"task-{n}") for n in range(2 * rig.size)))
    rig.wait_count(2 * rig.size)
    assert rig.states() == {State.SUCCESS: 2 * rig.size}
    for n in range(2 * rig.size):
        assert rig.value(f"task-{n}") == ["thread", 0, 7]


@book.tells(size=3)
def what_a_task_starts_finds_signals_as_usual(rig: Rig) -> None:
    """A supervisor's or a library's signal to it works: it inherits nothing of how a pool treats its own."""
    usual = masks(Path("/proc/self/status").read_text())
    for _ in range(3):
        found = rig.run("started_program")
        assert [mask & ~known for mask, known in zip(found, usual, strict=True)] == [0, 0], (found, usual)
        assert rig.run("forked_process") == [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    rig.check_whole()


@book.tells(needs="resize", size=6)
def resizing_interrupts_nothing(rig: Rig) -> None:
    first = rig.fill_slots("first")
    rig.steady = False
    rig.pool.resize(1)
    assert (rig.pool.size, rig.pool.free()) == (1, 0)
    rig.pool.resize(-3)
    assert rig.pool.size == 1, "the floor is 1"
    rig.open("first")
    rig.wait_done(*(request.id for request in first))
    assert rig.states() == {State.SUCCESS: len(first)}
    rig.wait(lambda: rig.pool.free() == 1, "the one slot")
    rig.size = 1
    rig.steady = True
    rig.check_whole()
    rig.wait_children(1)
    rig.pool.resize(12)
    rig.size = 12
    rig.wait(lambda: rig.pool.free() == 12, "twelve free slots")
    rig.check_whole()
    rig.wait_children(12)
    # Told to shrink before those it was to grow by have come.
    rig.pool.resize(16)
    rig.pool.resize(2)
    rig.size = 2
    rig.check_whole()
    rig.wait_children(2)


@book.tells(needs="resize", size=2)
def growing_helps_at_once_those_that_wait_for_a_slot(rig: Rig) -> None:
    running = rig.fill_slots("gate")
    rig.line = [rig.request("gate", "gate") for _ in range(6)]
    waiting = list(rig.line)
    rig.steady = False
    rig.pool.resize(8)
    rig.feed()
    rig.wait_started(*(request.id for request in waiting))
    assert not rig.done
    rig.open("gate")
    rig.wait_done(*(request.id for request in (*running, *waiting)))
    assert rig.states() == {State.SUCCESS: 8}


@book.tells(needs="resize", size=4)
def a_storm_of_tasks_survives_resizing_up_and_down(rig: Rig) -> None:
    requests = [rig.request("nothing") for _ in range(2000)]
    rig.steady = False
    rig.feed(*requests)
    turn = 0
    while len(rig.done) < len(requests) and turn < 4000:
        rig.pool.resize((1, 9, 3, 12, 2, 6)[turn % 6])
        rig.feed()
        rig.runtime.sleep(0.01)
        turn += 1
    rig.wait_count(len(requests))
    assert rig.states() == {State.SUCCESS: len(requests)}
    assert len(rig.notes("started")) == len(requests)
    rig.pool.resize(4)
    rig.wait(lambda: rig.pool.free() == 4, "the four slots")
    rig.steady = True
    rig.check_whole()
    rig.wait_children(4)


def refuses_resize(rig: Rig) -> None:
    for size in (0, 2, 3):
        try:
            rig.pool.resize(size)
        except PoolCannot as refusal:
            assert rig.pool.name in str(refusal), refusal
            continue
        raise AssertionError("a pool that cannot be resized said nothing")
    assert rig.pool.size == rig.size == 1
    rig.check_whole()
