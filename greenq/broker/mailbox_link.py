"""One connection of the control plane: its exchanges, one mailbox queue, and what is sent and comes in over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kombu
from kombu.serialization import dumps
from kombu.transport.virtual import Transport as VirtualTransport

from greenq.broker.connections import connect
from greenq.broker.receiving import PICKLES, Receiver
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.wire.control import command_exchange, reply_exchange


def serializer_of(conf: Settings) -> str:
    """The serializer of commands and replies: the tasks' one, but never pickle."""
    name: str = conf.task_serializer
    return "json" if name in PICKLES else name


def accepted_by(conf: Settings) -> list[str]:
    """What is let in: `accept_content` without pickle, and JSON always, which cannot run anything."""
    return sorted({"json", *(kind for kind in conf.accept_content if kind not in PICKLES)})


class MailboxLink(Receiver):
    """One connection with the control plane's exchanges declared on it."""

    def __init__(self, url: str, conf: Settings, heartbeat: float = 0.0) -> None:
        super().__init__(url, connect(url, conf, heartbeat=heartbeat, options={"confirm_publish": True}))
        self.conf = conf
        self.namespace: str = conf.control_exchange
        self._returned = False
        self._serializer = serializer_of(conf)
        self._accept = accepted_by(conf)

    def open(self) -> None:
        """Connect and declare both exchanges."""
        transient = {"durable": False, "delivery_mode": "transient"}
        self.connect(self.conf.broker_connection_timeout)
        with self.errors():
            self.commands = kombu.Exchange(command_exchange(self.namespace), type="fanout", **transient)
            self.replies = kombu.Exchange(reply_exchange(self.namespace), type="direct", **transient)
            for exchange in (self.commands, self.replies):
                exchange(self.channel).declare()
            self.producer = kombu.Producer(
                self.channel, auto_declare=False, on_return=self._come_back if self.amqp else None
            )

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
        self.listen(queue, self._accept)

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
