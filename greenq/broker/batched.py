"""Consuming from a broker that is reached in batches: Redis and SQLite."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from greenq._speedups import Malformed, decode_envelope
from greenq.broker.links import open_link
from greenq.broker.stores import blocks_in_c, open_store, store_options
from greenq.broker.topology import Declarations, declare, describe
from greenq.config import Settings
from greenq.model import Rejected, Request, Settlement
from greenq.runtime.base import Runtime
from greenq.transports.base import Delivery, Store

T = TypeVar("T")

BATCH = 100  # a larger claim blocks Redis for over a millisecond and gains nothing (decision 0003)


class BatchedConsumer:
    """Three stores under one owner name, so that each connection has one owner.

    `_source` belongs to the fiber that fetches, `_sink` to the one that settles, `_keeper` to the service
    thread. The set of queues is replaced as a whole, never changed, so any thread may read it.
    """

    delays = True
    by_number = True
    epoch = 0  # a claim outlives the connection it was made on

    def __init__(
        self, url: str, conf: Settings, queues: Sequence[str], prefetch: int, runtime: Runtime
    ) -> None:
        self._url = url
        self._conf = conf
        self._declarations = Declarations(conf)
        options = store_options(url, conf)
        self.prefetch = prefetch
        self.owner = uuid.uuid4().hex
        self._names: tuple[str, ...] = tuple(queues)
        self._offload = runtime.offload if blocks_in_c(url) else _here
        self._room = runtime.event()
        self._source: Store = open_store(url, self.owner, options)
        self._sink: Store = open_store(url, self.owner, options)
        self._keeper: Store = open_store(url, self.owner, options)
        # A store that is kept by the kernel has no lease; the setting's rhythm does no harm there.
        self.lease = float(getattr(self._keeper, "lease", conf.broker_lease))

    def start(self) -> None:
        """See Consumer. Announces the owner, so that it is known before it holds anything."""
        self._offload(self._source.renew, ())
        for name in self._names:
            self._bind(name)

    def _bind(self, name: str) -> None:
        """Declare a queue that is reached through an exchange, so that producers' messages find it."""
        queue = self._declarations.queue(name)
        if str(queue.exchange.type) == "direct" and queue.exchange.name in ("", name, self._conf.task_default_queue):
            return
        link = open_link(self._url, self._conf, "greenq binding")
        try:
            declare(link, queue)
        finally:
            link.close()

    def fetch(self, limit: int, timeout: float) -> list[Request | Rejected]:
        """See Consumer. With no room (`limit` 0) only an interrupt is waited for."""
        if limit <= 0:
            self._room.wait(timeout)
            self._room.clear()
            return []
        limit = min(limit, BATCH)
        found = self._offload(self._source.claim, self._names, limit)
        if not found and timeout > 0 and self._source.wait(self._names, timeout):
            found = self._offload(self._source.claim, self._names, limit)
        return [_decoded(delivery) for delivery in found]

    def interrupt(self) -> None:
        """See Consumer."""
        self._room.set()
        self._source.interrupt()

    def settle(
        self, acks: Sequence[Request], others: Sequence[tuple[Request | Rejected, Settlement]] = ()
    ) -> int:
        """See Consumer."""
        tags = [str(request.tag) for request in acks]
        rest = [settlement for _, settlement in others]
        return self._offload(self._sink.settle, tags, rest)

    def raise_prefetch(self, n: int = 1) -> None:
        """See Consumer. Messages are asked for by number here: what is held takes nobody's room."""

    def lower_prefetch(self, n: int = 1) -> None:
        """See Consumer."""

    def renew(self, held: Sequence[Request]) -> bool:
        """See Consumer."""
        return self._keeper.renew([str(request.tag) for request in held])

    def reclaim(self) -> int:
        """See Consumer."""
        return self._keeper.reclaim()

    def release(self) -> None:
        """See Consumer."""
        self._keeper.close()

    def beat(self) -> None:
        """See Consumer. Nothing to do: leases say that this worker lives, not connections."""

    def queues(self) -> list[dict[str, Any]]:
        """See Consumer."""
        return [describe(self._declarations.queue(name)) for name in self._names]

    def add_queue(self, name: str, **options: Any) -> None:
        """See Consumer."""
        if name not in self._names:
            self._names = (*self._names, name)
            self.interrupt()

    def cancel_queue(self, name: str) -> None:
        """See Consumer."""
        self._names = tuple(other for other in self._names if other != name)
        self.interrupt()

    def close(self) -> None:
        """See Consumer. What is still claimed comes back with the owner's lease; the outbox gave the rest back."""
        for store in (self._source, self._sink):
            store.close()


def _here(call: Callable[..., T], *args: object) -> T:
    return call(*args)


def _decoded(delivery: Delivery) -> Request | Rejected:
    try:
        return decode_envelope(delivery.raw, delivery.queue, delivery.tag)
    except Malformed as error:
        return Rejected(delivery.tag, 0, delivery.queue, delivery.raw, error)
