"""The guard of the main hub: notices that nothing else runs, and names the task in the way."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from traceback import FrameSummary
from types import FrameType

from greenq._speedups import HoldWatch
from greenq.exceptions import ConfigError
from greenq.execution.executor import Executor
from greenq.log import printable
from greenq.model import Request
from greenq.runtime.base import Fiber, Runtime

logger = logging.getLogger(__name__)

FRAMES = 12  # of the stack, the innermost
SHORTEST = 0.3  # it is looked five times a second
TURNING = 0.25  # seconds; a hub that answers within them is taken as turning

Culprit = tuple[Request | None, list[FrameSummary]]


class StallWatch:
    """Says once per stall which task does not yield, and counts stalls.

    Two ways to see one. The service thread posts a call to the main hub and looks when it was made. Where C code
    keeps the interpreter lock, the service thread does not run either: a `HoldWatch` has the main thread look
    as soon as that code returns, and the service thread says it.
    """

    def __init__(self, runtime: Runtime, too_long: float) -> None:
        """`too_long` in seconds; 0 watches nothing. Made in the main thread.

        Raises:
            ConfigError: a stall of that length cannot be told from the pace at which it is looked.
        """
        if 0.0 < too_long < SHORTEST:
            raise ConfigError(f"worker_hub_stall_seconds is {too_long:g}: write 0 for off, or at least {SHORTEST:g}")
        self._runtime = runtime
        self._main = runtime.thread()
        self._too_long = too_long
        # Of the service thread:
        self._said = False  # of the stall that goes on
        self._stalls = 0
        self._longest = 0.0
        # The service thread asks, the main hub answers:
        self._asked = 0.0  # monotonic; 0.0 when no call is on its way
        self._answered = 0.0
        # Written by the main thread where C code has returned, taken by the service thread:
        self._held: tuple[float, Culprit] | None = None
        self._holds = HoldWatch(too_long, self._note_hold) if too_long else None
        self._thread: Fiber | None = None

    def start(self) -> None:
        """Watch the interpreter lock too."""
        if self._holds is not None:
            self._thread = self._runtime.isolated(self._holds.serve, name="hub-guard")

    def stop(self) -> None:
        """Let go; returns when its thread has ended."""
        if self._holds is not None:
            self._holds.stop()
        if self._thread is not None:
            self._thread.join(1.0)

    def stats(self) -> dict[str, int | float]:
        """How many stalls there were, how long the longest was, and how long one goes on now (seconds)."""
        now = self.stalled_for()
        return {"stalls": self._stalls, "longest": round(max(self._longest, now), 3), "stalled_for": round(now, 3)}

    def stalled_for(self) -> float:
        """Seconds for which the main hub has not turned, 0.0 if it turns."""
        asked = self._asked
        lag = time.monotonic() - asked if asked and not self._answered else 0.0
        return lag if lag > TURNING else 0.0

    def task_in_the_way(self) -> Request | None:
        """The task whose code the main thread is in."""
        return _culprit(sys._current_frames().get(self._main))[0]  # noqa: SLF001  (no other way)

    def look(self) -> None:
        """Service thread, several times a second."""
        if self._holds is None:
            return
        self._holds.feed()
        held, self._held = self._held, None
        now = time.monotonic()
        answered = self._answered
        lag = (answered or now) - self._asked if self._asked else 0.0
        if held is not None:
            self._note(max(lag, held[0]), held[1])
        elif lag > self._too_long:
            self._note(lag, None)
        if answered or not self._asked:
            if self._said:
                logger.warning("The main hub turns again.", extra={"event": "hub.turns"})
            self._said = False
            self._answered = 0.0
            self._asked = now
            self._runtime.call_soon(self._answer)

    def _answer(self) -> None:
        self._answered = time.monotonic()

    def _note(self, seconds: float, culprit: Culprit | None) -> None:
        self._longest = max(self._longest, seconds)
        if self._said:
            return
        self._said = True
        self._stalls += 1
        request, frames = culprit or _culprit(sys._current_frames().get(self._main))  # noqa: SLF001
        logger.warning(
            "Nothing else ran for %.1f s: %s does not yield.\n%s",
            seconds,
            f"task {printable(request.name)}[{printable(request.id)}]" if request is not None else "the main hub",
            "".join(traceback.format_list(frames)),
            extra={"event": "hub.stalled"},
        )

    def _note_hold(self, seconds: float) -> None:
        """Main thread, wherever C code returned to: no lock, no I/O, nothing that switches."""
        self._held = (seconds, _culprit(sys._getframe(1)))  # noqa: SLF001


def _culprit(frame: FrameType | None) -> Culprit:
    """The request in whose task the frame is, and the stack from the task's code on, innermost last."""
    stack: list[FrameSummary] = []
    while frame is not None:
        if frame.f_code is _RUN:
            return frame.f_locals["request"], _without_executor(stack)[-FRAMES:]
        # The source is read when it is shown: this may run in the main thread.
        code = frame.f_code
        stack.insert(0, FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False))
        frame = frame.f_back
    return None, stack[-FRAMES:]


def _without_executor(stack: list[FrameSummary]) -> list[FrameSummary]:
    """Its frames come first; they are left where there is no other, the task having returned meanwhile."""
    return [each for each in stack if each.filename != _RUN.co_filename] or stack


_RUN = Executor.run.__code__
