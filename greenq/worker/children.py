"""What a pool of child processes has to know of its worker, and what the worker decides about its children."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from greenq.app.loader import AppSource
from greenq.execution import failures
from greenq.model import Outcome, Record, Request
from greenq.pools.base import PoolOptions, Recipe
from greenq.worker import child

if TYPE_CHECKING:
    from greenq.worker.worker import Worker


class Children:
    """Made before the pool; called by it, on the main hub, once the worker is complete."""

    def __init__(self, worker: Worker) -> None:
        options = worker.options
        self._worker = worker
        self._arguments: dict[str, Any] = {
            "source": options.source,
            "hostname": worker.hostname,
            "loglevel": options.loglevel,
            "logfile": options.logfile,
            "keep_results": worker.app.results.name != "disabled",
        }

    @property
    def source(self) -> AppSource | None:
        """How children load the app."""
        source: AppSource | None = self._arguments["source"]
        return source

    def remember(self, source: AppSource | None) -> None:
        """Have children load the app so from the next restart of the pool on."""
        self._arguments["source"] = source

    def complete(self, wanted: PoolOptions) -> PoolOptions:
        """The pool's options, with what only this worker can give it."""
        return dataclasses.replace(
            wanted,
            recipe=Recipe(child.RECIPE, self._arguments),
            begun=self._begun,
            store=self._store,
            lost=self._lost,
            unwritten=self._unwritten,
            tells=self._tells,
        )

    def _begun(self, request: Request) -> None:
        """A child is on it: this process keeps its clocks."""
        self._worker.limits.begin(self._worker.app.tasks[request.name], request)

    def _tells(self) -> bool:
        worker = self._worker
        return worker.accounts.talks or worker.events.tasks

    def _store(self, record: Record) -> None:
        self._worker.outbox.put(record)

    def _lost(self, request: Request, why: str) -> Outcome | BaseException:
        return self._worker.losses.decide(request, why)

    def _unwritten(self, request: Request, error: BaseException) -> Outcome:
        """Made without any user code, which could take this process along."""
        return failures.defect(self._worker.executor, request, error)
