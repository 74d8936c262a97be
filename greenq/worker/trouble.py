"""One line in the log for an episode of trouble, however often its cause repeats."""

from __future__ import annotations

import logging
import random
import time

AGAIN_AFTER = 10.0  # seconds between two lines of one episode
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0


class Trouble:
    """Counts the failures of one connection, says how long to wait, and writes the log lines.

    Owned by the fiber that owns the connection.
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._count = 0
        self._since = 0.0
        self._said = 0.0

    def happened(self, error: Exception) -> float:
        """Note a failure; returns the seconds to wait before the next try (jittered, 0.1 to 5)."""
        now = time.monotonic()
        if not self._count:
            self._since = now
        self._count += 1
        if self._count == 1 or now - self._said > AGAIN_AFTER:
            self._said = now
            self._logger.warning(
                "%s: %s (try %d, for %.0f s)",
                self._what,
                error,
                self._count,
                now - self._since,
                extra={"event": "broker.lost"},
            )
        longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._count - 1, 8))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, no secret)

    def over(self) -> None:
        """The last try went well."""
        if self._count:
            self._logger.warning(
                "%s: well again after %.1f s and %d tries",
                self._what,
                time.monotonic() - self._since,
                self._count,
                extra={"event": "broker.back"},
            )
            self._count = 0
