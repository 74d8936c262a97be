"""What a command's first argument offers beyond reading and steering: the names that commands written for Celery use.

Celery calls that argument `state`; its attributes are in wire.md 3.7. Of its consumer there is `qos`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from greenq.control.panel import Accepted, MainHub

_SAMPLES = 1_000  # of memory, kept for `memdump`


class Prefetch(Protocol):
    """Where the prefetch count is kept; owned by the main hub, read from any thread."""

    @property
    def prefetch(self) -> int:
        """Deliveries that may be unsettled here; 0 is no limit."""

    def change_prefetch(self, by: int) -> int:
        """Raise or lower the count, to 1 at least, and return it. Main hub; no limit stays no limit."""


class Qos:
    """The prefetch count, under Celery's names."""

    def __init__(self, hub: MainHub, prefetch: Prefetch) -> None:
        self._hub = hub
        self._prefetch = prefetch

    @property
    def value(self) -> int:
        """How many deliveries may be unsettled here; 0 is no limit."""
        return self._prefetch.prefetch

    def increment_eventually(self, n: int = 1) -> int:
        """Let `n` more deliveries be unsettled; returns how many that makes.

        It is so at once, or as soon as a task that computes yields. No limit stays no limit.
        """
        return self._changed(n)

    def decrement_eventually(self, n: int = 1) -> int:
        """The other way; one delivery stays."""
        return self._changed(-n)

    def _changed(self, by: int) -> int:
        before = self.value
        try:
            return self._hub.run(self._prefetch.change_prefetch, by)
        except Accepted:
            return max(1, before + by) if before else 0


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """What commands may ask of the consumer."""

    qos: Qos


@dataclass(slots=True)
class MemoryLog:
    """What `memsample` has seen; `read` gives resident bytes. Owned by the service thread."""

    read: Callable[[], int]
    _samples: deque[str] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    def sample(self) -> str:
        """Look now, and remember it: "58.402MB"."""
        text = self._look()
        self._samples.append(text)
        return text

    def dump(self, most: int) -> str:
        """The samples since the last dump, `most` of them spread over all, and the memory now (wire.md 3.6)."""
        seen = list(self._samples)
        self._samples.clear()
        step = max(1, -(-len(seen) // most))
        lines = ["- rss (sample):", *(f"-    > {text}," for text in seen[::step])] if seen else []
        return "\n".join([*lines, f"- rss (end): {self._look()}.", ""])

    def _look(self) -> str:
        return f"{self.read() / 2**20:.3f}MB"
