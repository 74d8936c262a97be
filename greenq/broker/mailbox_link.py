"""One connection of the control plane: its exchanges, one mailbox queue, and what is sent and comes in over it."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from typing import Any

import kombu
from kombu.serialization import dumps
from kombu.transport.virtual import Transport as VirtualTransport

from greenq.broker.connections import broker_errors, connect
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError
from greenq.wire.control import BadFrame, command_exchange, reply_exchange

_PICKLES = frozenset({"pickle", "application/x-python-serialize"})
_PROBE_EVERY = 10.0  # seconds of silence after which the broker is asked whether it is there


def serializer_of(conf: Settings) -> str:
    """The serializer of commands and replies: the tasks' one, but never pickle."""
    name: str = conf.task_serializer
    return "json" if name in _PICKLES else name


def accepted_by(conf: Settings) -> list[str]:
    """What is let in: `accept_content` without pickle, and JSON always, which cannot run anything."""
    return sorted({"json", *(kind for kind in conf.accept_content if kind not in _PICKLES)})


class MailboxLink:
    """One connection with the control plane's exchanges declared on it."""

    def __init__(self, url: str, conf: Settings, heartbeat: float = 0.0) -> None:
        self.url = url
        self.conf = conf
        self.namespace: str = conf.control_exchange
        self.connection = connect(url, conf, heartbeat=heartbeat, options={"confirm_publish": True})
        self.inbox: list[kombu.Message] = []
        self.bad: list[BadFrame] = []
        self._returned = False
        self._dropped = 0
        self._serializer = serializer_of(conf)
        self._accept = accepted_by(conf)
        self._beaten = self._heard = time.monotonic()

    def open(self) -> None:
        """Connect and declare both exchanges."""
        transient = {"durable": False, "delivery_mode": "transient"}
        with self.errors():
            self.connection.ensure_connection(max_retries=1, timeout=self.conf.broker_connection_timeout)
            self.channel = self.connection.default_channel
            self.channel.Message = _never_inflated(self.channel.Message)
            self.commands = kombu.Exchange(command_exchange(self.namespace), type="fanout", **transient)
            self.replies = kombu.Exchange(reply_exchange(self.namespace), type="direct", **transient)
            for exchange in (self.commands, self.replies):
                exchange(self.channel).declare()
            self.producer = kombu.Producer(
                self.channel, auto_declare=False, on_return=self._come_back if self.amqp else None
            )

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
        # Frames that are no messages at all; greenq's own transports count them where kombu's would stumble.
        dropped = getattr(self.connection.transport, "dropped", 0)
        self.bad.extend(BadFrame("undecodable", "not a message") for _ in range(dropped - self._dropped))
        self._dropped = dropped

    def take(self) -> list[kombu.Message]:
        """Empty the inbox."""
        taken, self.inbox[:] = list(self.inbox), ()
        return taken

    def send(
        self,
        body: Mapping[str, Any],
        exchange: kombu.Exchange,
        key: str,
        headers: Mapping[str, Any],
        *,
        mandatory: bool = False,
    ) -> None:
        """Publish one message; a `body` that cannot be serialized raises what its serializer raises.

        With `mandatory`, an AMQP broker says so where no queue is bound; see `reached`.
        """
        self._returned = False
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
                **({"mandatory": True} if mandatory and self.amqp else {}),
            )

    @property
    def amqp(self) -> bool:
        """Is the broker one of AMQP's own, with mandatory messages?"""
        return not isinstance(self.connection.transport, VirtualTransport)

    def reached(self) -> int | None:
        """How many mailboxes the last broadcast went to; None where the broker does not say."""
        if self.amqp:
            return 0 if self._returned else None  # it counts no further
        found: int | None = getattr(self.channel, "reached", None)
        return found

    def _come_back(self, *_message: object) -> None:
        self._returned = True

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


def _never_inflated(kind: Any) -> Any:
    """A channel's class of messages, without what it inflates: nobody sends a compressed command but as a bomb.

    The class is kombu's, another for each transport, and each inflates before anybody may look.
    """

    class Message(kind):  # type: ignore[misc]
        @property
        def headers(self) -> dict[str, Any]:
            return self._given_headers

        @headers.setter
        def headers(self, given: object) -> None:
            kept = given if isinstance(given, dict) else {}
            self._given_headers = {name: value for name, value in kept.items() if name != "compression"}

    return Message
