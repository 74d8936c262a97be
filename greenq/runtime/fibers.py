"""What the runtimes share: how a fiber's error is told, and a native thread with a hub of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenq.exceptions import GreenqError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.005


class Guarding:
    """The part of a runtime that hears of fibers which end by an error."""

    def __init__(self) -> None:
        self.failed: Callable[[str], object] = _unheard

    def _guarded(self, name: str, fn: Callable[..., object], *args: object) -> None:
        try:
            fn(*args)
        except Exception as error:
            self.failed(name)
            # What greenq raises says all in its text; anything else is a defect, and where it was is wanted.
            defect = not isinstance(error, GreenqError)
            logger.error("%s ended by an error: %s", name, error, exc_info=defect)  # noqa: TRY400


class NativeFiber:
    """A native thread with its own hub; joined by looking, since events do not cross hubs reliably."""

    def __init__(self, sleep: Callable[[float], object]) -> None:
        """`sleep` lets the calling hub run."""
        self._sleep = sleep
        self._done = False

    def run(self, body: Callable[[], object]) -> None:
        """What the thread does."""
        try:
            body()
        finally:
            self._done = True

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end, letting the calling hub run."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._done and (until is None or time.monotonic() < until):
            self._sleep(LOOK_SECONDS)

    def alive(self) -> bool:
        """Has it not ended?"""
        return not self._done


def _unheard(name: str) -> None:
    """Nobody asked yet."""
