"""Any other kombu transport: its own consumer and channel, message by message, correct and unbatched.

What such a transport promises about unacknowledged messages after a crash is its own affair; some keep them
in memory only. Left in order, they are all given back here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import kombu
from kombu.exceptions import KombuError
from kombu.transport.virtual import NotEquivalentError

from greenq.exceptions import BrokerUnreachable, ConfigError
from greenq.model import TaskMessage
from greenq.transports.link import Arrival, Doorbell, Parts, QueueMismatch, Receipt

logger = logging.getLogger(__name__)

_SLICE = 0.05  # seconds in a transport that waits by itself; nobody else can use the channel meanwhile
_BATCH = 100  # messages read in one go


class _Client:
    """One kombu connection with one channel and the lock that makes them one fiber's at a time."""

    def __init__(self, connection: kombu.Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        with self.errors():
            connection.connect()
            self.channel: Any = connection.channel()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what kombu and the client library raise into BrokerUnreachable."""
        known = (*self.connection.connection_errors, *self.connection.channel_errors, KombuError, OSError)
        try:
            yield
        except known as exc:
            reason = str(exc) or type(exc).__name__
            raise BrokerUnreachable(f"{self.connection.as_uri()}: {reason}") from exc

    @contextmanager
    def mine(self) -> Iterator[Any]:
        """The channel, for this fiber alone."""
        with self.lock, self.errors():
            yield self.channel

    def close(self) -> None:
        with self.errors():
            self.connection.release()


class GenericLink:
    """A Link over kombu's own channel and consumers.

    Virtual channels are plain objects that several fibers would spoil, hence one lock around every use of
    them; the owner waits outside of it, so that a settlement never waits for a message.
    """

    shared_prefetch = True

    def __init__(self, connection: kombu.Connection) -> None:
        self._client = _Client(connection)
        self._bell = Doorbell()
        self._arrived: deque[Any] = deque()
        self._unsettled: dict[str | int, Any] = {}
        self._consumers: dict[str, kombu.Consumer] = {}
        self._interval: float | None = getattr(connection.transport, "polling_interval", None)
        self._closed = False

    def declare(self, queue: Any) -> None:
        """See Link."""
        with self._client.mine() as channel:
            _declare(channel, queue)

    def unshare_prefetch(self) -> None:
        """See Link. Only RabbitMQ has queues that need it."""

    def consume(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """See Link."""
        entity = kombu.Queue(queue, consumer_arguments=dict(arguments) or None)
        with self._client.mine() as channel:
            consumer = kombu.Consumer(channel, [entity], auto_declare=False, no_ack=False)
            consumer.on_message = lambda message: self._arrived.append((queue, message))
            consumer.consume()
        self._consumers[queue] = consumer

    def cancel(self, queue: str) -> None:
        """See Link."""
        consumer = self._consumers.pop(queue, None)
        if consumer is not None:
            with self._client.mine():
                consumer.cancel()

    def prefetch(self, count: int) -> None:
        """See Link."""
        with self._client.mine() as channel:
            channel.basic_qos(0, count, False)  # noqa: FBT003  (kombu and py-amqp name it differently)

    def wait(self, timeout: float) -> None:
        """See Link. Between two looks at the broker only the bell is waited for, outside of the lock."""
        if self._arrived:  # the owner wants no more of them
            self._bell.wait(timeout)
            return
        until = time.monotonic() + timeout
        while True:
            self._read(min(_SLICE, max(0.0, until - time.monotonic())) if self._interval is None else 0.0)
            left = until - time.monotonic()
            if self._arrived or left <= 0:
                return
            # Without an interval the wait was in the transport; the moment here is for who wants the lock.
            pause = min(left, 0.001 if self._interval is None else self._interval)
            if self._bell.wait(pause):
                return

    def _read(self, timeout: float) -> None:
        with self._client.mine():
            for _ in range(_BATCH):
                try:
                    self._client.connection.drain_events(timeout=timeout)
                except TimeoutError:
                    return
                except (ValueError, TypeError, LookupError):
                    # Not even an envelope. kombu has taken it from the queue and keeps nothing of it.
                    logger.exception("A message that kombu cannot take apart is lost.")
                timeout = 0.0

    def wake(self) -> None:
        """See Link."""
        self._bell.ring()

    def take(self, limit: int) -> list[Arrival]:
        """See Link."""
        arrivals = []
        for _ in range(min(limit, len(self._arrived))):
            queue, message = self._arrived.popleft()
            self._unsettled[message.delivery_tag] = message
            arrivals.append(Arrival(queue, message.delivery_tag, message.body, message))
        return arrivals

    def parts(self, arrival: Arrival) -> Parts:
        """See Link."""
        message = arrival.source
        properties = dict(message.properties or {})
        properties["delivery_info"] = dict(message.delivery_info or {})
        headers = dict(message.headers or {})
        return Parts(headers, properties, message.content_type, message.content_encoding)

    def ack(self, tags: Sequence[str | int]) -> int:
        """See Link."""
        done = 0
        with self._client.mine() as channel:
            for tag in tags:
                if self._unsettled.pop(tag, None) is not None:
                    channel.basic_ack(tag)
                    done += 1
        return done

    def requeue(self, tag: str | int) -> bool:
        """See Link."""
        with self._client.mine() as channel:
            if self._unsettled.pop(tag, None) is None:
                return False
            channel.basic_reject(tag, requeue=True)
        return True

    def withdrawn(self) -> list[str]:
        """See Link. Nobody tells."""
        return []

    def beat(self) -> None:
        """See Link. These connections have no heartbeat."""

    def close(self) -> None:
        """See Link. Given back one by one, newest first: not every transport does it at its close."""
        if self._closed:
            return
        self._closed = True
        with self._client.mine() as channel:
            for consumer in self._consumers.values():
                consumer.cancel()
            tags = [*self._unsettled, *(message.delivery_tag for _, message in self._arrived)]
            for tag in reversed(tags):
                channel.basic_reject(tag, requeue=True)
        self._client.close()
        self._bell.close()


class GenericSender:
    """A Sender over kombu's own channel: as sure as the transport's own publish."""

    blocked = False

    def __init__(self, connection: kombu.Connection) -> None:
        self._client = _Client(connection)

    def ready(self, timeout: float) -> None:
        """See Sender. These transports cannot say."""

    def declare(self, queue: Any) -> None:
        """See Sender."""
        with self._client.mine() as channel:
            _declare(channel, queue)

    def require(self, exchange: str) -> None:
        """See Sender. These transports cannot say."""

    def prepare(self, message: TaskMessage, *, mandatory: bool) -> Any:
        """See Sender."""
        properties = dict(message.properties)
        prepared = self._client.channel.prepare_message(
            message.body,
            priority=properties.pop("priority", None),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            properties=properties,
        )
        return prepared, mandatory

    def send(self, messages: Sequence[tuple[TaskMessage, Any]], timeout: float) -> Receipt:
        """See Sender."""
        unroutable = []
        for position, (message, (prepared, mandatory)) in enumerate(messages):
            try:
                with self._client.mine() as channel:
                    if mandatory and not _leads_somewhere(channel, message):
                        unroutable.append(message)
                        continue
                    channel.basic_publish(prepared, exchange=message.exchange, routing_key=message.routing_key)
            except BrokerUnreachable as exc:
                return Receipt(unroutable, [], [unsent for unsent, _ in messages[position:]], exc)
        return Receipt(unroutable, [], [])

    def purge(self, queue: str) -> int:
        """See Sender."""
        with self._client.mine() as channel:
            return int(channel.queue_purge(queue) or 0)

    def length(self, queue: str) -> int:
        """See Sender."""
        with self._client.mine() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except self._client.connection.channel_errors:
                return 0  # it does not exist

    def close(self) -> None:
        """See Sender."""
        self._client.close()


def _declare(channel: Any, queue: Any) -> None:
    kind = queue.exchange.type
    kinds = getattr(channel, "exchange_types", None)  # of kombu's virtual channels
    if kinds is not None and kind not in kinds:
        raise ConfigError(f"queue {queue.name!r}: this broker has no {kind} exchanges, only {', '.join(kinds)}")
    try:
        queue(channel).declare()
    except NotEquivalentError as exc:
        raise QueueMismatch(f"exchange {queue.exchange.name!r}", "its type or options", "others", str(exc)) from exc


def _leads_somewhere(channel: Any, message: TaskMessage) -> bool:
    """Whether a queue is bound for the message: kombu's own routing drops what leads nowhere without a word."""
    if not message.exchange or not hasattr(channel, "typeof"):
        return True
    table = channel.get_table(message.exchange)
    return bool(channel.typeof(message.exchange).lookup(table, message.exchange, message.routing_key, None))
