"""Noticing that the main hub does not turn, and naming the task in the way."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable

from greenq.model import Request
from greenq.runtime.base import Runtime

logger = logging.getLogger(__name__)

TOO_LONG = 1.0  # seconds
FRAMES = 6  # of the stack, the innermost


class StallWatch:
    """The service thread posts a call to the main hub and looks when it was made."""

    def __init__(self, runtime: Runtime, in_the_way: Callable[[], Request | None]) -> None:
        """`in_the_way` names the request whose task has the main thread, if any. Made in the main thread."""
        self._main = runtime.thread()
        self._runtime = runtime
        self._in_the_way = in_the_way
        self._turned = time.monotonic()
        self._said = False
        self._asked = False

    def stalled_for(self) -> float:
        """Seconds since the main hub last turned; below a quarter of a second it is taken as turning."""
        lag = time.monotonic() - self._turned
        return lag if lag > 0.25 else 0.0

    def look(self) -> None:
        """Service thread, several times a second."""
        lag = self.stalled_for()
        if lag > TOO_LONG and not self._said:
            self._said = True
            request = self._in_the_way()
            frame = sys._current_frames().get(self._main)  # noqa: SLF001  (no other way)
            logger.warning(
                "Nothing else ran for %.1f s: %s does not yield.\n%s",
                lag,
                f"task {request.name}[{request.id}]" if request is not None else "the main hub",
                "".join(traceback.format_stack(frame)[-FRAMES:]),
                extra={"event": "hub.stalled"},
            )
        if not self._asked:
            self._asked = True
            self._runtime.call_soon(self._turn)

    def _turn(self) -> None:
        if self._said:
            logger.warning("The main hub turns again after %.1f s.", time.monotonic() - self._turned)
        self._said = False
        self._asked = False
        self._turned = time.monotonic()
