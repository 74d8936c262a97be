"""The pool contract: one task is ended from outside, and no other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from greenq.exceptions import ColdStop, HardTimeLimit, Killed, PoolCannot, SoftTimeLimitExceeded
from greenq.model import Request, State
from greenq.pools.base import Ending
from tests.contract.pool_bodies import KILL, TERM
from tests.contract.pool_rig import SLOW, Book, Rig

book = Book()
SOFT = SoftTimeLimitExceeded.__name__
HARD = HardTimeLimit.__name__
KILLED = Killed.__name__
PROMPT = 3.0  # seconds within which an ending reaches its task, on a busy machine


def from_a_thread(rig: Rig, what: Callable[[], object]) -> None:
    """Run it in a native thread, where the worker's service runs, and wait for its end."""
    thread = rig.runtime.isolated(what, name="killer")
    thread.join(PROMPT)
    assert not thread.alive()


@book.tells(needs="kill")
def a_waiting_task_can_be_killed(rig: Rig) -> None:
    for number in (TERM, KILL):
        for body, args in (("sleep", (60,)), ("receive", (60,)), ("gate", ("never",))):
            victim = rig.put(body, *args)
            rig.wait_started(victim.id)
            rig.kill(victim, Killed(number))
            rig.wait_done(victim.id, seconds=PROMPT)
            assert rig.state(victim.id) == KILLED
    rig.check_whole()


@book.tells(needs="kill")
def a_computing_task_can_be_killed_from_a_thread(rig: Rig) -> None:
    for number in (TERM, KILL):
        victim = rig.request("compute", 60, task_id=f"busy{number}")
        _run_ended(rig, victim, Killed(number))
        assert rig.state(victim.id) == KILLED
    rig.check_whole()


@book.tells(needs="kill")
def a_task_that_swallows_exceptions_can_be_killed(rig: Rig) -> None:
    for body in ("stubborn", "stubborn_compute"):
        victim = rig.request(body)
        _run_ended(rig, victim, Killed(TERM))
        assert rig.state(victim.id) == KILLED
    assert rig.notes("swallowed") == []
    rig.check_whole()


def _run_ended(rig: Rig, victim: Request, ending: Ending) -> None:
    """Run it, and have it ended from a native thread once it has started."""
    _run_beside(rig, victim, lambda: _kill_started(rig, victim, ending))


def _run_beside(rig: Rig, request: Request, what: Callable[[], object]) -> None:
    """Run it to its end while that goes on in a native thread, where the worker's service runs."""
    thread = rig.runtime.isolated(what, name="killer")
    rig.submit(request)
    rig.wait_done(request.id)
    thread.join(PROMPT)


def _kill_started(rig: Rig, victim: Request, ending: Ending) -> None:
    while victim.id not in rig.started():
        time.sleep(0.01)
    time.sleep(0.1)
    rig.kill(victim, ending)


@book.tells(needs="kill")
def a_kill_never_hits_a_bystander(rig: Rig) -> None:
    """Hundreds of kills at the moment the tasks end; whoever is hit must be the one that was named."""
    _end_at_the_last_moment(rig, lambda n: Killed(n if n % 2 else TERM), KILLED)


@book.tells(needs="soft_limit")
def a_soft_limit_never_hits_a_bystander(rig: Rig) -> None:
    _end_at_the_last_moment(rig, SoftTimeLimitExceeded, SOFT)


def _end_at_the_last_moment(rig: Rig, ending: Callable[[int], Ending], state: str, rounds: int = 300) -> None:
    beside = [rig.put("stand_by", "over") for _ in range(2 if rig.size > 3 else 0)]
    chance = random.Random(7)
    named = set()
    for n in range(rounds):
        victim = rig.put("compute_and_yield", 0.002, task_id=str(1000 + n))
        if n % 3:
            rig.runtime.sleep(0.004 * chance.random())
        rig.kill(victim, ending(1000 + n))
        named.add(victim.id)
    rig.wait_done(*named)
    rig.open("over")
    rig.wait_done(*(request.id for request in beside))
    _check_only_named(rig, named, state)


def _check_only_named(rig: Rig, named: set[str], state: str) -> None:
    """Those that were hit were named; who was told to have succeeded has run to its end."""
    ended = {task_id for task_id, _ in rig.notes("ended")}
    for task_id, told in rig.done:
        assert told in (State.SUCCESS, *([state] if task_id in named else [])), (task_id, told)
        assert told != State.SUCCESS or task_id in ended, f"{task_id} was cut short, and told to have succeeded"
    assert rig.notes("wrong") == []
    rig.check_whole()


