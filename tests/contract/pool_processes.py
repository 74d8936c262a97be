"""The pool contract: tasks that take their process down, and processes that are replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from greenq.exceptions import ColdStop, ConfigError, HardTimeLimit, Killed, PoolCannot, WorkerLostError
from greenq.model import Outcome, Settle, State
from greenq.pools.base import Recipe
from tests.contract.pool_bodies import KILL, TERM
from tests.contract.pool_rig import SLOW, Book, Rig

book = Book()
LOST = WorkerLostError.__name__
KILLED = Killed.__name__
ENDED = {KILLED, HardTimeLimit.__name__, State.CANCELLED}
WAYS = {"exit0": "status 0", "exit3": "status 3", "SIGKILL": "SIGKILL", "segv": "SIGSEGV", "close": "SIGKILL"}
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
def a_loss_over_whose_outcome_children_die_is_ended_all_the_same(rig: Rig) -> None:
    beside = rig.wait_begun(rig.put("gate", "over"))
    rig.feed(*(rig.request("die_again", task_id=f"dies-{n}") for n in range(5)))
    rig.feed(*(rig.request("nothing", task_id=f"lives-{n}") for n in range(20)))
    rig.wait_count(25)
    for n in range(5):
        outcome = rig.outcomes[f"dies-{n}"]
        assert (outcome.state, outcome.how) == (State.FAILURE, Settle.DEAD)
    assert rig.states() == {State.FAILURE: 5, State.SUCCESS: 20}
    rig.open("over")
    rig.wait_done(beside.id)
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


@book.tells(needs="survives_crash", size=3)
def a_child_that_dies_while_it_is_handed_megabytes_loses_no_other(rig: Rig) -> None:
    chance = random.Random(5)
    for n in range(30):
        request = rig.put("echo", "x" * 3_000_000, task_id=f"large-{n}")
        rig.runtime.sleep(0.03 * chance.random())
        pid = rig.pool.pid(request)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        rig.put("nothing", task_id=f"small-{n}")
    rig.wait_count(60)
    assert all(state == State.SUCCESS or (i.startswith("large") and state == LOST) for i, state in rig.done)
    assert {i for i, state in rig.done if state == LOST} == set(rig.lost)
    rig.check_whole()


@book.tells(needs="survives_crash", size=3)
def the_loss_of_the_process_that_forks_is_survived(rig: Rig) -> None:
    for round_ in range(2):
        running = rig.fill_slots(f"never-{round_}")
        forking = _parent_of(rig.started()[running[0].id])
        os.kill(forking, signal.SIGKILL)
        rig.wait_done(*(request.id for request in running))
        assert {rig.state(request.id) for request in running} == {LOST}
        rig.check_whole()


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


NO_APP = Recipe("tests.contract.pool_bodies:fail_to_make", {"folder": "nowhere"})


@book.tells(needs="survives_crash", start=False, options={"recipe": NO_APP})
def an_app_that_cannot_be_loaded_is_an_error_of_the_start(rig: Rig) -> None:
    try:
        rig.pool.start(rig.side.run, lambda request, outcome: None)
    except ConfigError as refusal:
        assert "no app in nowhere" in str(refusal), refusal
    else:
        raise AssertionError("a pool started whose children cannot run anything")
    rig.pool.stop()
    rig.pool.serve()


@book.tells(needs="survives_crash", size=2, options={"ahead": 4})
def what_a_crashed_child_had_not_started_runs_elsewhere(rig: Rig) -> None:
    for n in range(20):
        rig.feed(rig.request("die", "SIGKILL", task_id=f"dies-{n}"))
        rig.feed(*(rig.request("nothing", task_id=f"lives-{n}-{m}") for m in range(6)))
    rig.wait_count(140, 60.0)
    assert {i for i, state in rig.done if state == LOST} == {f"dies-{n}" for n in range(20)}
    assert rig.states() == {LOST: 20, State.SUCCESS: 120}
    assert max(Counter(task_id for task_id, _ in rig.notes("started")).values()) == 1


@book.tells(needs="survives_crash", size=2, options={"ahead": 4})
def a_kill_finds_its_request_wherever_it_stands_in_line(rig: Rig) -> None:
    """Running, handed to a busy child, or waiting for one: only those that are named are killed."""
    chance = random.Random(13)
    named = set()
    for n in range(300):
        request = rig.put("sleep", 0.004, task_id=f"{n}")
        if n % 5 == 0:
            rig.put("die", "SIGKILL", task_id=f"dies-{n}")
        if n % 2:
            rig.kill(request, Killed(TERM if n % 4 == 1 else KILL))
            named.add(request.id)
        rig.runtime.sleep(0.006 * chance.random())
    rig.wait_count(360, 2 * SLOW)
    for task_id, state in rig.done:
        usual = LOST if task_id.startswith("dies") else State.SUCCESS
        assert state == usual or (state == KILLED and task_id in named), (task_id, state)
    assert rig.states()[KILLED] > 50
    assert all(task_id in named for task_id, state in rig.done if state == KILLED)


@book.tells(size=4)
def everything_at_once(rig: Rig) -> None:
    """Kills, crashes, restarts and resizes among tasks: one outcome each, and only the named are hit."""
    chance = random.Random(17)
    can = rig.pool.can
    bodies: list[tuple[str, tuple[object, ...]]] = [
        ("nothing", ()),
        ("sleep", (0.01,)),
        ("compute", (0.003,)),
        ("echo", ("x" * 300_000,)),
        *([("die", ("SIGKILL",))] if can.survives_crash else []),
    ]
    chosen = [bodies[n % len(bodies)] for n in range(500)]
    given = [rig.request(body, *args, task_id=f"{body}-{n}") for n, (body, args) in enumerate(chosen)]
    rig.steady = False
    rig.feed(*given)
    named = set()
    turn = 0
    while len(rig.done) < len(given) and turn < 3000:
        turn += 1
        if can.kill:
            ended = len(rig.done)
            victim = given[min(len(given) - 1, ended + chance.randrange(rig.pool.size + 1))]
            named.add(victim.id)
            rig.kill(victim, (Killed(TERM), Killed(KILL), HardTimeLimit(0.1), ColdStop("test"))[turn % 4])
        if can.resize and turn % 10 == 0:
            rig.pool.resize(chance.choice((1, 2, 4, 8)))
        if can.restart and turn % 100 == 0:
            rig.pool.restart()
        rig.feed()
        rig.runtime.sleep(0.01 * chance.random())
    rig.wait_count(len(given))
    for task_id, state in rig.done:
        usual = LOST if task_id.startswith("die") else State.SUCCESS
        assert state == usual or (state in ENDED and task_id in named), (task_id, state)
    if can.resize:
        rig.pool.resize(4)
    rig.wait(lambda: rig.pool.free() == rig.size, "an idle pool")
    rig.steady = True
    rig.check_whole()


@book.tells(needs="recycle", size=2, options={"max_tasks": 1})
def a_child_of_one_task_runs_one(rig: Rig) -> None:
    _recycles_beside_one_that_stays(rig, 1)


@book.tells(needs="recycle", size=3, options={"max_tasks": 2})
def a_child_of_two_tasks_runs_two(rig: Rig) -> None:
    _recycles_beside_one_that_stays(rig, 2)


@book.tells(needs="recycle", size=3, options={"max_tasks": 3, "ahead": 2})
def a_child_of_three_tasks_runs_three_whatever_it_was_handed(rig: Rig) -> None:
    """No neighbour that goes on and on here: what a busy child was handed ahead would wait behind it."""
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
    twice = [task_id for task_id, times in Counter(rig.begun).items() if times > 1]
    assert not twice, f"told to have begun twice: {twice}"
    rig.check_whole()


@book.tells(needs="restart", size=4)
def a_request_given_as_the_children_change_begins_once(rig: Rig) -> None:
    """Those that wait for work are dismissed first; what they are given at that moment is not begun twice."""
    renewed: list[int] = []
    rig.run("nothing")
    rig.wait_children(4)
    for turn in range(4):
        rig.pool.restart(lambda: renewed.append(turn))  # noqa: B023
        until = time.monotonic() + SLOW
        while turn not in renewed:
            assert time.monotonic() < until, "the new code never came"
            rig.put("nothing")
            rig.runtime.sleep(0.001)
        for _ in range(10):
            rig.put("nothing")
    rig.wait_count(rig.given)
    assert renewed == list(range(4))
    assert rig.states() == {State.SUCCESS: rig.given}
    assert max(Counter(rig.begun).values()) == 1, "told to have begun twice"
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
    for name, options in (
        ("max-tasks-per-child", replace(rig.options, max_tasks=5)),
        ("max-memory-per-child", replace(rig.options, max_memory=5)),
    ):
        try:
            rig.make_pool(options)
        except ConfigError as refusal:
            assert name in str(refusal) and rig.pool.name in str(refusal) and "prefork" in str(refusal), refusal
            continue
        raise AssertionError(f"a pool that cannot recycle took {name}")


def refuses_survives_crash(rig: Rig) -> None:
    """A crash cannot be refused; but a pool says that tasks are in the worker's own process only if they are."""
    assert rig.run("process") == os.getpid()
    assert rig.begun == []
