"""The kombu channel of the Redis transport: batched reading, buffered acks, frames that cannot break it."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import RedisError

from greenq.exceptions import BrokerError, ConfigError
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery
from greenq.transports.redis.endpoint import REPLY_TIMEOUT, Endpoint, parse_endpoint
from greenq.transports.redis.store import MOST, RedisStore

logger = logging.getLogger(__name__)

# Typed in name only: every inherited method would be a call to an untyped function.
_KombuQoS: Any = stock.QoS
_KombuChannel: Any = stock.Channel

_FANOUT_BATCH = 16  # frames handed out between two looks at anything else

# What building a kombu Message from hostile content raises.
_NOT_A_MESSAGE = (AttributeError, KeyError, LookupError, RecursionError, TypeError, ValueError)
_CONNECTION_OPTIONS = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"),
    "client_name",
)
_POOL_OPTIONS = ("max_connections", "health_check_interval", "retry_on_timeout")
_STORE_OPTIONS = (
    *("visibility_timeout", "priority_steps", "sep", "global_keyprefix", "unacked_key", "unacked_index_key"),
    *("queue_order_strategy", "lease"),
)


class QoS(_KombuQoS):  # type: ignore[misc]  # see above
    """Kombu's ack emulation, with acks sent a hundred at a time.

    Credit comes back with the ack; Redis hears of it when a hundred are together, before the channel takes
    more, waits or closes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acks: deque[str] = deque()

    def append(self, message: Any, delivery_tag: str) -> None:
        if _reserved(delivery_tag):
            virtual.QoS.append(self, message, delivery_tag)  # the claim has written it already
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Buffer the ack; callable from any thread or greenlet."""
        if not _reserved(delivery_tag):
            super().ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)
        self.forget(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Have a message removed from Redis that was never counted against the credit."""
        self._acks.append(delivery_tag)
        transport = self.channel.connection
        if len(self._acks) >= MOST:
            self.flush_acks()
        elif transport is not None and transport.waiting:
            transport.waker.wake()

    def flush_acks(self) -> None:
        """Send the buffered acks in one write, on a pooled connection; keeps them where that fails."""
        tags = [self._acks.popleft() for _ in range(len(self._acks))]
        if not tags:
            return
        try:
            with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
                pipe.hdel(self.unacked_key, *tags).zrem(self.unacked_index_key, *tags).execute()
        except BaseException:
            self._acks.extendleft(reversed(tags))
            raise

    def restore_unacked_once(self, stderr: Any = None) -> None:
        # Or finished tasks would be restored with the unfinished ones.
        if self.channel.connection is not None:
            self.channel.try_to("flush acks", self.flush_acks)
        super().restore_unacked_once(stderr=stderr)


