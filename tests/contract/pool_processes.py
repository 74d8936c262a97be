"""The pool contract: tasks that take their process down, and processes that are replaced."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace

from greenq.exceptions import ConfigError, PoolCannot, WorkerLostError
from greenq.model import Outcome, Settle, State
from tests.contract.pool_rig import SLOW, Book, Rig

book = Book()
LOST = WorkerLostError.__name__
WAYS = {"exit0": "status 0", "exit3": "status 3", "SIGKILL": "SIGKILL", "segv": "SIGSEGV"}
PROMPT = 5.0


@book.tells(needs="survives_crash", size=4)
def a_crash_ends_only_its_task(rig: Rig) -> None:
    beside = [rig.put("gate", "over") for _ in range(rig.size - 1)]
    rig.wait_started(*(request.id for request in beside))
    pids = rig.started()
    for way, words in WAYS.items():
        victim = rig.put("die", way)
        rig.wait_done(victim.id, seconds=PROMPT)
        assert rig.state(victim.id) == LOST
        assert words in rig.lost[victim.id], rig.lost
        assert rig.pool.pid(victim) is None
        assert [rig.pool.pid(request) for request in beside] == [pids[request.id] for request in beside]
    rig.open("over")
    rig.wait_done(*(request.id for request in beside))
    assert rig.states() == {LOST: len(WAYS), State.SUCCESS: len(beside)}
    rig.check_whole()


@book.tells(needs="survives_crash", size=2)
def signals_for_the_whole_worker_end_no_child(rig: Rig) -> None:
    """Ctrl-C and a supervisor's TERM reach every process; the worker alone decides what follows."""
    requests = rig.fill_slots("gate")
    pids = rig.started()
    for request in requests:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pids[request.id], number)
    rig.runtime.sleep(0.3)
    assert not rig.done
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    assert rig.states() == {State.SUCCESS: len(requests)}
    rig.check_whole()


@book.tells(needs="survives_crash", size=4)
def a_hundred_crashes_lose_nothing(rig: Rig) -> None:
    ways = list(WAYS)
    dying = {f"dies-{n}" for n in range(100)}
    for n in range(100):
        rig.feed(rig.request("die", ways[n % len(ways)], task_id=f"dies-{n}"))
        rig.feed(*(rig.request("nothing", task_id=f"lives-{n}-{m}") for m in range(4)))
    rig.wait_count(500, 60.0)
    assert {i for i, state in rig.done if state == LOST} == dying
    assert rig.states() == {LOST: 100, State.SUCCESS: 400}
    rig.check_whole()


@book.tells(needs="survives_crash", size=3)
def the_loss_can_be_settled_as_the_worker_decides(rig: Rig) -> None:
    rig.verdict = lambda request, why: Outcome(request, State.CANCELLED, Settle.REQUEUE)
    rig.feed(*(rig.request("die", "SIGKILL") for _ in range(9)))
    rig.wait_count(9)
    assert rig.states() == {State.CANCELLED: 9}
    assert all(outcome.how is Settle.REQUEUE for outcome in rig.outcomes.values())
    rig.check_whole()


@book.tells(needs="survives_crash", size=3)
def children_killed_while_idle_are_replaced(rig: Rig) -> None:
    requests = rig.fill_slots("gate")
    old = {rig.started()[request.id] for request in requests}
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    # Given at once, some of these reach a child that is dead already, and unstarted they are not lost with it.
    rig.feed(*(rig.request("nothing") for _ in range(30)))
    rig.wait_count(33)
    assert rig.states() == {State.SUCCESS: 33}
    assert not rig.lost
    rig.check_whole()
    assert not old & {int(pid) for _, pid in rig.notes("started")[33:]}


@book.tells(needs="survives_crash", size=2, options={"ahead": 4})
def what_a_crashed_child_had_not_started_runs_elsewhere(rig: Rig) -> None:
    rig.steady = False  # there are more places than children
    for n in range(20):
        rig.feed(rig.request("die", "SIGKILL", task_id=f"dies-{n}"))
        rig.feed(*(rig.request("nothing", task_id=f"lives-{n}-{m}") for m in range(6)))
    rig.wait_count(140, 60.0)
    assert {i for i, state in rig.done if state == LOST} == {f"dies-{n}" for n in range(20)}
    assert rig.states() == {LOST: 20, State.SUCCESS: 120}
    assert max(Counter(task_id for task_id, _ in rig.notes("started")).values()) == 1


@book.tells(needs="recycle", size=2, options={"max_tasks": 1})
def a_child_of_one_task_runs_one(rig: Rig) -> None:
    _recycles_beside_one_that_stays(rig, 1)


