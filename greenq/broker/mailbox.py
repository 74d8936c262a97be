"""The control plane's mailboxes over any kombu transport: a node's for commands, a client's for replies.

Both are Celery's `pidbox` on the wire (wire.md 4). An instance owns one connection and has one owner.
"""

from __future__ import annotations

import errno
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import kombu
from kombu.serialization import dumps
from kombu.transport.virtual import Transport as VirtualTransport

from greenq.broker.connections import broker_errors, connect
from greenq.broker.stores import scheme_of
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError
from greenq.wire.control import (
    BadFrame,
    ControlFrame,
    LogicalClock,
    command_exchange,
    node_queue,
    read_clock,
    read_frame,
    reply_exchange,
    reply_queue,
)

logger = logging.getLogger(__name__)

_PICKLES = frozenset({"pickle", "application/x-python-serialize"})
_SUBSCRIBE = 0.02  # seconds for the broker to take a subscription
_PROBE_EVERY = 10.0  # seconds of silence after which the broker is asked whether it is there

OnBadFrame = Callable[[BadFrame], None]


def serializer_of(conf: Settings) -> str:
    """The serializer of commands and replies: the tasks' one, but never pickle."""
    name: str = conf.task_serializer
    return "json" if name in _PICKLES else name


def accepted_by(conf: Settings) -> list[str]:
    """What is let in: `accept_content` without pickle, and JSON always, which cannot run anything."""
    return sorted({"json", *(kind for kind in conf.accept_content if kind not in _PICKLES)})


