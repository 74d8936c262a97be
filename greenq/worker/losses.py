"""What becomes of a task whose child process died under it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenq.broker.base import Consumer
from greenq.exceptions import WorkerLostError
from greenq.log import printable
from greenq.model import Outcome, Request, Settle, State

logger = logging.getLogger(__name__)

MOST_LOSSES = 3  # crashes of one message here; then it is taken for the cause
PAUSES = (1.0, 5.0)  # seconds before it runs again, where the broker can hold it
MOST_REMEMBERED = 10_000


class Losses:
    """Counts the crashes of each message, newest first forgotten last. Owned by the pool's greenlet."""

    def __init__(self, comes_back: Callable[[Request], bool], consumer: Consumer) -> None:
        """`comes_back` says whether a lost request is to be run again."""
        self._comes_back = comes_back
        self._consumer = consumer
        self._crashes: dict[str, int] = {}
        self.total = 0

    def decide(self, request: Request, why: str) -> Outcome | BaseException:
        """The outcome that gives it back, or the error it failed with."""
        self.total += 1
        name, task_id = printable(request.display_name), printable(request.id)
        if request.acked or not self._comes_back(request):
            logger.error("Task %s[%s] is lost: %s.", name, task_id, why, extra={"event": "task.lost"})
            return WorkerLostError(f"The process that ran the task is gone: {why}.")
        count = self._crashes.pop(request.id, 0) + 1
        self._crashes[request.id] = count
        if len(self._crashes) > MOST_REMEMBERED:
            del self._crashes[next(iter(self._crashes))]
        if count >= MOST_LOSSES:
            logger.error(
                "Task %s[%s] is taken for the cause: %s, for the %d. time; its message is on %s.dead.",
                name,
                task_id,
                why,
                count,
                request.queue,
                extra={"event": "task.poison"},
            )
            return WorkerLostError(f"The process that ran the task died {count} times: {why}.")
        logger.error("Task %s[%s] goes back: %s.", name, task_id, why, extra={"event": "child.lost"})
        if not self._consumer.delays:
            return Outcome(request, State.CANCELLED, Settle.REQUEUE, reason="worker_lost")
        due = time.time() + PAUSES[min(count, len(PAUSES)) - 1]
        return Outcome(request, State.CANCELLED, Settle.DELAY, due=due, reason="worker_lost")

    def ended(self, request: Request, outcome: Outcome) -> None:
        """Send what keeps killing children to the dead queue, and forget what ended well."""
        if not self._crashes or outcome.state == State.CANCELLED:
            return
        if self._crashes.pop(request.id, 0) >= MOST_LOSSES and outcome.state == State.FAILURE:
            outcome.how, outcome.reason = Settle.DEAD, "worker_lost"
