"""What is written down about each request: the log lines of its life, and its outcome for the outbox."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection

from greenq.events.tasks import TaskEvents
from greenq.exceptions import WorkerLostError
from greenq.execution import failures
from greenq.execution.executor import Executor
from greenq.log import printable
from greenq.model import Outcome, Record, Rejected, Request, State
from greenq.wire.reprs import shortened
from greenq.wire.results import encode_exception
from greenq.worker.outbox import Outbox

logger = logging.getLogger(__name__)


class Accounts:
    """Two INFO lines a task: received, and its outcome. Called on the main hub, or beside user code for solo."""

    def __init__(self, executor: Executor, outbox: Outbox, names: Collection[str], events: TaskEvents) -> None:
        self._events = events
        self._executor = executor
        self._outbox = outbox
        self._names = names
        # Asked once: a level that changes while tasks run is a restart in this version.
        self.talks = logger.isEnabledFor(logging.INFO)

    def known(self, request: Request) -> bool:
        """Is the task registered? If not, the request ends here; its message goes to the dead queue."""
        if self._events.wanted:
            self._events.received(request)
        if request.name in self._names:
            if self.talks:
                logger.info("Task %s[%s] received", printable(request.display_name), printable(request.id))
            return True
        near = difflib.get_close_matches(request.name, self._names, 1)
        logger.error(
            "Task %s[%s] is unknown to this app%s; its message is on %s.dead.",
            printable(request.name),
            printable(request.id),
            f" (nearest: {near[0]})" if near else "",
            request.queue,
            extra={"event": "task.unknown"},
        )
        outcome = failures.not_registered(self._executor, request)
        self._outbox.put(outcome)
        if self._events.wanted:
            self._events.ended(request, outcome)
        return False

    def dropped(self, request: Request, why: str) -> Outcome:
        """The outcome of a request that may never run."""
        logger.info(
            "Discarding %s task: %s[%s]", why, printable(request.display_name), printable(request.id)
        )
        outcome = failures.revoked(self._executor, request, why)
        if self._events.wanted:
            self._events.ended(request, outcome)
        return outcome

    def rejected(self, item: Rejected) -> None:
        """Store a failure for whoever waits for a message that cannot be read."""
        error = item.error
        if error.task_id and self._executor.keeps_any:
            payload = encode_exception(error.task_id, State.FAILURE, error, serializer=self._executor.serializer)
            expires = self._executor.failure_expires
            self._outbox.put(Record(error.task_id, State.FAILURE, payload, error.reply_to, expires))

    def ended(self, request: Request, outcome: Outcome) -> None:
        """Hand the outcome over."""
        if outcome.state == State.CANCELLED and request.acked:
            self._lost(request, outcome)
        self._outbox.put(outcome)
        if self._events.wanted:
            self._events.ended(request, outcome)

    def say(self, request: Request, outcome: Outcome) -> None:
        """Log how the request ended; may wait for the log."""
        if self.talks or outcome.state not in _QUIET:
            self._say(request, outcome)

    def _lost(self, request: Request, outcome: Outcome) -> None:
        """An early-acked task was cut short: nobody will run it again, so say so where it can be seen."""
        logger.error(
            "Task %s[%s] is LOST: it was acknowledged before it ran, and the worker ends.",
            printable(request.display_name),
            printable(request.id),
            extra={"event": "task.lost"},
        )
        if self._executor.keeps_any and request.ignore_result is not True:
            error = WorkerLostError("The worker ended before the task did, and its message was already acknowledged.")
            payload = encode_exception(request.id, State.FAILURE, error, serializer=self._executor.serializer)
            outcome.record = self._executor.record(request, State.FAILURE, payload)

    def _say(self, request: Request, outcome: Outcome) -> None:
        name, task_id = printable(request.display_name), printable(request.id)
        state = outcome.state
        if state == State.SUCCESS:
            value = outcome.result_text or shortened(outcome.value)
            logger.info("Task %s[%s] succeeded in %.6fs: %s", name, task_id, outcome.runtime, value)
        elif state == State.RETRY:
            logger.info("Task %s[%s] retry: %s", name, task_id, outcome.result_text)
        elif state == State.FAILURE and not outcome.expected:
            text = f"\n{outcome.traceback}" if outcome.traceback else ""
            logger.error("Task %s[%s] raised unexpected: %s%s", name, task_id, outcome.result_text, text)
        elif state == State.FAILURE:
            logger.info("Task %s[%s] raised expected: %s", name, task_id, outcome.result_text)
        elif state == State.CANCELLED and outcome.reason:
            pass  # whoever gave it back has said why
        elif state == State.CANCELLED and not request.acked:
            logger.warning("Task %s[%s] was cut short; its message goes back.", name, task_id)
        else:
            logger.info("Task %s[%s] %s: %s", name, task_id, state.lower(), outcome.result_text)


_QUIET = frozenset({State.SUCCESS, State.RETRY, State.IGNORED, State.REVOKED, State.REJECTED})
