"""Soft and hard time limits: clocks that the service thread watches, whatever the tasks do."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from greenq._speedups import Timer, TimerHeap
from greenq.app.task import Task
from greenq.config import Settings
from greenq.exceptions import HardTimeLimit, SoftTimeLimitExceeded
from greenq.log import printable
from greenq.model import Request

logger = logging.getLogger(__name__)

INSIST_EVERY = 5.0  # seconds after which a task that has swallowed its hard limit is struck again
LOOK_SOONEST = 0.005  # seconds between two looks
HASTE = 0.0001  # seconds for which the interpreter lock is left to a task while one is chased
LOOK_LATEST = 0.1  # by so much a shorter limit may be late that began while nobody looked

Ending = HardTimeLimit | SoftTimeLimitExceeded
Kill = Callable[[Request, Ending], None]


class Limits:
    """The clocks of what runs in this process, or in its children.

    `begin` and `end` belong to the thread that runs tasks, or hears of them from a child; the service thread
    takes what is due. Each step on the heap or the dict is one under the interpreter lock.
    """

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self._heap = TimerHeap()
        self._clocks: dict[Request, list[Timer]] = {}

    def begin(self, task: Task[..., Any], request: Request) -> None:
        """Start the clocks of one run: of the message, else of the task as it is now, else of the settings."""
        conf = self._conf
        soft = request.soft_limit or task.soft_time_limit or conf.task_soft_time_limit
        hard = request.hard_limit or task.time_limit or conf.task_time_limit
        if soft or hard:
            now, add = time.monotonic(), self._heap.add
            clocks = []
            if soft:
                clocks.append(add(now + soft, (request, soft, SoftTimeLimitExceeded, False)))
            if hard:
                clocks.append(add(now + hard, (request, hard, HardTimeLimit, False)))
            self._clocks[request] = clocks

    def end(self, request: Request) -> None:
        """Stop the clocks of a run; legal where none runs (any more)."""
        for clock in self._clocks.pop(request, ()):
            clock.cancel()

    def serve(
        self, kill: Kill, nudge: Callable[[], bool], sleep: Callable[[float], None], stopped: Callable[[], bool]
    ) -> None:
        """Service thread: have what is overdue ended, and chase what is on its way to a task, until `stopped`."""
        patience, hasty = sys.getswitchinterval(), False
        while not stopped():
            for clock in self._heap.pop_due(time.monotonic()):
                payload = clock.payload
                if payload is not None:  # else its run has ended since
                    request, seconds, ending, insisting = payload
                    self._expire(kill, request, seconds, ending, insisting=insisting)
            chasing, due = nudge(), self._heap.next_due()
            if chasing != hasty:
                # Else this thread would get its turn only where the task waits in C, and strike there each time.
                hasty = chasing
                sys.setswitchinterval(HASTE if hasty else patience)
            pause = LOOK_LATEST if due is None else due - time.monotonic()
            # Uneven, or a task that repeats itself as often would be struck at the same bad place each time.
            soonest = LOOK_SOONEST * random.uniform(0.4, 1.6)  # noqa: S311  (no secret)
            sleep(soonest if chasing else min(LOOK_LATEST, max(LOOK_SOONEST, pause)))
        sys.setswitchinterval(patience)

    def _expire(
        self, kill: Kill, request: Request, seconds: float, ending: type[Ending], *, insisting: bool
    ) -> None:
        kill(request, ending(seconds))
        hard = ending is HardTimeLimit
        if hard:
            self._insist(request, seconds)
        if not insisting:
            logger.log(
                logging.ERROR if hard else logging.WARNING,
                "%s time limit (%gs) exceeded for %s[%s]",
                "Hard" if hard else "Soft",
                seconds,
                printable(request.display_name),
                printable(request.id),
                extra={"event": "task.hard_limit" if hard else "task.soft_limit"},
            )

    def _insist(self, request: Request, seconds: float) -> None:
        """A bare `except:` swallows an ending, and the interpreter one that strikes in a finalizer."""
        clocks = self._clocks.get(request)
        if clocks is None:
            return
        clock = self._heap.add(time.monotonic() + INSIST_EVERY, (request, seconds, HardTimeLimit, True))
        clocks.append(clock)
        if request not in self._clocks:  # it ended just now, and did not see this one
            clock.cancel()
