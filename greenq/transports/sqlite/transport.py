"""A kombu transport over the embedded broker, so that stock kombu and Celery programs can use it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.transport.virtual.base import NOT_EQUIVALENT_FMT, NotEquivalentError
from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombu_loads

from greenq.exceptions import BrokerError
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery, Post
from greenq.transports.sqlite.location import parse_url
from greenq.transports.sqlite.mutex import NativeMutex
from greenq.transports.sqlite.store import SqliteStore
from greenq.transports.sqlite.topology import Exchange, arguments_text

logger = logging.getLogger(__name__)

_OPTIONS = ("durability", "busy_timeout")
_encode = JSONEncoder().encode
_BATCH = 100  # claimed or acknowledged in one transaction
_ACK_AGE = 0.005  # seconds between two transactions for acks alone
_UPKEEP = 1.0  # seconds between looks for dead owners
_FULL = 0.02  # seconds between looks whether a consumer at its prefetch limit may take more

Handler = Callable[[Any], Any]


class QoS(virtual.QoS):  # type: ignore[misc]
    """What a channel has delivered and nobody has settled yet, by tag."""

    def append(self, message: Any, delivery_tag: str) -> None:
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        if self._delivered.pop(delivery_tag, None) is not None:
            self.channel.connection.acknowledge(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (kombu's)
        if not requeue:
            self.ack(delivery_tag)
        elif self._delivered.pop(delivery_tag, None) is not None:
            self.channel.connection.give_back([delivery_tag])

    def restore_unacked(self) -> list[Any]:
        """Give everything back to its queue; returns kombu's list of failures, which is empty."""
        tags = list(self._delivered)
        if tags:
            self.channel.connection.give_back(tags)
            self._delivered.clear()
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        self._on_collect.cancel()
        if self.channel.connection is not None:
            self.restore_unacked()


