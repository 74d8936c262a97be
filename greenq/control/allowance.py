"""How much of its processor a node spends on being asked: a flood of commands may not slow its tasks."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05  # of a processor, while tasks run and commands pile up: some hundred of them a second
POLITE_SHARE = 0.15  # of a processor, while tasks run and each is answered before the next one comes
BURST = 0.03  # seconds of computing at once, after a quiet while: some sixty commands
FLOOD = 0.1  # seconds of reading after which commands pile up
MOST_A_TURN = 0.05  # seconds of computing that one turn of the listener counts for
QUIET = 1.0  # seconds without a task; between two short ones there is often none for a moment


class Allowance:
    """Seconds of computing that may be spent on commands now. The listener's fiber only.

    They come back with the time that passes, and at once where no task has run of late that could be slowed.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        """`busy` says whether any task runs."""
        self._busy = busy
        self._left = BURST
        self._at = self._busy_at = time.monotonic()

    def spent(self, behind: float) -> bool:
        """Is there nothing left now? Then wait a little, and ask again.

        `behind` is how long (seconds) there has been more to read.
        """
        now = time.monotonic()
        if self._busy():
            self._busy_at = now
        idle = now - self._busy_at > QUIET
        share = SHARE if behind > FLOOD else POLITE_SHARE
        self._left = BURST if idle else min(BURST, self._left + (now - self._at) * share)
        self._at = now
        return self._left <= 0

    def spend(self, seconds: float) -> None:
        """Note what a turn took: while it waited for a message, other fibers of the thread may have computed too."""
        self._left -= min(seconds, MOST_A_TURN)
