"""When messages come faster than they are claimed, let some come together before the next claim."""

from __future__ import annotations

import time

_SOON = 0.001  # seconds; a wait that ended within
_AT_FIRST = 3  # that many times in a row
_GATHER = 0.003  # seconds makes the next one gather
_WORTH = 4  # messages in a claim show that gathering was worth its delay
_AT_MOST = 1000


class Pace:
    """Tells a flood from a dialogue by trying.

    In a flood publisher and consumer would wake and lock out each other for every single message, which costs
    much of the throughput. In a dialogue the next message comes only after the answer to the last one, just as
    soon, and to gather is mere delay; so each time it brings nothing, four times as many short waits must come
    first.
    """

    __slots__ = ("_gathered", "_needed", "_short")

    def __init__(self) -> None:
        self._short = 0
        self._needed = _AT_FIRST
        self._gathered = False

    def woken(self, waited: float) -> None:
        """A wait ended with news after `waited` seconds; sleeps for 3 ms if there is likely to be more."""
        self._short = self._short + 1 if waited < _SOON else 0
        if self._short > self._needed:
            self._gathered = True
            time.sleep(_GATHER)

    def claimed(self, count: int) -> None:
        """The claim that followed brought `count` messages."""
        if self._gathered:
            self._gathered = False
            if count >= _WORTH:
                self._needed = _AT_FIRST
            else:
                self._needed = min(self._needed * 4, _AT_MOST)
                self._short = 0