class Channel(virtual.Channel):  # type: ignore[misc]
    """A kombu channel: its consumers, and what was claimed for them but not delivered yet."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._handlers: dict[str, tuple[Handler, bool]] = {}  # queue: callback, no_ack
        self.inbox: deque[Delivery] = deque()
        self.queues: tuple[str, ...] = ()

    # -- exchanges, queues, bindings ----------------------------------------------------------------------

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",  # noqa: A002  (kombu's name)
        durable: bool = False,  # noqa: FBT001, FBT002
        auto_delete: bool = False,  # noqa: FBT001, FBT002
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,  # noqa: FBT001, FBT002
        passive: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        if passive:
            with self.connection.exclusive as store:
                if store.topology.exchange(name) is None:
                    raise _not_found("exchange", name, "Channel.exchange_declare")
            return
        wanted = Exchange(kind, bool(durable), bool(auto_delete), arguments_text(arguments))
        with self.connection.exclusive as store:
            found = store.topology.declare_exchange(name, wanted)
        if found != wanted:
            raise NotEquivalentError(NOT_EQUIVALENT_FMT.format(name, "/"))
        self.connection.kinds[name] = kind

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:  # noqa: FBT001, FBT002
        with self.connection.exclusive as store:
            store.topology.delete_exchange(exchange)
        self.connection.kinds.pop(exchange, None)

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,  # noqa: FBT001, FBT002
        exclusive: bool = False,  # noqa: FBT001, FBT002
        auto_delete: bool = False,  # noqa: FBT001, FBT002
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> queue_declare_ok_t:
        """Declare a queue; an exclusive one is deleted with this connection, or with this process if it dies."""
        name = queue or f"amq.gen-{uuid4()}"
        known = {"x-expires", "x-message-ttl", "x-max-priority", "x-queue-type", "x-queue-mode"}
        for key in sorted((arguments or {}).keys() - known):
            logger.warning("the argument %s of queue %s has no meaning for sqlite and is not used", key, name)
        with self.connection.exclusive as store:
            if not passive:
                if exclusive:
                    store.own()
                store.topology.declare_queue(
                    name,
                    owner=store.owner if exclusive else None,
                    auto_delete=auto_delete,
                    expires=_seconds(arguments, "x-expires"),
                    message_ttl=_seconds(arguments, "x-message-ttl"),
                )
            elif not store.topology.has_queue(name):
                raise _not_found("queue", name, "Channel.queue_declare")
            return queue_declare_ok_t(name, store.length(name), store.topology.listeners(name))

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any  # noqa: FBT001, FBT002
    ) -> int:
        with self.connection.exclusive as store:
            return store.topology.delete_queue(queue, if_unused=if_unused, if_empty=if_empty)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any
    ) -> None:
        with self.connection.exclusive as store:
            store.topology.bind(queue, exchange or "amq.direct", routing_key or "")

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **kwargs: Any
    ) -> None:
        with self.connection.exclusive as store:
            store.topology.unbind(queue, exchange or "amq.direct", routing_key or "")

    def list_bindings(self) -> Iterable[tuple[str, str, str]]:
        with self.connection.exclusive as store:
            return store.topology.bindings()

    def _size(self, queue: str) -> int:
        with self.connection.exclusive as store:
            return store.length(queue)

    def _purge(self, queue: str) -> int:
        with self.connection.exclusive as store:
            return store.purge(queue)

    # -- publishing ---------------------------------------------------------------------------------------

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> None:
        """Store the message before returning: one transaction."""
        properties = message["properties"]
        message["body"], properties["body_encoding"] = self.encode_body(message["body"], self.body_encoding)
        properties["delivery_tag"] = self.connection.next_tag()
        properties["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        raw = _encode(message).encode()
        priority = self._get_message_priority(message)
        with self.connection.exclusive as store:
            if not exchange:
                store.post((Post(routing_key, raw, priority),))
                return
            kind = self._kind(store, exchange)
            reached = store.topology.publish(kind, exchange, routing_key or "", raw, priority)
            if not reached and self.deadletter_queue:
                store.post((Post(self.deadletter_queue, raw, priority),))

    def _kind(self, store: SqliteStore, exchange: str) -> str:
        kind: str | None = self.connection.kinds.get(exchange)
        if kind is None:
            found = store.topology.exchange(exchange)
            if found is None:
                return "direct"
            kind = self.connection.kinds[exchange] = found.type
        return kind

    # -- consuming ----------------------------------------------------------------------------------------

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Handler, consumer_tag: str, **kwargs: Any  # noqa: FBT001
    ) -> None:
        self._tag_to_queue[consumer_tag] = queue
        self._consumers.add(consumer_tag)
        self._handlers[queue] = (callback, bool(no_ack))
        self._consumers_changed()

    def basic_cancel(self, consumer_tag: str) -> None:
        if consumer_tag not in self._consumers:
            return
        self._consumers.remove(consumer_tag)
        queue = self._tag_to_queue.pop(consumer_tag)
        if queue in self._tag_to_queue.values():
            return
        self._handlers.pop(queue, None)
        waiting = [delivery.tag for delivery in self.inbox if delivery.queue == queue]
        if waiting:
            self.inbox = deque(delivery for delivery in self.inbox if delivery.queue != queue)
            self.connection.give_back(waiting)
        self._consumers_changed()

    def _consumers_changed(self) -> None:
        self.queues = tuple(self._handlers)
        self.connection.listen()

    def room(self) -> int:
        """How many messages may be claimed for this channel now."""
        if not self.queues or not self.qos.can_consume():
            return 0
        estimate = self.qos.can_consume_max_estimate()
        return min(_BATCH, _BATCH if estimate is None else estimate) - len(self.inbox)

    def deliver(self) -> bool:
        """Hand the first message of the inbox to its consumer; False if there is none that may be handed out."""
        if not self.inbox or not self.qos.can_consume():
            return False
        delivery = self.inbox.popleft()
        callback, no_ack = self._handlers[delivery.queue]
        message = self._open(delivery)
        if message is not None:
            if no_ack:
                self.connection.acknowledge(delivery.tag)
            else:
                self.qos.append(message, delivery.tag)
            callback(message)
        return True

    def _open(self, delivery: Delivery) -> Any:
        try:
            payload = _decode(delivery.raw)
            payload["properties"]["delivery_tag"] = delivery.tag
            return self.Message(payload, channel=self)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            # Nobody could ever read it; left in the queue it would come back for ever.
            logger.error("a message of %s is no envelope and goes to %s.dead: %r", *[delivery.queue] * 2, exc)
            self.connection.bury(delivery, f"envelope: {exc}")
            return None

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        for delivery in self.connection.fetch(queue):
            message = self._open(delivery)
            if message is not None:
                if no_ack:
                    self.connection.acknowledge(delivery.tag)
                else:
                    self.qos.append(message, delivery.tag)
                return message
        return None

    def close(self) -> None:
        """Give back at once what was claimed and not settled."""
        transport = self.connection
        if not self.closed and transport is not None:
            transport.flush()
            for consumer in list(self._consumers):
                self.basic_cancel(consumer)
        super().close()


class _Exclusive:
    """The store, for one thread at a time: some programs acknowledge from other threads."""

    __slots__ = ("_mutex", "_store")

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._mutex = NativeMutex()

    def __enter__(self) -> SqliteStore:
        self._mutex.__enter__()
        return self._store

    def __exit__(self, *exc_info: object) -> None:
        self._mutex.__exit__()


class Transport(virtual.Transport):  # type: ignore[misc]
    """A kombu connection to the embedded broker: one store, one owner, any number of channels.

    Acknowledgements are collected for at most 5 ms of a busy stretch and written with the next claim; one that
    comes after a quiet while is written at once, and none waits while this connection waits for messages.
    """

    Channel = Channel
    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "sqlite3"
    connection_errors = (*virtual.Transport.connection_errors, BrokerError)
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # Other keys of kombu's transport options are its own (retry policies, polling).
        options = {key: client.transport_options[key] for key in _OPTIONS if key in client.transport_options}
        name = f"kombu-{os.getpid()}-{uuid4().hex[:12]}"
        self.store = SqliteStore(parse_url(client.hostname, options), name)
        self.exclusive = _Exclusive(self.store)
        self.kinds: dict[str, str] = {}  # exchange: type
        self._acks: list[str] = []
        self._flushed = 0.0
        self._upkeep = 0.0
        self._queues: tuple[str, ...] = ()
        self._tags = count()

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: FBT001, FBT002
        return uri

    def next_tag(self) -> str:
        """A delivery tag no other message has: a uuid4 for each, as kombu makes, costs more than this."""
        return f"{self.store.owner}-{next(self._tags)}"

    def establish_connection(self) -> Transport:
        with self.exclusive as store:
            store.database.connect()
        super().establish_connection()
        return self

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        with self.exclusive as store:
            store.topology.delete_owned(store.owner)
            store.close()

    # -- settling -----------------------------------------------------------------------------------------

    def acknowledge(self, tag: str) -> None:
        self._acks.append(tag)
        if len(self._acks) >= _BATCH or time.monotonic() - self._flushed >= _ACK_AGE:
            self.flush()

    def flush(self) -> None:
        """Write the acknowledgements collected so far; what fails is kept for the next time."""
        if self._acks:
            with self.exclusive as store:
                number = len(self._acks)
                store.settle(self._acks[:number])
                del self._acks[:number]
            self._flushed = time.monotonic()

    def give_back(self, tags: Sequence[str]) -> None:
        with self.exclusive as store:
            store.settle((), [Settlement(tag, "", Settle.REQUEUE) for tag in tags])

    def bury(self, delivery: Delivery, reason: str) -> None:
        with self.exclusive as store:
            store.settle((), [Settlement(delivery.tag, delivery.queue, Settle.DEAD, reason=reason)])

    # -- fetching -----------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Be woken for the queues that have consumers."""
        self._queues = tuple(dict.fromkeys(queue for channel in self.channels for queue in channel.queues))
        with self.exclusive as store:
            store.listen(self._queues)

    def fetch(self, queue: str) -> list[Delivery]:
        """Claim one message without becoming a listener."""
        with self.exclusive as store:
            store.own()
            return store.turn((), (queue,), 1)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message; wait for one up to `timeout` seconds, or without end.

        Raises:
            socket.timeout: none came.
        """
        if self._deliver():
            return
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._look_after()
            if self._claim() and self._deliver():
                return
            left = 1.0 if end is None else end - time.monotonic()
            if left <= 0:
                self.flush()
                raise socket.timeout  # noqa: UP041  (the name kombu's callers catch)
            self._wait(left)

    def _deliver(self) -> bool:
        channels = self.channels
        for channel in channels:
            if channel.inbox:
                if len(channels) > 1:  # each channel in its turn, so that control is heard under load
                    channels.remove(channel)
                    channels.append(channel)
                if channel.deliver():
                    return True
        return False

    def _claim(self) -> bool:
        claimed = False
        for channel in self.channels:
            room = channel.room()
            if room <= 0:
                continue
            with self.exclusive as store:
                number = len(self._acks)
                channel.inbox.extend(store.turn(self._acks[:number], channel.queues, room))
                del self._acks[:number]
            if number:
                self._flushed = time.monotonic()
            claimed = claimed or bool(channel.inbox)
        return claimed

    def _wait(self, left: float) -> None:
        # Acknowledgements of a busy stretch go with the next claim, if that comes before they are old.
        if self._acks and self._queues and self.store.wait(self._queues, min(left, _ACK_AGE)):
            return
        self.flush()
        if any(channel.room() > 0 for channel in self.channels):
            self.store.wait(self._queues, min(left, _UPKEEP))
        else:  # all at their prefetch limit, or no consumer: another fiber's acknowledgement must end it
            time.sleep(min(left, _FULL))

    def _look_after(self) -> None:
        """Once a second, as a consumer: give back what dead consumers held."""
        now = time.monotonic()
        if not self._queues or now < self._upkeep:
            return
        self._upkeep = now + _UPKEEP
        with self.exclusive as store:
            if not store.renew(()):
                logger.warning("%s was taken for dead and has lost what it held", store.owner)
            number = store.reclaim()
        if number:
            logger.info("orphans_reclaimed n=%d", number)


def _seconds(arguments: dict[str, Any] | None, key: str) -> float | None:
    value = (arguments or {}).get(key)
    return None if value is None else float(value) / 1000.0


def _not_found(what: str, name: str, method: str) -> ChannelError:
    return ChannelError(f"NOT_FOUND - no {what} {name!r} in vhost '/'", (50, 10), method, "404")


def _decode(raw: bytes) -> dict[str, Any]:
    """The envelope, as kombu's own decoder gives it."""
    if b'"__type__"' in raw:
        return kombu_loads(raw)  # type: ignore[no-any-return]
    return json.loads(raw)  # type: ignore[no-any-return]
