"""How many messages to ask for: the free slots, and a small look-ahead where tasks are short."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_AHEAD_SECONDS = 0.05  # of work at the measured rate: covers the round trips to the broker
MEASURED_OVER = 0.05  # seconds; tasks end in bursts, and a shorter look sees only the burst or the gap
KEPT = 0.7  # of the rate so far, after that time
LARGEST_WAIT = 25
MOST_AHEAD = 10_000  # messages, where nothing else is a bound


class Credit:
    """Look-ahead follows the rate at which tasks end, so that nobody hoards long tasks.

    Where tasks take a second, 500 slots end 500 a second and 25 messages wait here; where they take a
    millisecond, the batches from the broker stay full. Owned by the intake's fiber.
    """

    def __init__(self, finished: Callable[[], int], most: Callable[[], int]) -> None:
        """`finished` counts ended tasks; `most` bounds the look-ahead now (prefetch less slots)."""
        self._finished = finished
        self._most = most
        self._rate = 0.0
        self._at = time.monotonic()
        self._count = 0

    def look_ahead(self) -> int:
        """Messages to hold beyond the free slots, now."""
        now = time.monotonic()
        passed = now - self._at
        if passed >= MEASURED_OVER:
            finished = self._finished()
            newest = (finished - self._count) / passed
            self._rate = newest + KEPT ** (passed / MEASURED_OVER) * (self._rate - newest)
            self._at, self._count = now, finished
        return min(self._most(), int(self._rate * LOOK_AHEAD_SECONDS))

    @staticmethod
    def worth_asking(wanted: int, look_ahead: int) -> bool:
        """Is it time to ask? One message a round trip would cost a round trip a message."""
        return wanted >= max(1, min(LARGEST_WAIT, look_ahead // 2))
