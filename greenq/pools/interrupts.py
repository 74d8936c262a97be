"""Reaching the one task that is to end, even when it computes and never yields.

A native thread may not raise into another thread's greenlet: `PyThreadState_SetAsyncExc` hits whoever runs
next. It may send the main thread a signal, and the handler, which runs in the greenlet it interrupted,
looks whether that is the task that was meant.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from opcode import opmap
from types import FrameType
from typing import TYPE_CHECKING

from greenq.exceptions import Interrupt, SoftTimeLimitExceeded
from greenq.model import Request
from greenq.pools.base import Ending

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

NUDGE = signal.SIGURG  # ignored by default everywhere, so a stray one does no harm
# Between taking a lock and the `try` that gives it back nothing may be raised: a lock of the log or of the hub would
# never be free again, and every other task would wait for it. These functions of these packages have such places;
# those that may take long have not.
TAKING = frozenset({"acquire", "release", "__enter__", "__exit__", "handle", "_acquire_restore", "_release_save"})
LONG = frozenset({"emit", "wait"})
LOCKS = frozenset({"threading", "logging", "contextlib", "gevent", "eventlet", "importlib", "greenq"})
# Whatever of these is interrupted is about to wait, or has done so, and would leave its timer behind.
PATIENCE = 0.25  # seconds for which a better place than a loop's end is waited for
WHOLE = ("importlib.", "eventlet.", "greenq.runtime.")


class Interrupts:
    """Endings that have not reached their task yet.

    Any thread adds; the main thread removes, from the hub or from the signal handler. Each step is one
    dict operation, atomic under the interpreter lock.
    """

    def __init__(self, running: Callable[[], Request | None]) -> None:
        """`running` names the request whose user code the main thread is in right now, if any."""
        self._running = running
        # By the request itself and not by its id: a message that came twice may run twice at a time.
        self._pending: dict[Request, tuple[Ending, float]] = {}  # the ending, and since when (monotonic)
        self._main = 0
        self._report: Callable[[UnraisableHookArgs], object]

    def install(self, thread: int) -> None:
        """Install the handler; main thread only, whose native identity `thread` is."""
        self._main = thread
        signal.signal(NUDGE, self._on_nudge)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable

    def add(self, request: Request, ending: Ending) -> None:
        """Have `ending` raised in that request's task. It replaces an earlier one, but a soft limit never does."""
        pending = (ending, time.monotonic())
        if isinstance(ending, Interrupt):
            self._pending[request] = pending
        else:
            self._pending.setdefault(request, pending)

    def take(self, request: Request) -> Ending | None:
        """The ending meant for exactly this run of the request, removed; None if there is none."""
        found = self._pending.pop(request, None)
        return found[0] if found is not None else None

    def forget(self, request: Request) -> None:
        """The request ended by itself."""
        if self._pending:
            self._pending.pop(request, None)

    def nudge(self) -> bool:
        """Signal the main thread if an ending is still on its way; False if there is none.

        Called from a native thread, again and again, since a signal that arrives while another task runs, or in
        the midst of a lock, is dropped by the handler.
        """
        if not self._pending:
            return False
        signal.pthread_kill(self._main, NUDGE)
        return True

    def _on_nudge(self, number: int, frame: FrameType | None) -> None:
        request = self._running()
        if request is None or not self._pending or request.state != "running":
            return
        found = self._pending.get(request)
        if found is None or frame is None:
            return
        ending, since = found
        if untouched(frame, ending) or (at_a_loops_end(frame) and time.monotonic() - since < PATIENCE):
            return
        del self._pending[request]
        raise ending

    def _on_unraisable(self, lost: UnraisableHookArgs) -> None:
        """An ending that struck in a finalizer got no further: have it raised once more."""
        request, ending = self._running(), lost.exc_value
        if request is not None and isinstance(ending, (Interrupt, SoftTimeLimitExceeded)):
            self.add(request, ending.with_traceback(None))
        else:
            self._report(lost)


def untouched(where: FrameType, ending: Ending) -> bool:
    """May the ending not be raised by a signal's handler while the main thread is in this frame?"""
    packages = LOCKS
    for frame in _outwards(where):
        module: str = frame.f_globals.get("__name__", "")
        package = module.partition(".")[0]
        if package == "logging" and not isinstance(ending, Interrupt):
            return True  # its handlers swallow every Exception
        name = frame.f_code.co_name
        if package in packages and module.startswith(WHOLE):
            return True
        if package not in packages or name in LONG:
            packages = frozenset()  # what is further out can take it
        elif name in TAKING:
            return True
    return False


def at_a_loops_end(frame: FrameType) -> bool:
    """Is this the jump back to a loop's beginning?

    Since Python 3.12 the one of `while condition:` stands outside of a `try` around the loop: what is raised there
    passes by its `except` and its `finally`.
    """
    return sys.version_info >= (3, 12) and frame.f_code.co_code[frame.f_lasti] == opmap["JUMP_BACKWARD"]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
