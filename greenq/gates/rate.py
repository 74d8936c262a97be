"""Are there too many of its kind?"""

from __future__ import annotations

import time

from greenq._speedups import TokenBucket
from greenq.model import Request, Verdict, VerdictKind


class RateGate:
    """A token bucket a task name; per node, as in Celery. Owned by the main hub."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        self._waiting: dict[str, int] = {}

    def set_rate(self, name: str, rate: float | None) -> None:
        """Limit a task to `rate` starts a second; None or 0 lifts the limit. What waits obeys the new rate."""
        if rate:
            self._buckets[name] = TokenBucket(rate)
        else:
            self._buckets.pop(name, None)

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

    def gave_up(self, name: str) -> None:
        """One that waited does so no more."""
        self._waiting[name] = max(0, self._waiting.get(name, 0) - 1)
