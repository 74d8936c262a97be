"""What may be raised in a task by a signal's handler: the worst ending, once, and never in the midst of a lock."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenq.exceptions import ColdStop, HardTimeLimit, Interrupt, Killed, SoftTimeLimitExceeded
from greenq.execution.limits import HASTE
from greenq.model import Request
from greenq.pools.base import Ending
from greenq.pools.interrupts import NUDGE, Interrupts
from tests.support.panel import make_request


@pytest.fixture
def running() -> Request:
    request = make_request("1")
    request.state = "running"
    return request


@pytest.fixture
def interrupts(running: Request) -> Iterator[Interrupts]:
    handler, hook = signal.getsignal(NUDGE), sys.unraisablehook
    made = Interrupts(lambda: running)
    made.install(threading.get_ident())
    yield made
    signal.signal(NUDGE, handler)
    sys.unraisablehook = hook


@pytest.fixture
def chase(interrupts: Interrupts) -> Iterator[None]:
    """A service thread that nudges every millisecond. Started before anything may be raised in the test itself."""
    over = threading.Event()

    def nudge() -> None:
        while not over.wait(0.001):
            interrupts.nudge()

    thread = threading.Thread(target=nudge)
    patience = sys.getswitchinterval()
    sys.setswitchinterval(HASTE)
    thread.start()
    yield
    over.set()
    thread.join()
    sys.setswitchinterval(patience)


def until_struck(
    interrupts: Interrupts, request: Request, ending: Ending, work: Callable[[], object], seconds: float = 20.0
) -> BaseException:
    until = time.monotonic() + seconds
    try:
        interrupts.add(request, ending)
        while time.monotonic() < until:
            work()
    except (Interrupt, SoftTimeLimitExceeded) as struck:
        return struck
    raise AssertionError(f"not struck within {seconds:g} s")


def test_a_soft_limit_never_takes_the_place_of_a_worse_ending(interrupts: Interrupts, running: Request) -> None:
    interrupts.add(running, Killed("first"))
    interrupts.add(running, SoftTimeLimitExceeded(1))
    assert isinstance(interrupts.take(running), Killed)
    interrupts.add(running, SoftTimeLimitExceeded(1))
    interrupts.add(running, HardTimeLimit(2))
    interrupts.add(running, ColdStop("last"))
    assert isinstance(interrupts.take(running), ColdStop)
    assert interrupts.take(running) is None


def test_two_runs_of_one_message_are_told_apart(interrupts: Interrupts, running: Request) -> None:
    twin = make_request("1")
    interrupts.add(twin, Killed("twin"))
    assert interrupts.take(running) is None
    assert isinstance(interrupts.take(twin), Killed)


@pytest.mark.usefixtures("chase")
def test_nothing_is_raised_outside_of_user_code(interrupts: Interrupts, running: Request) -> None:
    running.state = "finishing"
    late = Killed("late")
    interrupts.add(running, late)
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        sum(range(10))
    assert interrupts.nudge() is True

    def run_on() -> None:
        running.state = "running"

    assert until_struck(interrupts, running, late, run_on) is late
    assert interrupts.nudge() is False


@pytest.mark.usefixtures("chase")
@pytest.mark.parametrize("ending", [HardTimeLimit(1), SoftTimeLimitExceeded(1)], ids=["hard", "soft"])
def test_the_log_is_never_left_locked(
    interrupts: Interrupts, running: Request, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is struck while it logs, and a soft limit is not swallowed by the handler."""
    logger = logging.getLogger("test_interrupts")
    monkeypatch.setattr(logger, "propagate", False)
    handler = logging.StreamHandler(io.StringIO())
    lock: Any = threading._RLock()  # in pure Python, as the patched ones are
    handler.lock = lock
    monkeypatch.setattr(logger, "handlers", [handler])
    for _ in range(25):
        struck = until_struck(interrupts, running, ending, lambda: logger.warning("%s", "again"))
        assert struck is ending
        assert lock._block.acquire(blocking=False), "the lock of the log is held by nobody, for ever"
        lock._block.release()


@pytest.mark.usefixtures("chase")
def test_a_loop_is_struck_where_the_try_around_it_sees_it(interrupts: Interrupts, running: Request) -> None:
    def loop() -> bool:
        until = time.monotonic() + 20
        try:
            interrupts.add(running, HardTimeLimit(1))
            while time.monotonic() < until:
                pass
        except HardTimeLimit:
            return True
        return False

    for _ in range(50):
        assert loop()


@pytest.mark.usefixtures("chase")
def test_a_loop_without_a_better_place_is_struck_at_its_end(interrupts: Interrupts, running: Request) -> None:
    def loop() -> None:
        number = 0
        while number >= 0:
            number += 1

    began = time.monotonic()
    ending = SoftTimeLimitExceeded(1)
    assert until_struck(interrupts, running, ending, loop) is ending
    assert time.monotonic() - began < 2.0


@pytest.mark.usefixtures("chase")
def test_an_ending_that_struck_in_a_finalizer_is_raised_once_more(interrupts: Interrupts, running: Request) -> None:
    def compute() -> None:
        until = time.monotonic() + 0.002
        while time.monotonic() < until:
            pass

    class Dropped:
        def __del__(self) -> None:
            compute()

    def work() -> None:
        Dropped()
        compute()

    for _ in range(20):
        ending = HardTimeLimit(1)
        assert until_struck(interrupts, running, ending, work) is ending


def test_what_else_cannot_be_raised_is_reported_as_before(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(interrupts, "_report", told.append)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    Broken()
    assert len(told) == 1
