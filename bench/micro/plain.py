"""Heap, bucket and set in plain Python, as one would write them without the compiled ones.

They give the same answers (tests/unit/bench holds them to that), so that their times may be compared. The decoder's
oracle is that of the unit tests, tests/unit/speedups/oracle.py.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any


@dataclass(order=True, slots=True)
class PlainTimer:
    """One deadline."""

    when: float
    number: int  # equal deadlines keep their order
    payload: Any = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Take it back."""
        self.cancelled = True
        self.payload = None


class PlainHeap:
    """TimerHeap on heapq. What is cancelled stays until it is due: a real one would have to tidy up as well."""

    def __init__(self) -> None:
        self._entries: list[PlainTimer] = []
        self._number = 0

    def add(self, when: float, payload: Any) -> PlainTimer:
        """Add a deadline."""
        self._number += 1
        timer = PlainTimer(when, self._number, payload)
        heapq.heappush(self._entries, timer)
        return timer

    def next_due(self) -> float | None:
        """The earliest live deadline, or None."""
        while self._entries and self._entries[0].cancelled:
            heapq.heappop(self._entries)
        return self._entries[0].when if self._entries else None

    def pop_due(self, now: float) -> list[PlainTimer]:
        """Remove and return what is due, earliest first."""
        due = []
        while self._entries and self._entries[0].when <= now:
            timer = heapq.heappop(self._entries)
            if not timer.cancelled:
                due.append(timer)
        return due


class PlainBucket:
    """TokenBucket."""

    def __init__(self, rate: float, capacity: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._tokens = capacity
        self._stamp: float | None = None

    def can_consume(self, now: float, tokens: float = 1.0) -> bool:
        """Take the tokens if they are there."""
        if self._stamp is None:
            self._stamp = now
        elif now > self._stamp:
            self._tokens = min(self._capacity, self._tokens + (now - self._stamp) * self._rate)
            self._stamp = now
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True


class PlainSet:
    """RevokedSet on an OrderedDict; some 200 bytes an id."""

    def __init__(self, maxlen: int, ttl: float) -> None:
        self._maxlen = maxlen
        self._ttl = ttl
        self._stamps: OrderedDict[str, float] = OrderedDict()

    def add(self, task_id: str, now: float) -> None:
        """Add an id; the oldest one leaves where it is full."""
        self._stamps.pop(task_id, None)
        if len(self._stamps) == self._maxlen:
            self._stamps.popitem(last=False)
        self._stamps[task_id] = now

    def contains(self, task_id: str, now: float) -> bool:
        """Is it there, and not too old?"""
        stamp = self._stamps.get(task_id)
        return stamp is not None and now - stamp < self._ttl
