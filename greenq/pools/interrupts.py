"""Reaching the one task that is to end, even when it computes and never yields.

A native thread may not raise into another thread's greenlet: `PyThreadState_SetAsyncExc` hits whoever runs
next. It may send the main thread a signal, and the handler, which runs in the greenlet it interrupted,
looks whether that is the task that was meant.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from greenq.exceptions import Interrupt, SoftTimeLimitExceeded
from greenq.model import Request
from greenq.pools.base import Ending

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

NUDGE = signal.SIGURG  # ignored by default everywhere, so a stray one does no harm
# Code of these takes locks that everybody in the process shares: cut short between taking and giving back, a lock
# of the log or of the hub would never be free again, and all other tasks would wait for it.
UNTOUCHED = frozenset(
    ("threading", "logging", "queue", "contextlib", "weakref", "_weakrefset", "importlib", "gevent", "eventlet", "greenq")
)


class Interrupts:
    """Endings that have not reached their task yet.

    Any thread adds; the main thread removes, from the hub or from the signal handler. Each step is one
    dict operation, atomic under the interpreter lock.
    """

    def __init__(self, running: Callable[[], Request | None]) -> None:
        """`running` names the request whose user code the main thread is in right now, if any."""
        self._running = running
        # By the request itself and not by its id: a message that came twice may run twice at a time.
        self._pending: dict[Request, Ending] = {}
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
        if isinstance(ending, Interrupt):
            self._pending[request] = ending
        else:
            self._pending.setdefault(request, ending)

    def take(self, request: Request) -> Ending | None:
        """The ending meant for exactly this run of the request, removed; None if there is none."""
        return self._pending.pop(request, None)

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
        if request is None or not self._pending or request.state != "running" or untouched(frame):
            return
        ending = self.take(request)
        if ending is not None:
            raise ending

    def _on_unraisable(self, lost: UnraisableHookArgs) -> None:
        """An ending that struck in a finalizer got no further: have it raised once more."""
        request, ending = self._running(), lost.exc_value
        if request is not None and isinstance(ending, (Interrupt, SoftTimeLimitExceeded)):
            self.add(request, ending.with_traceback(None))
        else:
            self._report(lost)


def untouched(frame: FrameType | None) -> bool:
    """Is the frame one in which nothing may be raised by a signal's handler?"""
    name: str = frame.f_globals.get("__name__", "") if frame is not None else ""
    return name.partition(".")[0] in UNTOUCHED
