"""Where events wait until they are published."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

from greenq.wire.events import Event, event

MOST_WAITING = 10_000  # while the broker is away, or slower than the tasks


class Dispatcher:
    """Takes events in from any thread; one fiber takes them out and publishes them.

    Appending to a deque and taking from it is one step under the interpreter lock. Beyond the bound the oldest
    goes, and is counted.
    """

    def __init__(self, hostname: str, *, tasks: bool) -> None:
        """`tasks`: are task events wanted? Any thread may read it, so that nothing is made in vain."""
        self.hostname = hostname
        self.tasks = tasks
        self.lost = 0
        self.sent = 0  # counted by the publishing fiber
        self._pid = os.getpid()
        self._waiting: deque[Event] = deque()

    def note(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Have an event published soon; never blocks."""
        while len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(event(kind, self.hostname, self._pid, fields))

    def take(self, most: int) -> list[Event]:
        """Up to so many of the oldest; the publishing fiber only."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]

    def put_back(self, events: list[Event]) -> None:
        """What could not be published waits again, if there is room; the publishing fiber only."""
        room = max(0, MOST_WAITING - len(self._waiting))
        kept = events[-room:] if room else []
        self.lost += len(events) - len(kept)
        self._waiting.extendleft(reversed(kept))

    def __len__(self) -> int:
        return len(self._waiting)
