"""The result of a revoked task that no worker has: whoever waits for it need not wait until one comes across it."""

from __future__ import annotations

import logging
import random
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from greenq.exceptions import MessageError, ResultError, TaskRevokedError
from greenq.model import Record, State
from greenq.wire.results import encode_exception, encode_state

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

logger = logging.getLogger(__name__)

MOST = 10_000  # ids that wait to be looked at; the oldest above it learn of their fate when a worker meets them
GRACE = (0.3, 0.6)  # seconds; who runs the task says so before others look, and of many workers few have to write
UNSTARTED = frozenset({State.PENDING, State.RECEIVED, State.RETRY, State.REJECTED})


class Unstarted:
    """Stores REVOKED for revoked ids without a result, as Celery's workers do (wire.md 3.3). Main hub only.

    Every worker hears of a revoke, and no worker knows what the others run. So one that runs the task stores
    STARTED, which is true, and the others look at the stored state a little later: one of them writes for ids that
    have not begun anywhere, and the rest finds them written.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._line: dict[str, None] = {}
        self._looking = False

    def note(self, task_ids: list[str]) -> None:
        """These were revoked: see to their results, soon. Never waits."""
        worker = self._worker
        if not worker.results.persistent or not worker.executor.keeps_any:
            return  # a result that only its sender's queue has can be sent by who has the message, and nobody else
        self._say_what_runs(set(task_ids))
        self._line.update(dict.fromkeys(task_ids))
        while len(self._line) > MOST:
            del self._line[next(iter(self._line))]
        if not self._looking:
            self._looking = True
            worker.runtime.spawn(self._look, name="unstarted")

    def _say_what_runs(self, task_ids: set[str]) -> None:
        worker = self._worker
        if not worker.runtime.green:
            return  # another thread may just be writing how it ended, and this would come after it
        for request in list(worker.ledger.running):
            if request.id in task_ids:
                payload = encode_state(request.id, State.STARTED, {"hostname": worker.hostname})
                worker.outbox.put(worker.executor.record(request, State.STARTED, payload))

    def _look(self) -> None:
        while self._line:
            task_ids = list(self._line)
            self._line.clear()
            self._worker.runtime.sleep(random.uniform(*GRACE))  # noqa: S311  (jitter, no secret)
            here = self._worker.ledger.find(task_ids)
            try:
                self._store([task_id for task_id in task_ids if task_id not in here])
            except ResultError as error:
                logger.warning("Results of revoked tasks are stored when a worker meets them: %s", error)
        self._looking = False

    def _store(self, task_ids: list[str]) -> None:
        worker = self._worker
        read = worker.results.read
        payloads = worker.runtime.offload(read, task_ids) if worker.results.name == "sqlite" else read(task_ids)
        executor = worker.executor
        for task_id, payload in zip(task_ids, payloads, strict=True):
            if payload is None or self._state(payload) in UNSTARTED:
                result = encode_exception(
                    task_id,
                    State.REVOKED,
                    TaskRevokedError("revoked"),
                    serializer=executor.serializer,
                    children=None,
                    date_done=datetime.now(timezone.utc),
                    compression=executor.compression,
                )
                worker.outbox.put(Record(task_id, State.REVOKED, result, "", executor.expires))

    def _state(self, payload: bytes) -> str:
        try:
            return self._worker.app.producer.decode(payload).status
        except MessageError:
            return ""  # whatever it is, somebody has written it