@book.tells(needs="kill", size=2)
def a_kill_never_hits_the_successor_in_the_slot(rig: Rig) -> None:
    """The slots are never idle: whoever is missed by a moment has a successor that is not to be hit."""
    _end_among_successors(rig, lambda n: Killed(n if n % 2 else TERM), KILLED)


@book.tells(needs="soft_limit", size=2)
def a_soft_limit_never_hits_the_successor_in_the_slot(rig: Rig) -> None:
    _end_among_successors(rig, SoftTimeLimitExceeded, SOFT)


@book.tells(needs="hard_limit", size=2)
def a_hard_limit_never_hits_the_successor_in_the_slot(rig: Rig) -> None:
    _end_among_successors(rig, HardTimeLimit, HARD)


def _end_among_successors(rig: Rig, ending: Callable[[int], Ending], state: str, rounds: int = 200) -> None:
    chance = random.Random(11)
    victims = [rig.request("compute_and_yield", 0.002, task_id=str(1000 + n)) for n in range(rounds)]
    others = [rig.request("compute_and_yield", 0.001, task_id=str(2000 + n)) for n in range(rounds)]
    # Where tasks run in this process, this is told before the next one starts; in children, long after.
    rig.feed(*(request for pair in zip(victims, others, strict=True) for request in pair))
    for n, victim in enumerate(victims):
        rig.wait(lambda: victim.started, "the start of a victim")  # noqa: B023
        rig.runtime.sleep(0.003 * chance.random())
        rig.kill(victim, ending(1000 + n))
    rig.wait_count(2 * rounds, 2 * SLOW)
    _check_only_named(rig, {victim.id for victim in victims}, state)
    assert {rig.state(other.id) for other in others} == {State.SUCCESS}


@book.tells(needs="kill")
def a_kill_of_what_does_not_run_does_nothing(rig: Rig) -> None:
    """It has ended, or was never given: neither it nor one of the same id that comes later is hit."""
    gone = rig.put("nothing", task_id="twin")
    rig.wait_done("twin")
    rig.kill(gone, Killed(TERM))
    stranger = rig.request("compute", 0.5, task_id="stranger")
    rig.kill(stranger, Killed(TERM))
    rig.runtime.sleep(0.2)
    rig.done.clear()
    rig.put("compute", 0.3, task_id="twin")
    rig.give(stranger)
    rig.wait_done("twin", "stranger")
    assert rig.states() == {State.SUCCESS: 2}
    rig.check_whole()


@book.tells(needs="kill")
def a_kill_of_what_was_just_given_ends_it_or_lets_it_run(rig: Rig) -> None:
    """The request is accepted, and may not have begun; it ends once, and the slot is free again."""
    requests = []
    for n in range(60):
        request = rig.put("sleep", 0.05)
        rig.kill(request, (Killed(TERM), HardTimeLimit(1.0), ColdStop("test"))[n % 3])
        requests.append(request)
    rig.wait_done(*(request.id for request in requests))
    assert set(rig.states()) <= {State.SUCCESS, KILLED, HARD, State.CANCELLED}, rig.states()
    rig.check_whole()


@book.tells(needs="kill", size=4)
def a_kill_cuts_no_large_outcome_in_two(rig: Rig) -> None:
    """It comes while megabytes are on their way back: they arrive whole, or the task was killed."""
    length = 3_000_000
    chance = random.Random(3)
    for n in range(40):
        victim = rig.put("repeat", "x", length, task_id=f"large-{n}")
        rig.runtime.sleep(0.02 * chance.random())
        rig.kill(victim, Killed(TERM if n % 2 else KILL))
    rig.wait_count(40)
    assert set(rig.states()) <= {State.SUCCESS, KILLED}
    for task_id, state in rig.done:
        assert state == KILLED or rig.value(task_id) == "x" * length
    rig.check_whole()


@book.tells(needs="kill")
def a_task_that_ignores_the_signal_is_killed_all_the_same(rig: Rig) -> None:
    victim = rig.wait_begun(rig.put("deaf"))
    rig.runtime.sleep(0.05)
    rig.kill(victim, Killed(TERM))
    rig.wait_done(victim.id, seconds=PROMPT)
    assert rig.state(victim.id) == KILLED
    rig.check_whole()


