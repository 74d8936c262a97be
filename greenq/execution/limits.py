"""Soft and hard time limits: deadlines the service thread watches, whatever the tasks do."""

from __future__ import annotations

import time
from collections.abc import Callable

from greenq._speedups import Timer, TimerHeap
from greenq.exceptions import HardTimeLimit, Interrupt, SoftTimeLimitExceeded
from greenq.model import Request

LOOK_EVERY = 0.02  # seconds between looks while a limit is running
IDLE_EVERY = 0.2

Kill = Callable[[Request, Interrupt | SoftTimeLimitExceeded], None]


class Limits:
    """Deadlines of what runs.

    The executor adds and cancels in the main thread; the service thread takes what is due. Each heap
    operation is one step under the interpreter lock, and a deadline that is taken late by the length of a
    look is late by no more.
    """

    def __init__(self) -> None:
        self._heap = TimerHeap()

    def watch(self, request: Request, soft: float | None, hard: float | None) -> tuple[Timer, ...]:
        """Start the clocks of one run (seconds)."""
        now = time.monotonic()
        timers = []
        if soft:
            timers.append(self._heap.add(now + soft, (request, SoftTimeLimitExceeded(soft))))
        if hard:
            timers.append(self._heap.add(now + hard, (request, HardTimeLimit(hard))))
        return tuple(timers)

    def serve(self, kill: Kill, sleep: Callable[[float], None], stopped: Callable[[], bool]) -> None:
        """Service thread: have what is overdue ended, until `stopped`."""
        while not stopped():
            for timer in self._heap.pop_due(time.monotonic()):
                request, ending = timer.payload
                kill(request, ending)
            sleep(LOOK_EVERY if len(self._heap) else IDLE_EVERY)