class _Link:
    """One connection with the control plane's exchanges declared on it."""

    def __init__(self, url: str, conf: Settings, heartbeat: float = 0.0) -> None:
        self.url = url
        self.conf = conf
        self.namespace: str = conf.control_exchange
        self.connection = connect(url, conf, heartbeat=heartbeat, options={"confirm_publish": True})
        self.inbox: list[kombu.Message] = []
        self.bad: list[BadFrame] = []
        self._serializer = serializer_of(conf)
        self._accept = accepted_by(conf)
        self._beaten = self._heard = time.monotonic()

    def open(self) -> None:
        """Connect and declare both exchanges."""
        transient = {"durable": False, "delivery_mode": "transient"}
        with self.errors():
            self.connection.ensure_connection(max_retries=1, timeout=self.conf.broker_connection_timeout)
            self.channel = self.connection.default_channel
            self.commands = kombu.Exchange(command_exchange(self.namespace), type="fanout", **transient)
            self.replies = kombu.Exchange(reply_exchange(self.namespace), type="direct", **transient)
            for exchange in (self.commands, self.replies):
                exchange(self.channel).declare()
            self.producer = kombu.Producer(self.channel, auto_declare=False)

    def errors(self) -> Any:
        """Turn the transport's errors into ours."""
        return broker_errors(self.connection, self.url)

    def consume(self, name: str, exchange: kombu.Exchange, key: str = "") -> None:
        """Declare a mailbox queue and listen to it."""
        conf = self.conf
        durable = bool(conf.control_queue_durable)
        if durable and conf.control_queue_exclusive:
            raise ConfigError("control_queue_durable and control_queue_exclusive may not both be true")
        queue = kombu.Queue(
            name,
            exchange=exchange,
            routing_key=key,
            durable=durable,
            auto_delete=not durable,
            exclusive=bool(conf.control_queue_exclusive),
            expires=conf.control_queue_expires or None,
            message_ttl=conf.control_queue_ttl or None,
        )
        self.consumer = kombu.Consumer(
            self.channel,
            [queue],
            no_ack=True,
            on_message=self.inbox.append,
            accept=self._accept,
            on_decode_error=self._undecodable,
        )
        self.queue = queue(self.channel)
        self.consumer.consume()

    def _undecodable(self, _message: Any, exc: Exception) -> None:
        self.bad.append(BadFrame("undecodable", repr(exc)))

    def drain(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for one delivery into `inbox`; what cannot be read goes to `bad`.

        Raises:
            BrokerUnreachable: when the connection is lost.
        """
        with self.errors():
            try:
                self.connection.drain_events(timeout=timeout)
            except TimeoutError as exc:
                if exc.errno == errno.ETIMEDOUT:  # the peer's silence, not the end of our patience
                    raise
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
                # A virtual transport has read the frame off its socket before it stumbles over what is in it:
                # the connection is as good as before. Of a half-read AMQP frame that cannot be said.
                if not isinstance(self.connection.transport, VirtualTransport):
                    raise BrokerUnreachable(f"what came from the broker makes no sense: {exc!r}") from exc
                self.bad.append(BadFrame("undecodable", repr(exc)))
            else:
                self._heard = time.monotonic()

    def take(self) -> list[kombu.Message]:
        """Empty the inbox."""
        taken, self.inbox[:] = list(self.inbox), ()
        return taken

    def send(self, body: Mapping[str, Any], exchange: kombu.Exchange, key: str, headers: Mapping[str, Any]) -> None:
        """Publish one message; a `body` that cannot be serialized raises what its serializer raises."""
        content_type, encoding, payload = dumps(body, self._serializer)
        with self.errors():
            self.producer.publish(
                payload,
                exchange=exchange.name,
                routing_key=key,
                content_type=content_type,
                content_encoding=encoding,
                headers=dict(headers),
                delivery_mode=1,
            )

    def beat(self) -> None:
        """Notice a connection that died without a word; call it about once a second."""
        now = time.monotonic()
        with self.errors():
            interval = self.connection.get_heartbeat_interval() if self.connection.supports_heartbeats else 0
            if interval and now - self._beaten >= interval / 4:
                self._beaten = now
                self.connection.heartbeat_check(rate=4)
            if now - self._heard >= _PROBE_EVERY:
                self._heard = now
                # Declaring again what is there changes nothing and asks the broker on every transport.
                self.queue.queue_declare()

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        try:
            with self.errors():
                self.connection.release()
        except BrokerError:
            # A broken connection cannot say goodbye; the broker drops what belonged to it.
            self.connection.collect(socket_timeout=0.1)


class NodeMailbox:
    """Where one node reads commands and answers them."""

    def __init__(self, url: str, conf: Settings, hostname: str, clock: LogicalClock, on_bad: OnBadFrame) -> None:
        self._link = _Link(url, conf, heartbeat=conf.broker_heartbeat or 0)
        self._hostname = hostname
        self._clock = clock
        self._on_bad = on_bad
        self._expire_replies = scheme_of(url).startswith(("redis", "unix"))
        self._reply_ttl = int((conf.control_queue_ttl or 300.0) * 1000)
        self._listening = False

    def open(self) -> None:
        """Connect, declare and listen.

        Raises:
            BrokerUnreachable: with the reason; a live node of the same name is one on AMQP.
        """
        self._link.open()
        name = node_queue(self._hostname, self._link.namespace)
        try:
            with self._link.errors():
                self._link.consume(name, self._link.commands)
            self._listening = True
        except BrokerUnreachable as exc:
            if getattr(exc.__cause__, "code", 0) == 405:
                raise BrokerUnreachable(
                    f"another live node is called {self._hostname}: give each its own name with -n"
                ) from exc
            raise
        # kombu's Redis channel subscribes when it first waits: before that, commands are published to nobody.
        self._link.drain(_SUBSCRIBE)

    def read(self, timeout: float) -> list[ControlFrame]:
        """Wait up to `timeout` seconds; return the commands meant for this node. Bad ones go to `on_bad`."""
        link = self._link
        if not link.inbox:
            link.drain(timeout)
        frames = [frame for message in link.take() if (frame := self._frame(message)) is not None]
        for fault in link.bad:
            self._on_bad(fault)
        link.bad.clear()
        return [frame for frame in frames if frame.is_for(self._hostname)]

    def _frame(self, message: kombu.Message) -> ControlFrame | None:
        try:
            body = message.decode()
        except Exception as exc:  # noqa: BLE001  (whatever a serializer makes of a stranger's bytes)
            self._on_bad(BadFrame("undecodable", repr(exc)))
            return None
        try:
            frame = read_frame(body, message.headers, self._link.namespace)
        except BadFrame as fault:
            self._on_bad(fault)
            return None
        self._clock.adjust(frame.clock)
        return frame

    def reply(self, frame: ControlFrame, data: object) -> None:
        """Answer a command. What cannot be serialized is answered by an error that says so."""
        try:
            self._send(frame, data)
        except BrokerError:
            raise
        except Exception as exc:  # noqa: BLE001  (a user's command may return anything)
            self._send(frame, {"error": f"the reply of {frame.method} cannot be serialized: {exc!r}"[:2000]})

    def _send(self, frame: ControlFrame, data: object) -> None:
        link = self._link
        headers = {"ticket": frame.ticket, "clock": self._clock.forward()}
        link.send({self._hostname: data}, link.replies, frame.reply_key, headers)
        if self._expire_replies:
            # A reply to a client that has gone would lie in its list for ever: Redis has no message TTL.
            channel: Any = link.channel
            with link.errors(), channel.conn_or_acquire() as client:
                client.pexpire(reply_queue(frame.reply_key, link.namespace), self._reply_ttl)

    def beat(self) -> None:
        """Keep the connection alive and notice its death; call it about once a second."""
        self._link.beat()

    def close(self, *, forget: bool = False) -> None:
        """Let go; `forget` deletes the mailbox queue too."""
        if forget and self._listening:
            try:
                with self._link.errors():
                    self._link.consumer.cancel()
                    self._link.queue.delete()
            except BrokerError as exc:
                logger.debug("The mailbox is left to expire by itself: %s", exc)
        self._link.close()


class ReplyMailbox:
    """Where one client sends commands from and reads replies, over one connection and one reply queue.

    The queue lives as long as the mailbox: a client with a queue for each call leaves a blocking read behind
    on the last call's, and loses the next reply in it (wire.md 3.8).
    """

    def __init__(self, url: str, conf: Settings, clock: LogicalClock) -> None:
        self._link = _Link(url, conf)
        self._clock = clock
        self.key = str(uuid.uuid4())
        self.listening = False
        self._link.open()

    def listen(self) -> None:
        """Declare and bind the reply queue, before the first command that wants a reply."""
        if not self.listening:
            with self._link.errors():
                self._link.consume(reply_queue(self.key, self._link.namespace), self._link.replies, self.key)
            self.listening = True

    def send(self, body: Mapping[str, Any], timeout: float) -> None:
        """Publish a command to every node; returns when the broker has it."""
        link = self._link
        headers = {"clock": self._clock.forward(), "expires": time.time() + timeout if timeout else 0}
        link.send(body, link.commands, "", headers)

    def receive(self, ticket: str, timeout: float) -> list[dict[str, Any]]:
        """Wait up to `timeout` seconds for something; return the replies to `ticket`, {node: data} each."""
        self._link.drain(timeout)
        self._link.bad.clear()
        found = []
        for message in self._link.take():
            self._clock.adjust(read_clock(message.headers.get("clock")))
            if message.headers.get("ticket", ticket) == ticket:
                body = _decoded(message)
                if body is not None:
                    found.append(body)
        return found

    def close(self) -> None:
        """Delete the reply queue and its binding, and let go of the connection."""
        link = self._link
        try:
            with link.errors():
                if self.listening:
                    link.consumer.cancel()
                    link.queue.delete()
        except BrokerError as exc:
            logger.debug("The reply queue is left to expire by itself: %s", exc)
        self.listening = False
        link.close()


def _decoded(message: kombu.Message) -> dict[str, Any] | None:
    try:
        body = message.decode()
    except Exception:  # noqa: BLE001  (a node that answers in what we do not accept has not answered us)
        return None
    return body if isinstance(body, dict) else None
