"""Are there too many of its kind?"""

from __future__ import annotations

import time

from greenq._speedups import TokenBucket
from greenq.model import Request, Verdict, VerdictKind

LEAST_WAITING = 100  # of one name
MOST_WAITING = 1_000
WAITING_SECONDS = 60.0
LOOK_AGAIN = 5.0  # seconds
RETURNS = 500.0  # a second


class RateGate:
    """A token bucket a task name; per node, as in Celery. Owned by the main hub."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        self._waiting: dict[str, int] = {}
        self._returns: dict[str, float] = {}  # the moment at which the last one sent away comes back

    def set_rate(self, name: str, rate: float | None) -> None:
        """Limit a task to `rate` starts a second; None or 0 lifts the limit. What waits obeys the new rate."""
        bucket = self._buckets.get(name)
        if not rate:
            self._buckets.pop(name, None)
        elif bucket is None:
            self._buckets[name] = TokenBucket(rate)
        elif bucket.rate != rate:
            # The bucket stays: a new one would be full, and each change a start for free.
            bucket.expected_time(time.monotonic())
            bucket.rate = rate

    def rate(self, name: str) -> float | None:
        """The rate in force for a task."""
        bucket = self._buckets.get(name)
        return bucket.rate if bucket is not None else None

    def __call__(self, request: Request, now: float) -> Verdict | None:
        """Take a token, or say how long to wait. Who waits already goes first."""
        buckets = self._buckets
        if not buckets:
            return None
        bucket = buckets.get(request.name)
        if bucket is None:
            return None
        if not self._waiting.get(request.name) and bucket.can_consume(time.monotonic()):
            return None
        self._waiting[request.name] = self._waiting.get(request.name, 0) + 1
        return Verdict(VerdictKind.LIMIT, "rate", self.due(request.name))

    def due(self, name: str) -> float:
        """The monotonic moment at which the next of this name may start."""
        bucket = self._buckets.get(name)
        now = time.monotonic()
        return now if bucket is None else now + bucket.expected_time(now)

    def may_leave(self, name: str) -> bool:
        """Take a token for the first that waits; True if it may start now."""
        bucket = self._buckets.get(name)
        if bucket is None or bucket.can_consume(time.monotonic()):
            self.gave_up(name)
            return True
        return False

    def most_waiting(self, name: str) -> int:
        """How many of this name are worth holding here: a minute of starts, within bounds."""
        return int(min(MOST_WAITING, max(LEAST_WAITING, (self.rate(name) or 0.0) * WAITING_SECONDS)))

    def look_again(self, name: str, waiting: int) -> float:
        """In how many seconds to look again at one that finds no place to wait here.

        They come back one by one, as fast as they may start, or faster where that is slow: so that a new rate
        is seen soon, while to look at them costs little.
        """
        now = time.monotonic()
        rate = self.rate(name) or RETURNS
        first = now + min(waiting / rate, LOOK_AGAIN)
        due = max(first, self._returns.get(name, 0.0) + 1.0 / max(rate, RETURNS))
        self._returns[name] = due
        return due - now

    def gave_up(self, name: str) -> None:
        """One that waited does so no more."""
        self._waiting[name] = max(0, self._waiting.get(name, 0) - 1)
