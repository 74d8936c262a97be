"""What may be raised in a task by a signal's handler: the worst ending, once, and never in the midst of a lock."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def chased(interrupts: Interrupts) -> Iterator[None]:
    """A service thread that nudges every millisecond."""
    over = threading.Event()

    def chase() -> None:
        while not over.wait(0.001):
            interrupts.nudge()

    thread = threading.Thread(target=chase)
    patience = sys.getswitchinterval()
    sys.setswitchinterval(HASTE)
    thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(patience)
        over.set()
        thread.join()


def until_struck(interrupts: Interrupts, work: Callable[[], object], seconds: float = 20.0) -> BaseException:
    until = time.monotonic() + seconds
    with chased(interrupts):
        try:
            while time.monotonic() < until:
                work()
        except (Interrupt, SoftTimeLimitExceeded) as ending:
            return ending
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


def test_nothing_is_raised_outside_of_user_code(interrupts: Interrupts, running: Request) -> None:
    running.state = "finishing"
    interrupts.add(running, Killed("late"))
    assert interrupts.nudge() is True
    running.state = "running"
    assert isinstance(until_struck(interrupts, lambda: sum(range(10))), Killed)
    assert interrupts.nudge() is False


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
        interrupts.add(running, ending)
        assert until_struck(interrupts, lambda: logger.warning("%s", "again")) is ending
        assert lock._block.acquire(blocking=False), "the lock of the log is held by nobody, for ever"
        lock._block.release()


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
        interrupts.add(running, ending := HardTimeLimit(1))
        assert until_struck(interrupts, work) is ending


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
