"""Publishing events to whoever watches, over any kombu transport."""

from __future__ import annotations

import time
from typing import Any

import kombu
from kombu.serialization import dumps

from greenq.broker.connections import broker_errors, connect
from greenq.config import Settings
from greenq.exceptions import BrokerError

_HEARTBEAT = 60.0  # seconds; AMQP


class EventLink:
    """One connection that only publishes; one owner."""

    def __init__(self, url: str, conf: Settings, hostname: str) -> None:
        self._url = url
        self._conf = conf
        self._headers = {"hostname": hostname}
        self._connection = connect(url, conf, heartbeat=_HEARTBEAT)
        self._beaten = time.monotonic()
        self._producer: kombu.Producer

    def open(self) -> None:
        """Connect, and declare the exchange as Celery does: a topic, but with Redis a fanout (wire.md 7.1).

        Raises:
            BrokerUnreachable: no connection.
        """
        conf, connection = self._conf, self._connection
        with broker_errors(connection, self._url):
            connection.ensure_connection(max_retries=1, timeout=conf.broker_connection_timeout)
            kind = "fanout" if connection.transport.driver_type == "redis" else "topic"
            exchange = kombu.Exchange(conf.event_exchange, type=kind, durable=True)
            channel = connection.default_channel
            exchange(channel).declare()
            self._producer = kombu.Producer(channel, exchange=exchange, auto_declare=False)

    def send(self, key: str, body: Any) -> None:
        """Publish an event, or a list of them.

        Raises:
            BrokerUnreachable: it may or may not have been sent.
        """
        content_type, encoding, payload = dumps(body, self._conf.event_serializer)
        with broker_errors(self._connection, self._url):
            self._producer.publish(
                payload,
                routing_key=key,
                content_type=content_type,
                content_encoding=encoding,
                headers=self._headers,
                delivery_mode=1,
            )

    def beat(self) -> None:
        """Keep the connection alive; call it every few seconds."""
        now = time.monotonic()
        with broker_errors(self._connection, self._url):
            interval = self._connection.get_heartbeat_interval() if self._connection.supports_heartbeats else 0
            if interval and now - self._beaten >= interval / 4:
                self._beaten = now
                self._connection.heartbeat_check(rate=4)

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        try:
            with broker_errors(self._connection, self._url):
                self._connection.release()
        except BrokerError:
            # A broken connection cannot say goodbye.
            self._connection.collect(socket_timeout=0.1)
