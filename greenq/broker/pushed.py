"""Consuming from a broker that pushes: RabbitMQ, and every kombu transport without a batched store."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from greenq._speedups import Malformed, decode_parts
from greenq.broker.kombu_publisher import KombuPublisher
from greenq.broker.links import open_link
from greenq.broker.queue_set import QueueSet
from greenq.broker.topology import dead_queue
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError
from greenq.model import Rejected, Request, Settle, Settlement, TaskMessage
from greenq.runtime.base import Runtime
from greenq.transports.link import Arrival, Link

logger = logging.getLogger(__name__)

MOST_EXTRA = 1_000  # held requests that may raise the prefetch count: each is a message in memory
REASON_HEADER = "x-greenq-reason"

# Properties a dead letter does not inherit: it belongs to another queue, and it must not expire.
_NOT_KEPT = frozenset(
    {"delivery_info", "delivery_tag", "content_type", "content_encoding", "body_encoding", "expiration"}
)
_STEP = 100  # where raising means a new consumer, it is done by hundreds


class PushedConsumer:
    """One link at a time, each with an epoch of its own.

    A settlement goes straight to the link its delivery came by, and to no other: tags of a lost link mean
    nothing on the next, and the broker has taken back what they stood for. It does not pass through the fiber
    that fetches, because a link may be written to by anybody, and so cannot wait for it either.
    """

    delays = False  # a request held for its ETA stays unsettled here; see raise_prefetch
    by_number = False

    def __init__(self, url: str, conf: Settings, queues: Sequence[str], prefetch: int, runtime: Runtime) -> None:
        self._url = url
        self._conf = conf
        self._publisher = KombuPublisher(url, conf)
        self._queues = QueueSet(url, conf, queues)
        self._prefetch = prefetch
        self._extra = 0
        self._link: Link | None = None
        self.epoch = 0
        self.lease = float(conf.broker_lease)  # the connection is the lease; only its rhythm is used
        self._unreadable: dict[str | int, Arrival] = {}  # rejected while decoding, until settled
        self._interrupted = False
        self._owner = runtime.lock()  # held by the fiber that reads: a link is not closed under it

    def start(self) -> None:
        """See Consumer. Declares as Celery does; nothing of an earlier connection survives.

        Raises:
            BrokerUnreachable: no connection, or it was lost at once.
            ConfigError: a queue exists with other arguments; the message names them. Once this consumer has
                worked, such a queue is left out instead, and tried again with the next connection.
        """
        with self._owner:
            self._drop()
            link = open_link(self._url, self._conf, "greenq consumer")
            try:
                self._queues.begin(link, self._granted(link), strict=not self.epoch)
            except BaseException:
                _close(link)
                raise
            self._unreadable.clear()
            self.epoch += 1
            self._link = link

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            _close(link)

    def fetch(self, limit: int, timeout: float) -> list[Request | Rejected]:
        """See Consumer.

        Raises:
            BrokerUnreachable: the connection is lost; `start` makes a new one.
        """
        with self._owner:
            link = self._link
            if link is None:
                raise BrokerUnreachable("not connected to the broker")
            until = time.monotonic() + timeout
            try:
                while True:
                    self._queues.change(link)
                    arrivals = link.take(limit)
                    left = until - time.monotonic()
                    if arrivals or self._interrupted or left < 0:
                        break
                    link.wait(left)
            except BrokerUnreachable as exc:
                self._drop()
                self._queues.lost(exc)
                raise
            if not arrivals:
                self._interrupted = False
            return [self._decoded(link, arrival) for arrival in arrivals]

    def _decoded(self, link: Link, arrival: Arrival) -> Request | Rejected:
        try:
            headers, properties, content_type, content_encoding = link.parts(arrival)
            return decode_parts(
                headers,
                properties,
                content_type,
                content_encoding,
                arrival.body,
                arrival.queue,
                arrival.tag,
                self.epoch,
            )
        except ValueError as exc:
            error = exc if isinstance(exc, Malformed) else Malformed("envelope", str(exc))
        self._unreadable[arrival.tag] = arrival
        body = arrival.body if isinstance(arrival.body, bytes) else arrival.body.encode("utf-8", "replace")
        return Rejected(arrival.tag, self.epoch, arrival.queue, body, error)

    def interrupt(self) -> None:
        """See Consumer. Remembered: it ends the next wait if there is none now."""
        self._interrupted = True
        self._wake()

    def _wake(self) -> None:
        link = self._link
        if link is not None:
            link.wake()

    def settle(self, acks: Sequence[Request], others: Sequence[tuple[Request | Rejected, Settlement]] = ()) -> int:
        """See Consumer. Acks first, in one write where the transport can; then the rest, one by one.

        A message for the dead queue is there, confirmed, before it is acknowledged here. If it cannot be put
        there it goes back to its own queue and counts as without effect.
        """
        link, epoch = self._link, self.epoch
        if link is None:
            return len(acks) + len(others)
        gone = len(acks)
        try:
            gone -= link.ack([request.tag for request in acks if request.epoch == epoch])
        except BrokerUnreachable as exc:
            logger.warning("%d acknowledgements had no effect: %s", gone, exc)
        for item, settlement in others:
            if item.epoch != epoch or not self._ended(link, item, settlement):
                gone += 1
        return gone

    def _ended(self, link: Link, item: Request | Rejected, settlement: Settlement) -> bool:
        arrival = self._unreadable.pop(item.tag, None)
        if settlement.how is Settle.DELAY:
            raise ConfigError(f"this broker cannot delay a message ({settlement.queue}); hold the request instead")
        try:
            if settlement.how is Settle.DEAD:
                return self._bury(link, item, settlement, arrival)
            if settlement.how is Settle.REQUEUE:
                return link.requeue(item.tag)
            return link.ack([item.tag]) == 1
        except BrokerUnreachable as exc:
            logger.warning("A delivery of queue %s was not settled: %s", item.queue, exc)
            return False

    def _bury(self, link: Link, item: Request | Rejected, settlement: Settlement, arrival: Arrival | None) -> bool:
        queue = dead_queue(item.queue)
        try:
            self._publisher.publish_to(queue, [_dead_letter(link, item, settlement.reason, queue.name, arrival)])
        except BrokerError as exc:
            logger.warning("A message of queue %s goes back: %s", item.queue, exc)
            link.requeue(item.tag)
            return False
        return link.ack([item.tag]) == 1

    @property
    def prefetch(self) -> int:
        """How many deliveries may be unsettled, without what held requests add; 0 is no limit."""
        return self._prefetch

    @prefetch.setter
    def prefetch(self, count: int) -> None:
        self._prefetch = count
        self._apply_prefetch()

    def raise_prefetch(self, n: int = 1) -> None:
        """Let n more deliveries be unsettled, because as many requests are held; always from one fiber.

        At most `MOST_EXTRA` in all: beyond that, held requests take the room of others.
        """
        self._extra += n
        self._apply_prefetch()

    def lower_prefetch(self, n: int = 1) -> None:
        """Take back what `raise_prefetch` gave."""
        self._extra = max(0, self._extra - n)
        self._apply_prefetch()

    def _apply_prefetch(self) -> None:
        link = self._link
        if link is not None:
            with contextlib.suppress(BrokerUnreachable):  # fetch finds it too, and start applies it
                link.prefetch(self._granted(link))

    def _granted(self, link: Link) -> int:
        if not self._prefetch:
            return 0
        extra = min(self._extra, MOST_EXTRA)
        if not link.shared_prefetch:
            extra = -(-extra // _STEP) * _STEP
        return self._prefetch + extra

    def renew(self, held: Sequence[Request]) -> bool:
        """See Consumer. Nothing to renew: the connection itself is the lease."""
        return True

    def reclaim(self) -> int:
        """See Consumer. The broker gives back what a dead worker held when its connection ends."""
        return 0

    def release(self) -> None:
        """See Consumer. There is no such connection."""

    def beat(self) -> None:
        """See Consumer."""
        link = self._link
        if link is not None:
            with contextlib.suppress(BrokerUnreachable):  # the fiber that fetches finds the same and says it
                link.beat()

    def queues(self) -> list[dict[str, Any]]:
        """See Consumer."""
        return self._queues.describe()

    def add_queue(self, name: str, **options: Any) -> None:
        """See Consumer."""
        if self._queues.add(name, options):
            self._wake()

    def cancel_queue(self, name: str) -> None:
        """See Consumer."""
        self._queues.cancel(name)
        self._wake()

    def close(self) -> None:
        """See Consumer. Waits for a fetch in progress to end."""
        self.interrupt()
        with self._owner:
            self._drop()
        self._publisher.close()


def _dead_letter(
    link: Link, item: Request | Rejected, reason: str, queue: str, arrival: Arrival | None
) -> TaskMessage:
    """The message as it came, with the reason for its end among the headers."""
    if arrival is None:
        assert isinstance(item, Request), "a rejected delivery is kept until it is settled"
        headers, properties, body = item.headers, item.properties, item.body
        content_type, content_encoding = item.content_type, item.content_encoding
    else:
        body = arrival.body
        try:
            parts = link.parts(arrival)
            headers, properties = parts.headers, parts.properties
            content_type, content_encoding = parts.content_type or "", parts.content_encoding or ""
        except ValueError:
            # Not even the header block can be read: it goes along as it is.
            headers = {"x-greenq-header-block": getattr(arrival.source, "header", b"")}
            properties, content_type, content_encoding = {}, "", ""
    kept = {name: value for name, value in properties.items() if name not in _NOT_KEPT}
    return TaskMessage(
        headers={**headers, REASON_HEADER: reason},
        body=body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"),
        content_type=content_type,
        content_encoding=content_encoding,
        properties={**kept, "delivery_mode": 2},
        exchange="",
        routing_key=queue,
    )


def _close(link: Link) -> None:
    with contextlib.suppress(BrokerError):  # it is gone already, and the broker has taken everything back
        link.close()
