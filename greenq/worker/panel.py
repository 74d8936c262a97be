"""What remote commands may see and do of this worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from greenq import hostinfo
from greenq.app.task import Task
from greenq.broker.connections import describe
from greenq.control.panel import Consuming, Hearing, MainHub, Scheduled
from greenq.control.state import ConsumerState, MemoryLog, Qos
from greenq.exceptions import Killed
from greenq.model import Request
from greenq.rates import parse_rate
from greenq.wire.body import decode_body
from greenq.worker.queues import WorkerQueues
from greenq.worker.revokes import WorkerRevokes
from greenq.worker.slots import WorkerSlots
from greenq.worker.vitals import WorkerVitals
from greenq.worker.watchers import WorkerWatchers

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

T = TypeVar("T")

# What clients of Celery look for, on pools without child processes.
_OF_PROCESSES = {"max-tasks-per-child": "N/A", "put-guarded-by-semaphore": False, "writes": "N/A"}


class WorkerPanel:
    """Reads the ledger's snapshots from the service thread; changes go to the main hub, revokes at once."""

    def __init__(self, worker: Worker) -> None:
        self.hostname = worker.hostname
        self.app = worker.app
        self.clock = worker.clock
        self.hearing = Hearing()
        self.watchers = WorkerWatchers(worker)
        self.elections = worker.elections
        self._worker = worker
        self._ledger = worker.ledger
        self._hub = MainHub(worker.runtime, self._blocker)
        self.slots = WorkerSlots(worker, self._hub)
        self.revokes = WorkerRevokes(worker)
        self.consuming: Consuming = WorkerQueues(worker, self._blocker)
        self.vitals = WorkerVitals(worker)
        self.memory = MemoryLog(hostinfo.memory)
        self.consumer = ConsumerState(Qos(self._hub, worker.sizing))
        self.tset = set

    def active(self) -> Sequence[Request]:
        """See Panel."""
        return list(self._ledger.running)

    def reserved(self) -> Sequence[Request]:
        """See Panel."""
        return self._ledger.reserved()

    def scheduled(self) -> Sequence[Scheduled]:
        """See Panel."""
        return [Scheduled(request.eta or 0.0, request) for request in list(self._ledger.held)]

    def find(self, task_ids: Sequence[str]) -> Mapping[str, tuple[str, Request]]:
        """See Panel."""
        ended = self._worker.outbox.ended(set(task_ids))
        return {**{task_id: ("ready", request) for task_id, request in ended.items()}, **self._ledger.find(task_ids)}

    def arguments(self, request: Request) -> tuple[list[Any], dict[str, Any]]:
        """See Panel."""
        args, kwargs, _ = decode_body(request, self._worker.accept)
        return args, kwargs

    def acknowledged(self, request: Request) -> bool:
        """See Panel."""
        return request.acked

    def worker_pid(self, request: Request) -> int | None:
        """See Panel."""
        return self._worker.pool.pid(request)

    def totals(self) -> Mapping[str, int]:
        """See Panel."""
        return dict(self._ledger.totals)

    def uptime(self) -> float:
        """See Panel."""
        return time.time() - self._worker.started

    def pool(self) -> dict[str, Any]:
        """See Panel."""
        conf = self.app.conf
        limits = [conf.task_soft_time_limit or 0, conf.task_time_limit or 0]
        return {**_OF_PROCESSES, **self._worker.pool.stats(), "timeouts": limits}

    def hub(self) -> dict[str, Any]:
        """See Panel."""
        return self._worker.stall.stats()

    def broker(self) -> dict[str, Any]:
        """See Panel."""
        return describe(self.app.broker.url, self.app.conf)

    def prefetch_count(self) -> int:
        """See Panel."""
        return self._worker.consumer.prefetch

    def post(self, verb: Callable[..., T], *args: object) -> T:
        """See Panel."""
        return self._hub.post(verb, *args)

    def terminate(self, task_ids: Sequence[str], signal: int) -> list[str]:
        """See Panel. In one process every signal means the same: the task ends."""
        running = [self._ledger.running_with(task_id) for task_id in task_ids]
        found = [request for request in running if request is not None]
        for request in found:
            self._worker.pool.kill(request, Killed(signal))
        return [request.id for request in found]

    def rate_limit(self, task_name: str, limit: str | float | None) -> None:
        """See Panel."""
        self.post(self._limit, task_name, limit)

    def time_limit(self, task_name: str, soft: float | None, hard: float | None) -> None:
        """See Panel."""
        self.post(_set_limits, self.app.tasks[task_name], soft, hard)

    def shutdown(self, reason: str) -> None:
        """See Panel."""
        self._worker.stopping.warm(reason)

    def _limit(self, task_name: str, limit: str | float | None) -> None:
        # Also at the task, where `inspect registered` reads it.
        self.app.tasks[task_name].rate_limit = limit or 0
        self._worker.rate.set_rate(task_name, parse_rate(limit))
        self._worker.lineup.release(task_name)

    def _blocker(self) -> str:
        request = self._worker.stall.task_in_the_way()
        return f"{request.name}[{request.id}]" if request is not None else ""


def _set_limits(task: Task[..., Any], soft: float | None, hard: float | None) -> None:
    task.soft_time_limit, task.time_limit = soft, hard
