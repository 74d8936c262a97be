"""Which queues a worker consumes from: those it starts with, and those that commands add and cancel."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from greenq.app.base import GreenQ
from greenq.control.panel import Accepted
from greenq.exceptions import BadArgument, ConfigError
from greenq.worker.options import WorkerOptions

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

logger = logging.getLogger(__name__)

PATIENCE = 0.5  # seconds until "accepted"; half of what clients wait by default
MOST = 1_000  # queues of one worker: a claim looks at all of them in one step of Redis


def queues_to_start_with(app: GreenQ, options: WorkerOptions) -> list[str]:
    """Those of -Q, else all of `task_queues`, else the default queue; without those of -X.

    Raises:
        ConfigError: none is left, or one that the settings do not name while they forbid to make it up.
    """
    known = list(app.producer.router.queues)
    chosen = list(dict.fromkeys(options.queues or known))
    excluded = set(options.exclude_queues)
    if not app.conf.task_create_missing_queues:
        for option, names in (("-Q", chosen), ("-X", options.exclude_queues)):
            _check_known(option, names, known)
    for name in sorted(excluded - {*chosen, *known}):
        logger.warning("-X %s excludes nothing: there is no such queue.", name)
    queues = [name for name in chosen if name not in excluded]
    if not queues:
        raise ConfigError("no queue is left to consume from: look at -Q and -X")
    return queues


def _check_known(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ConfigError(
                f"{option} {name}: no such queue is in task_queues, and task_create_missing_queues is off; {hint}"
            )


class WorkerQueues:
    """See control.panel.Consuming. Called from the service thread.

    The consumer's methods may be called from any thread, so what is asked happens at once where the store is
    asked for messages, and at the next turn of the main hub where the broker pushes them.
    """

    def __init__(self, worker: Worker, blocker: Callable[[], str]) -> None:
        """`blocker` names the task that computes on the main hub now."""
        self._worker = worker
        self._blocker = blocker

    def queues(self) -> list[dict[str, Any]]:
        """See Consuming."""
        return self._worker.consumer.queues() if self._worker.intake.connected else []

    def add(self, name: str, options: dict[str, Any]) -> None:
        """See Consuming."""
        consumed = self._names()
        if len(consumed) >= MOST and name not in consumed:
            raise BadArgument(f"queue {name!r:.300}: {MOST} queues are consumed already; cancel one first")
        try:
            self._worker.consumer.add_queue(name, **options)
        except ConfigError as exc:
            raise BadArgument(str(exc)) from exc
        self._wait_until(lambda: name in self._names())
        if name not in consumed:
            logger.info("Consuming from queue %s.", name)

    def cancel(self, name: str) -> None:
        """See Consuming."""
        consumed = name in self._names()
        self._worker.consumer.cancel_queue(name)
        self._wait_until(lambda: name not in self._names())
        if consumed:
            logger.info("Consuming from queue %s no longer.", name)

    def _names(self) -> set[str]:
        return {info["name"] for info in self._worker.consumer.queues()}

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for the fiber that fetches; one that is connecting anew will see the change as it begins."""
        worker = self._worker
        deadline = time.monotonic() + PATIENCE
        pause = 0.0005
        while worker.intake.connected and not done():
            if time.monotonic() >= deadline:
                raise Accepted(self._blocker())
            worker.runtime.sleep(pause)
            pause = min(pause * 2, 0.02)