@book.tells(needs="recycle", size=3, options={"max_tasks": 2})
def a_child_of_two_tasks_runs_two(rig: Rig) -> None:
    _recycles_beside_one_that_stays(rig, 2)


@book.tells(needs="recycle", size=3, options={"max_tasks": 3, "ahead": 2})
def a_child_of_three_tasks_runs_three_whatever_it_was_handed(rig: Rig) -> None:
    """No neighbour that goes on and on here: what a busy child was handed ahead would wait behind it."""
    rig.steady = False
    _recycles(rig, 3)


def _recycles_beside_one_that_stays(rig: Rig, most: int) -> None:
    beside = rig.wait_begun(rig.put("gate", "over"))
    _recycles(rig, most)
    rig.open("over")
    rig.wait_done(beside.id)
    assert rig.states() == {State.SUCCESS: 61}


def _recycles(rig: Rig, most: int) -> None:
    began = time.monotonic()
    rig.feed(*(rig.request("nothing") for _ in range(60)))
    rig.wait_count(60)
    assert time.monotonic() - began < PROMPT, "recycling holds others up"
    assert rig.states() == {State.SUCCESS: 60}
    shares = Counter(pid for _, pid in rig.notes("started"))
    assert max(shares.values()) <= most
    assert not rig.lost
    # Each said good-bye: it was let go, not killed.
    ended = Counter(pid for _, pid in rig.notes("ended"))
    finished = {pid for pid, share in ended.items() if share == most}
    rig.wait(lambda: finished <= {pid for (pid,) in rig.notes("left")}, "the good-byes of the children")


@book.tells(needs="recycle", size=2, options={"max_memory": 200 << 10})
def a_child_that_has_grown_too_large_is_replaced(rig: Rig) -> None:
    limit = 200 << 10
    beside = rig.put("gate", "over")
    rig.wait_started(beside.id)
    small = [rig.run("process") for _ in range(10)]
    assert len(set(small)) == 1, "a small one may stay"
    assert rig.run("resident") < limit
    rig.run("hog", 250)
    assert rig.run("process") != small[0]
    assert rig.run("resident") < limit
    rig.open("over")
    rig.wait_done(beside.id)
    assert set(rig.states()) == {State.SUCCESS}
    rig.check_whole()


@book.tells(needs="restart", size=3)
def a_restart_brings_new_children_with_new_code(rig: Rig) -> None:
    assert rig.run("version") == 1
    running = [rig.put("gate", "over") for _ in range(2)]
    rig.wait_started(*(request.id for request in running))
    old = set(rig.started().values())
    rig.write_code(20)
    rig.pool.restart()
    seen = 1
    until = time.monotonic() + SLOW
    while seen != 20:
        assert time.monotonic() < until, "the new code never came"
        seen = rig.run("version")
    assert not set(map(str, old)) & {pid for i, pid in rig.notes("started")[-1:]}
    assert rig.pool.pid(running[0]) in old
    rig.open("over")
    rig.wait_done(*(request.id for request in running))
    assert set(rig.states()) == {State.SUCCESS}
    rig.check_whole()
    assert [rig.run("version") for _ in range(6)] == [20] * 6


@book.tells(needs="restart", size=3)
def restarting_again_and_again_under_load_loses_nothing(rig: Rig) -> None:
    requests = [rig.request("sleep", 0.005) for _ in range(600)]
    rig.feed(*requests)
    for _ in range(6):
        rig.pool.restart()
        rig.runtime.sleep(0.15)
    rig.wait_count(600)
    assert rig.states() == {State.SUCCESS: 600}
    assert len(rig.notes("started")) == 600
    rig.check_whole()


def refuses_restart(rig: Rig) -> None:
    try:
        rig.pool.restart()
    except PoolCannot as refusal:
        assert rig.pool.name in str(refusal) and "restart the worker" in str(refusal), refusal
    else:
        raise AssertionError("a pool that cannot restart said nothing")
    rig.check_whole()


def refuses_recycle(rig: Rig) -> None:
    for option, name in (("max_tasks", "max-tasks-per-child"), ("max_memory", "max-memory-per-child")):
        try:
            rig.make_pool(replace(rig.options, **{option: 5}))
        except ConfigError as refusal:
            assert name in str(refusal) and rig.pool.name in str(refusal) and "prefork" in str(refusal), refusal
            continue
        raise AssertionError(f"a pool that cannot recycle took {option}")


def refuses_survives_crash(rig: Rig) -> None:
    """A crash cannot be refused; but a pool says that tasks are in the worker's own process only if they are."""
    assert rig.run("process") == os.getpid()
    assert rig.begun == []
