"""One heap of deadlines for everything the main hub does later: ETA, rate limits, retries of a connection."""

from __future__ import annotations

import time
from collections.abc import Callable

from greenq._speedups import Timer, TimerHeap
from greenq.runtime.base import Runtime

LONGEST_WAIT = 3600.0  # seconds


class Timers:
    """Calls made at a moment of the monotonic clock, on the main hub, by one fiber.

    `at` may be called from any fiber or thread: a heap operation is one step under the interpreter lock, and
    the fiber is woken through the runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._heap = TimerHeap()
        self._wake = runtime.event()
        self._sleeping_until = 0.0
        self._stopped = False

    def start(self) -> None:
        """Start the fiber."""
        self._runtime.spawn(self._serve, name="timers")

    def stop(self) -> None:
        """End the fiber; what is still in the heap is dropped."""
        self._stopped = True
        self._runtime.call_soon(self._wake.set)

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        """Make `call` at monotonic time `when`; it may not wait. The timer can be cancelled."""
        timer = self._heap.add(when, call)
        if when < self._sleeping_until:
            self._runtime.call_soon(self._wake.set)
        return timer

    def pending(self) -> int:
        """How many calls are still to come."""
        return len(self._heap)

    def _serve(self) -> None:
        while not self._stopped:
            now = time.monotonic()
            for timer in self._heap.pop_due(now):
                timer.payload()
            due = self._heap.next_due()
            # Another thread may add between the look and the wait; it sees this moment and rings the bell.
            self._wake.clear()
            self._sleeping_until = float("inf") if due is None else due
            due = self._heap.next_due()
            # Bounded: no library can wait for an ETA in three hundred years.
            self._wake.wait(LONGEST_WAIT if due is None else min(LONGEST_WAIT, max(0.0, due - time.monotonic())))
            self._sleeping_until = 0.0
