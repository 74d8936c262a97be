"""Soft and hard time limits: clocks that the service thread watches, whatever the tasks do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from greenq._speedups import Timer, TimerHeap
from greenq.app.task import Task
from greenq.config import Settings
from greenq.exceptions import HardTimeLimit, Interrupt, SoftTimeLimitExceeded
from greenq.log import printable
from greenq.model import Request

logger = logging.getLogger(__name__)

LOOK_SOONEST = 0.005  # seconds between two looks at the heap, the next deadline permitting
LOOK_LATEST = 0.1  # by so much a shorter limit may be late that began while nobody looked

Kill = Callable[[Request, Interrupt | SoftTimeLimitExceeded], None]


class Limits:
    """The clocks of what runs in this process, or in its children.

    `begin` and `end` belong to the thread that runs tasks, or hears of them from a child; the service thread
    takes what is due. Each step on the heap or the dict is one under the interpreter lock.
    """

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._heap = TimerHeap()
        self._clocks: dict[Request, tuple[Timer, ...]] = {}

    def begin(self, task: Task[..., Any], request: Request) -> None:
        """Start the clocks of one run: of the message, else of the task as it is now, else of the settings."""
        conf = self._conf
        soft = request.soft_limit or task.soft_time_limit or conf.task_soft_time_limit
        hard = request.hard_limit or task.time_limit or conf.task_time_limit
        if soft or hard:
            now, add = time.monotonic(), self._heap.add
            clocks = []
            if soft:
                clocks.append(add(now + soft, (request, soft, SoftTimeLimitExceeded)))
            if hard:
                clocks.append(add(now + hard, (request, hard, HardTimeLimit)))
            self._clocks[request] = tuple(clocks)

    def end(self, request: Request) -> None:
        """Stop the clocks of a run; legal where none runs (any more)."""
        for clock in self._clocks.pop(request, ()):
            clock.cancel()

    def serve(self, kill: Kill, sleep: Callable[[float], None], stopped: Callable[[], bool]) -> None:
        """Service thread: have what is overdue ended, until `stopped`."""
        while not stopped():
            now = time.monotonic()
            for clock in self._heap.pop_due(now):
                payload = clock.payload
                if payload is not None:  # cancelled since it was taken
                    self._expire(kill, *payload)
            due = self._heap.next_due()
            ahead = LOOK_LATEST if due is None else due - time.monotonic()
            sleep(min(LOOK_LATEST, max(LOOK_SOONEST, ahead)))

    def _expire(
        self,
        kill: Kill,
        request: Request,
        seconds: float,
        ending: type[SoftTimeLimitExceeded | HardTimeLimit],
    ) -> None:
        kill(request, ending(seconds))
        hard = ending is HardTimeLimit
        logger.log(
            logging.ERROR if hard else logging.WARNING,
            "%s time limit (%gs) exceeded for %s[%s]",
            "Hard" if hard else "Soft",
            seconds,
            printable(request.display_name),
            printable(request.id),
            extra={"event": "task.hard_limit" if hard else "task.soft_limit"},
        )
