"""Reaching the one task that is to end, even when it computes and never yields.

A native thread may not raise into another thread's greenlet: `PyThreadState_SetAsyncExc` hits whoever runs
next. It may send the main thread a signal, and the handler, which runs in the greenlet it interrupted,
looks whether that is the task that was meant.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from greenq.model import Request
from greenq.pools.base import Ending

NUDGE = signal.SIGURG  # ignored by default everywhere, so a stray one does no harm


class Interrupts:
    """Endings that have not reached their task yet.

    Any thread adds; the main thread removes, from the hub or from the signal handler. Each step is one
    dict operation, atomic under the interpreter lock.
    """

    def __init__(self, running: Callable[[], Request | None]) -> None:
        """`running` names the request whose user code the main thread is in right now, if any."""
        self._running = running
        self._pending: dict[str, tuple[Request, Ending]] = {}
        self._main = 0

    def install(self, thread: int) -> None:
        """Install the handler; main thread only, whose native identity `thread` is."""
        self._main = thread
        signal.signal(NUDGE, self._on_nudge)

    def add(self, request: Request, ending: Ending) -> None:
        """Have `ending` raised in that request's task. A later ending replaces an earlier one."""
        self._pending[request.id] = (request, ending)

    def take(self, request: Request) -> Ending | None:
        """The ending meant for exactly this run of the request, removed; None if there is none."""
        found = self._pending.get(request.id)
        if found is None or found[0] is not request:
            return None
        self._pending.pop(request.id, None)
        return found[1]

    def forget(self, request: Request) -> None:
        """The request ended by itself."""
        if self._pending:
            self.take(request)

    def nudge(self) -> bool:
        """Signal the main thread if an ending is still on its way; False if there is none.

        Called from a native thread, again and again, since a signal that arrives while another task runs
        is dropped by the handler.
        """
        if not self._pending:
            return False
        signal.pthread_kill(self._main, NUDGE)
        return True

    def _on_nudge(self, number: int, frame: FrameType | None) -> None:
        request = self._running()
        if request is None or not self._pending or request.state != "running":
            return
        ending = self.take(request)
        if ending is not None:
            raise ending
