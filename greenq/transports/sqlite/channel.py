"""A kombu channel over the embedded broker: declarations, publishing, and its consumers' deliveries."""

# ruff: noqa: FBT001, FBT002  (kombu calls these methods with positional booleans)

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.transport.virtual.base import NOT_EQUIVALENT_FMT, NotEquivalentError
from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombu_loads

from greenq.transports.base import Delivery, Post
from greenq.transports.sqlite.store import SqliteStore
from greenq.transports.sqlite.topology import Exchange, arguments_text

if TYPE_CHECKING:
    from greenq.transports.sqlite.transport import Transport

logger = logging.getLogger(__name__)

BATCH = 100  # claimed or acknowledged in one transaction
_encode = JSONEncoder().encode
_decode_text = json.JSONDecoder().decode

Handler = Callable[[Any], Any]


class QoS(virtual.QoS):
    """What a channel has delivered and nobody has settled yet, by tag."""

    def append(self, message: Any, delivery_tag: str) -> None:
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        if self._delivered.pop(delivery_tag, None) is not None:
            self.channel.connection.acknowledge(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
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


class Channel(virtual.Channel):
    """A kombu channel: its consumers, and what was claimed for them but not delivered yet."""

    QoS = QoS
    supports_fanout = True
    connection: Transport

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
        durable: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
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

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        with self.connection.exclusive as store:
            store.topology.delete_exchange(exchange)
        self.connection.kinds.pop(exchange, None)

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> Any:
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
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
        self,
        queue: str,
        if_unused: bool = False,
        if_empty: bool = False,
        **kwargs: Any,
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
            self.reached = len(reached)
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
        self,
        queue: str,
        no_ack: bool,
        callback: Handler,
        consumer_tag: str,
        **kwargs: Any,
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
        return min(BATCH, BATCH if estimate is None else estimate) - len(self.inbox)

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
            logger.warning("a message of %s is no envelope and goes to its dead queue: %r", delivery.queue, exc)
            self.connection.bury(delivery, f"envelope: {exc}")
            return None

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
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
        try:
            if not self.closed and self.connection is not None:
                self.connection.flush()
        finally:
            super().close()


def _seconds(arguments: dict[str, Any] | None, key: str) -> float | None:
    value = (arguments or {}).get(key)
    return None if value is None else float(value) / 1000.0


def _not_found(what: str, name: str, method: str) -> ChannelError:
    return ChannelError(f"NOT_FOUND - no {what} {name!r} in vhost '/'", (50, 10), method, "404")


def _decode(raw: bytes) -> dict[str, Any]:
    """The envelope, as kombu's own decoder gives it."""
    if b'"__type__"' in raw:
        return kombu_loads(raw)  # type: ignore[no-any-return]
    return _decode_text(raw.decode())  # type: ignore[no-any-return]