class Channel(_KombuChannel):  # type: ignore[misc]  # see above
    """Kombu's Redis channel, reading queues through the scripts of `RedisStore`."""

    QoS = QoS
    lease = None
    from_transport_options: Any = (*stock.Channel.from_transport_options, "lease")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._store: RedisStore | None = None
        self._ready: deque[Delivery] = deque()
        super().__init__(*args, **kwargs)
        if not self.ack_emulation:
            raise ConfigError("ack_emulation=False is refused: no message is taken without a trace in Redis")

    @property
    def store(self) -> RedisStore:
        """The batched side of this channel, on a connection of its own; connects when first used."""
        if self._store is None:
            params = self._connparams()
            connection_class = params.pop("connection_class")
            place = params.get("path") or f"{params['host']}:{params['port']}"
            label = f"redis://{place}/{params['db']}"
            for name in _POOL_OPTIONS:
                params.pop(name, None)
            params["socket_timeout"] = params.get("socket_timeout") or REPLY_TIMEOUT
            options = {name: getattr(self, name) for name in _STORE_OPTIONS}
            self._store = RedisStore(Endpoint(connection_class, params, label), "", options, leased=False)
        return self._store

    def _connparams(self, asynchronous: Any = False) -> dict[str, Any]:  # noqa: FBT002  kombu's signature
        client = self.connection.client
        url = str(client.hostname or "")
        if "://" not in url:
            params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
            if str(client.transport_cls).endswith("rediss") and not client.ssl:
                params |= {"connection_class": self.connection_class_ssl, "ssl_cert_reqs": "required"}
            return params
        options = {name: getattr(self, name) for name in _CONNECTION_OPTIONS}
        options |= {"ssl": client.ssl, "username": client.userid, "password": client.password}
        endpoint = parse_endpoint(url, options)
        params = {"connection_class": endpoint.connection_class, **endpoint.params}
        self._process_credential_provider(client.credential_provider, params)
        return params | {name: getattr(self, name) for name in _POOL_OPTIONS}

    def reserve_raw(self, limit: int, queues: list[str] | None = None) -> list[Delivery]:
        """Take up to `limit` messages of the consumed queues as they are; see `RedisStore.claim`."""
        return self.store.claim(self.active_queues if queues is None else queues, min(limit, MOST))

    def has_credit(self) -> bool:
        """Whether it consumes queues and may take another message."""
        return bool(self._consumers and self.active_queues and self.qos.can_consume())

    def deliver_ready(self) -> bool:
        """Take a batch within the credit and hand it to the consumers; False if nothing was there.

        What is left of a batch when a callback raises is delivered by the next call.
        """
        self.qos.flush_acks()  # before the consumers are busy with the next batch
        if not self._ready and self.has_credit():
            credit = self.qos.can_consume_max_estimate()
            self._ready.extend(self.reserve_raw(MOST if credit is None else credit))
        delivered = False
        while self._ready and not self.closed:
            delivery = self._ready.popleft()
            payload = self._payload(delivery)
            if payload is not None:
                self.connection._deliver(payload, delivery.queue)  # noqa: SLF001  kombu's own way in
            delivered = True
        return delivered

    def chores(self) -> None:
        """What has to be done before a wait: acks out, binding tables of expiring queues kept alive."""
        self.qos.flush_acks()
        self.maybe_refresh_binding_expiry()

    def basic_consume(self, queue: str, no_ack: Any, callback: Any, *args: Any, **kwargs: Any) -> Any:
        reply = super().basic_consume(queue, no_ack, callback, *args, **kwargs)

        def receive(payload: Any) -> Any:
            try:
                message = self.Message(payload, channel=self)
            except _NOT_A_MESSAGE as exc:
                return self._refuse(payload, queue, exc)
            tag = message.delivery_tag
            if not no_ack:
                self.qos.append(message, tag)
            elif _reserved(tag):
                self.qos.forget(tag)
            return callback(message)

        self.connection._callbacks[queue] = receive  # noqa: SLF001
        return reply

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.qos.forget(message.delivery_tag)
        return message

    def _get(self, queue: Any, timeout: Any = None) -> dict[str, Any]:
        with self.conn_or_acquire() as client:
            self._maybe_update_queues_expire(client, queue)
        while found := self.reserve_raw(1, [queue]):
            payload = self._payload(found[0])
            try:
                if payload is not None:
                    self.Message(payload, channel=self)
                    return payload
            except _NOT_A_MESSAGE as exc:
                self._refuse(payload, queue, exc)
        raise stock.Empty

    def _payload(self, delivery: Delivery) -> dict[str, Any] | None:
        """The envelope as kombu wants it, under the tag it was claimed by; None where there is none."""
        try:
            payload = loads(bytes_to_str(delivery.raw))
            payload["properties"]["delivery_tag"] = delivery.tag
        except _NOT_A_MESSAGE as exc:
            self._bury(delivery.tag, delivery.queue, exc)
            return None
        return dict(payload)

    def _refuse(self, payload: Any, queue: str, why: Exception) -> None:
        if queue in self._fanout_queues:
            self.connection.drop(queue, repr(why))
        else:
            self._bury(payload["properties"]["delivery_tag"], queue, why)

    def _bury(self, tag: str, queue: str, why: Exception) -> None:
        extra = {"event": "message.rejected"}
        text = "what came on %s is not a message, moved to its dead list: %r"
        logger.warning(text, queue, why, extra=extra)
        self.store.settle((), [Settlement(tag, queue, Settle.DEAD, reason=f"envelope: {why!r}"[:500])])

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        """As kombu's, and `reached` says how many subscribers there were."""
        if "_publish_batch" in kwargs:  # it is sent later, and then nobody asks
            super()._put_fanout(exchange, message, routing_key, **kwargs)
            return
        with self.conn_or_acquire() as client:
            self.reached = int(client.publish(self._get_publish_topic(exchange, routing_key), dumps(message)))

    def listen(self) -> Any:
        """Subscribe to what fan-out queues are bound to, once; returns the connection to be polled."""
        client = self.subclient
        topics = [t for queue in self.active_fanout_queues for t in self._get_subscribe_topics(queue)]
        subscribed = {bytes_to_str(pattern) for pattern in client.patterns}
        if missing := [topic for topic in topics if topic not in subscribed]:
            client.psubscribe(*missing)
        return client.connection

    def receive_fanout(self) -> bool:
        """Read and deliver what came in, some of it at a time; never waits for more.

        Kombu reads on for as long as there is something, and in a flood comes back when that is over.
        """
        client = self.subclient
        delivered = False
        for _ in range(_FANOUT_BATCH):
            delivered = self._receive_one(client) or delivered
            if client.connection is None or not client.connection.can_read(timeout=0):
                break
        return delivered

    def _receive_one(self, c: Any) -> bool:
        response = c.parse_response()
        if not isinstance(response, (list, tuple)):
            return False
        frame = self._handle_message(c, response)
        if not bytes_to_str(frame["type"]).endswith("message") or not frame["data"]:
            return False
        topic = bytes_to_str(frame["channel"])
        exchange = (topic.partition(".")[2] if topic.startswith("/") else topic).split("/", 1)[0]
        queue = self._fanout_to_queue.get(exchange)
        if queue is None:
            return False  # the consumer was cancelled while the frame was on its way
        try:
            message = loads(bytes_to_str(frame["data"]))
            if not isinstance(message, dict):
                raise TypeError(f"a JSON object is expected, not {type(message).__name__}")
        except _NOT_A_MESSAGE as exc:
            self.connection.drop(topic, repr(exc))
            return False
        return bool(self._deliver_fanout_message(message, exchange))

    def try_to(self, what: str, step: Any) -> None:
        """Do a step of closing down; a broker that is away does not keep a channel from closing."""
        try:
            step()
        except (BrokerError, RedisError, OSError) as exc:
            extra = {"event": "broker.close"}
            logger.warning("could not %s while closing, Redis will after a while: %s", what, exc, extra=extra)

    def close(self) -> None:
        if not self.closed and self._qos is not None:
            self.try_to("flush acks", self._qos.flush_acks)
        if self._ready:
            back = [Settlement(d.tag, d.queue, Settle.REQUEUE) for d in self._ready]
            self._ready.clear()
            self.try_to("give messages back", lambda: self.store.settle((), back))
        try:
            super().close()
        finally:
            self._drop_store()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._drop_store()

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _reserved(tag: object) -> bool:
    """Whether a tag was made by a claim of ours: 32 hex digits, a dot, a number. A UUID has no dot."""
    return isinstance(tag, str) and tag[32:33] == "."