@book.tells(needs="kill")
def half_of_the_tasks_are_killed_at_once(rig: Rig) -> None:
    requests = rig.fill_slots("gate")
    half = requests[::2]

    def killer() -> None:
        for _ in range(3):  # a command may be sent again
            for request in half:
                rig.kill(request, Killed(TERM))

    from_a_thread(rig, killer)
    rig.wait_done(*(request.id for request in half))
    rig.open("gate")
    rig.wait_done(*(request.id for request in requests))
    assert [rig.state(request.id) for request in half] == [KILLED] * len(half)
    others = [request for request in requests if request not in half]
    assert [rig.state(request.id) for request in others] == [State.SUCCESS] * len(others)
    rig.check_whole()


@book.tells(needs="kill")
def a_cold_stop_ends_whatever_runs(rig: Rig) -> None:
    kinds: list[tuple[str, tuple[object, ...]]] = [("sleep", (60,)), ("stubborn", ()), ("gate", ("never",))]
    requests = [rig.put(body, *args) for body, args in (kinds[n % 3] for n in range(rig.size))]
    rig.wait_started(*(request.id for request in requests))
    from_a_thread(rig, lambda: [rig.kill(request, ColdStop("the worker ends now")) for request in requests])
    assert rig.pool.drain(SLOW) is True
    assert rig.states() == {State.CANCELLED: rig.size}


@book.tells(needs="soft_limit")
def a_soft_limit_can_be_caught(rig: Rig) -> None:
    for body in ("sleep", "compute", "receive"):
        request = rig.request("tidy_up", body, 60)
        _run_ended(rig, request, SoftTimeLimitExceeded(0.25))
        assert (rig.state(request.id), rig.value(request.id)) == (State.SUCCESS, "tidied after 0.25")
    rig.check_whole()


@book.tells(needs="soft_limit")
def a_soft_limit_that_nobody_catches_ends_the_task(rig: Rig) -> None:
    pids = set()
    for body in ("sleep", "compute"):
        request = rig.request(body, 60)
        _run_ended(rig, request, SoftTimeLimitExceeded(0.25))
        assert rig.state(request.id) == SOFT
        assert rig.outcomes[request.id].result_text == "SoftTimeLimitExceeded(0.25)"
        pids.add(rig.started()[request.id])
    # An exception ends no process: the slot's is the same one.
    again = rig.fill_slots("again")
    assert pids <= {rig.started()[request.id] for request in again}
    rig.open("again")
    rig.check_whole()


@book.tells(needs="hard_limit")
def a_hard_limit_ends_a_stubborn_task(rig: Rig) -> None:
    """It swallows its soft limit and goes on; the hard one ends it."""
    for body in ("stubborn", "stubborn_compute"):
        request = rig.request(body)

        def limits(request: Request = request) -> None:
            _kill_started(rig, request, SoftTimeLimitExceeded(0.1))
            while [request.id] not in rig.notes("swallowed"):
                time.sleep(0.01)
            rig.kill(request, HardTimeLimit(0.2))

        _run_beside(rig, request, limits)
        assert rig.state(request.id) == HARD
        assert rig.outcomes[request.id].result_text == "HardTimeLimit(0.2)"
    rig.check_whole()


@book.tells(needs="survives_crash", size=3)
def a_process_of_its_own_ends_with_a_task_that_swallows_everything(rig: Rig) -> None:
    for ending, state in ((HardTimeLimit(0.1), HARD), (Killed(TERM), KILLED), (ColdStop("test"), State.CANCELLED)):
        victim = rig.wait_begun(rig.put("stubborn_utterly"))
        rig.kill(victim, ending)
        rig.wait_done(victim.id, seconds=PROMPT)
        assert rig.state(victim.id) == state
    rig.check_whole()


def refuses_kill(rig: Rig) -> None:
    _refuses_ending(rig, Killed(TERM))


def refuses_soft_limit(rig: Rig) -> None:
    _refuses_ending(rig, SoftTimeLimitExceeded(0.1))


def refuses_hard_limit(rig: Rig) -> None:
    _refuses_ending(rig, HardTimeLimit(0.1))


def _refuses_ending(rig: Rig, ending: Ending) -> None:
    request = rig.put("gate", "open")
    rig.wait_started(request.id)
    try:
        rig.kill(request, ending)
    except PoolCannot as refusal:
        assert rig.pool.name in str(refusal), refusal
    else:
        raise AssertionError(f"a pool that cannot end a task by {ending!r} said nothing")
    rig.open("open")
    rig.wait_done(request.id)
    assert rig.state(request.id) == State.SUCCESS
