"""Consuming from a broker that is reached in batches: Redis and SQLite."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from greenq._speedups import Malformed, decode_envelope
from greenq.broker.links import open_link
from greenq.broker.queue_requests import asked_queue
from greenq.broker.stores import blocks_in_c, keeps_fanout, open_store, store_options
from greenq.broker.topology import Declarations, declare, describe
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.model import Rejected, Request, Settlement
from greenq.runtime.base import Runtime
from greenq.transports.base import Delivery, Store

T = TypeVar("T")

BATCH = 100  # a larger claim blocks Redis for over a millisecond and gains nothing (decision 0003)


class BatchedConsumer:
    """Three stores under one owner name, so that each connection has one owner.

    `_source` belongs to the fiber that fetches, `_sink` to the one that settles, `_keeper` to the service
    thread. `_queues` is changed from any thread; each change and each copy is one step under the interpreter lock.
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
        self._queues: dict[str, Any] = {name: self._declarations.queue(name) for name in queues}  # kombu.Queue
        for queue in self._queues.values():
            self._check(queue)
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
        self._declare([queue for queue in list(self._queues.values()) if not self._is_plain(queue)])

    def _check(self, queue: Any) -> None:
        if str(queue.exchange.type) == "fanout" and not keeps_fanout(self._url):
            raise ConfigError(
                f"queue {queue.name!r} is bound to the fanout exchange {queue.exchange.name!r}: on Redis a message "
                "sent there is in no queue, and whoever does not listen at that moment never gets it. "
                "Use a topic exchange with the routing key '#'"
            )

    def _is_plain(self, queue: Any) -> bool:
        """Do producers put messages straight into it, to stay for as long as it takes? Nothing to declare, then."""
        exchange = queue.exchange
        direct = str(exchange.type) == "direct" and exchange.name in ("", queue.name, self._conf.task_default_queue)
        return direct and not (queue.expires or queue.message_ttl or queue.queue_arguments)

    def _declare(self, queues: Sequence[Any]) -> None:
        """Declare queues with their bindings, so that producers' messages find them."""
        if not queues:
            return
        link = open_link(self._url, self._conf, "greenq declaring")
        try:
            for queue in queues:
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
        found = self._offload(self._source.claim, tuple(self._queues), limit)
        if not found and timeout > 0 and self._source.wait(tuple(self._queues), timeout):
            found = self._offload(self._source.claim, tuple(self._queues), limit)
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
        return [describe(queue) for queue in list(self._queues.values())]

    def add_queue(self, name: str, **options: Any) -> None:
        """See Consumer."""
        found = self._queues.get(name)
        queue = asked_queue(self._declarations, name, options, found)
        self._check(queue)
        if found is not None:
            return
        if not self._is_plain(queue):
            self._declare([queue])
        self._queues[name] = queue
        self.interrupt()

    def cancel_queue(self, name: str) -> None:
        """See Consumer."""
        self._queues.pop(name, None)
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
