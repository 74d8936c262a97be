"""Settling: what comes next is published, the result stored, the delivery acknowledged, in this order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from greenq.broker.base import Consumer, Publisher
from greenq.exceptions import BrokerError, ResultError
from greenq.model import Outcome, Record, Rejected, Request, Settle, Settlement
from greenq.results.base import ResultStore
from greenq.runtime.base import Runtime
from greenq.worker.trouble import Trouble

logger = logging.getLogger(__name__)

T = TypeVar("T")
BATCH = 500
FULL = 100  # settlements; more gain nothing by gathering
GATHER = 0.001  # seconds between two writes, unless there is enough for one
ENOUGH = 10_000  # settlements waiting; the intake stops fetching above it

Entry = Outcome | tuple[Request | Rejected, Settlement] | Request | Record


class Outbox:
    """One fiber writes; everyone else appends an entry and rings.

    An entry carries a task's follow-ups, its result and its ack together, so an ack can never overtake its
    own result. A batch is tried until the broker takes it: it is never dropped while the broker may still
    want it. Entries: an outcome; a delivery that never ran, with its settlement; a request acknowledged early; a
    record that is not an outcome (STARTED).
    """

    def __init__(
        self,
        consumer: Consumer,
        publisher: Publisher,
        results: ResultStore,
        runtime: Runtime,
        acknowledged: Callable[[Sequence[Request]], object],
        *,
        offload: bool,
    ) -> None:
        """`acknowledged` hears of acks the broker has; `offload` says that storing blocks in C, off the hub."""
        self._consumer = consumer
        self._publisher = publisher
        self._results = results
        self._runtime = runtime
        self._acknowledged = acknowledged
        self._offload = offload
        self._line: deque[Entry] = deque()
        self._bell = runtime.event()
        self._waiting = False
        self._writing: Sequence[Entry] = ()
        self._written = 0.0  # monotonic
        self._stopping = False
        self._ended = runtime.event()
        self._trouble = Trouble(logger, "settling")
        self.without_effect = 0  # acks for deliveries the broker had taken back

    def start(self) -> None:
        """Start the fiber."""
        self._runtime.spawn(self._serve, name="outbox")

    def put(self, entry: Entry) -> None:
        """Hand over an entry; never blocks."""
        self._line.append(entry)
        if self._waiting:
            self._waiting = False
            self._bell.set()

    def __len__(self) -> int:
        """Entries not yet written."""
        return len(self._line) + len(self._writing)

    def ended(self, task_ids: Collection[str]) -> dict[str, Request]:
        """Those of the ids whose outcome is here still: the broker has yet to hear of it. Any thread."""
        entries = [*self._writing, *list(self._line)]
        requests = [entry.request for entry in entries if isinstance(entry, Outcome)]
        return {request.id: request for request in requests if request.id in task_ids}

    def stop(self, timeout: float) -> bool:
        """Write what is left, then end; True if all was written within `timeout` seconds."""
        self._stopping = True
        self._bell.set()
        return self._ended.wait(timeout)

    def _serve(self) -> None:
        line = self._line
        while True:
            if not line:
                if self._stopping:
                    break
                self._bell.clear()
                self._waiting = True
                # Threads may have appended between the look and the flag.
                if not line and not self._stopping:
                    self._bell.wait()
                self._waiting = False
                continue
            self._let_gather()
            batch = [line.popleft() for _ in range(min(len(line), BATCH))]
            self._writing = batch
            self._write(batch)
            self._writing = ()
            self._written = time.monotonic()
        self._ended.set()

    def _let_gather(self) -> None:
        """Write at once after a pause; after a write let more come, as a round trip costs more than a task."""
        left = GATHER - (time.monotonic() - self._written)
        if left > 0 and len(self._line) < FULL and not self._stopping:
            self._runtime.sleep(left)

    def _write(self, batch: list[Entry]) -> None:
        """Publish, store, settle; each step until it went well, so that a later one never overtakes it."""
        messages = [m for entry in batch if isinstance(entry, Outcome) for m in entry.follow_ups]
        if messages:
            self._until_done(lambda: self._publisher.publish(messages))
        records = _records(batch)
        if records:
            self._until_done(lambda: self._keep(records))
        acks, others = _settlements(batch)
        if acks or others:
            gone = self._until_done(lambda: self._consumer.settle(acks, others))
            self.without_effect += gone
            if gone < len(acks):
                epoch = self._consumer.epoch
                self._acknowledged([r for r in acks if r.epoch == epoch] if gone else acks)

    def _keep(self, records: Sequence[Record]) -> None:
        if self._offload:
            self._runtime.offload(self._results.store, records)
        else:
            self._results.store(records)

    def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                value = step()
            except (BrokerError, ResultError) as error:
                self._runtime.sleep(self._trouble.happened(error))
            else:
                self._trouble.over()
                return value


def _records(batch: list[Entry]) -> list[Record]:
    records: list[Record] = []
    for entry in batch:
        if isinstance(entry, Outcome):
            if entry.record is not None:
                records.append(entry.record)
            if entry.more_records:
                records += entry.more_records
        elif isinstance(entry, Record):
            records.append(entry)
    return records


def _settlements(batch: list[Entry]) -> tuple[list[Request], list[tuple[Request | Rejected, Settlement]]]:
    acks: list[Request] = []
    others: list[tuple[Request | Rejected, Settlement]] = []
    for entry in batch:
        if isinstance(entry, Outcome):
            request = entry.request
            if request.acked:
                continue
            if entry.how is Settle.ACK:
                acks.append(request)
            else:
                settlement = Settlement(request.tag, request.queue, entry.how, entry.due, entry.reason)
                others.append((request, settlement))
        elif isinstance(entry, Request):
            acks.append(entry)
        elif not isinstance(entry, Record):
            others.append(entry)
    return acks, others
