"""Hearing what nodes say in an election, and nothing else of what they tell the world."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import kombu

from greenq.broker.connections import connect
from greenq.broker.receiving import PICKLES, SUBSCRIBE, Receiver
from greenq.broker.stores import scheme_of
from greenq.config import Settings
from greenq.wire.control import BadFrame
from greenq.wire.elections import KEYS

# Where every node hears every event. Celery's gossip works over these too, but for the last, which it does not know.
SCHEMES = frozenset({"amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "unix", "sqlite"})
_MOST_BYTES = 2**20  # of one event; a larger one would hold up the leases while it is decoded
_HEARTBEAT = 60.0  # seconds; AMQP
_BEAT = 1.0
_LOOK = 0.001  # seconds in which a look sees whether there is anything
_STILL = 0.25  # seconds by which a wait may be too long


class Heard(NamedTuple):
    """Events as (routing key, body), in order, and what was none."""

    events: list[tuple[str, Any]]
    bad: list[BadFrame]


class ElectionLink:
    """One connection that hears `worker-elect` and `worker-elect-ack`; one owner.

    Other nodes' heartbeats and task events stay in the broker, but where kombu's Redis transport is told to have no
    patterns (`fanout_patterns`): there everything comes, and is thrown away unread.
    """

    def __init__(self, url: str, conf: Settings, hostname: str) -> None:
        self._receiver = Receiver(url, connect(url, conf, heartbeat=_HEARTBEAT))
        self._conf = conf
        self._name = f"{hostname}.elect.{conf.event_exchange}"
        self._caught_up = self._beaten = time.monotonic()

    def open(self) -> None:
        """Connect, declare the exchange as Celery does, and listen.

        Raises:
            BrokerUnreachable: no connection.
        """
        conf, receiver = self._conf, self._receiver
        receiver.connect(conf.broker_connection_timeout)
        # To AMQP a key of several words with any words behind it; on Redis a glob (wire.md 7.1).
        redis = receiver.connection.transport.driver_type == "redis"
        kind, key = ("fanout", "worker.elect*") if redis else ("topic", "worker.elect.#")
        # The name is the node's own: Redis remembers names of queues, and each new one would be one more there.
        queue = kombu.Queue(
            self._name,
            exchange=kombu.Exchange(conf.event_exchange, type=kind, durable=True),
            routing_key=key,
            durable=False,
            auto_delete=True,
            exclusive=True,
            # As long as a command may wait: a node that stood still has to learn with it what others have decided.
            message_ttl=conf.control_queue_ttl or None,
        )
        with receiver.errors():
            receiver.listen(queue, sorted({"json", conf.event_serializer} - PICKLES))
        receiver.drain(SUBSCRIBE)

    def look(self) -> Heard:
        """What has come in already, or nothing if all has been read; waits for a millisecond at most.

        Raises:
            BrokerUnreachable: when the connection is lost; what was said meanwhile was not heard.
        """
        heard = self._read(_LOOK)
        if not any(heard):
            self._caught_up = time.monotonic()
        return heard

    def wait(self, timeout: float) -> Heard:
        """Wait up to `timeout` seconds for something; raises as `look`."""
        began = time.monotonic()
        if began - self._beaten >= _BEAT:
            self._beaten = began
            self._receiver.beat()
        heard = self._read(timeout)
        # What comes after a wait has just come, unless the whole process stood still meanwhile.
        if time.monotonic() - began < timeout + _STILL:
            self._caught_up = time.monotonic()
        return heard

    def _read(self, timeout: float) -> Heard:
        receiver = self._receiver
        receiver.drain(timeout)
        events = []
        for message in receiver.take():
            key = message.delivery_info.get("routing_key")
            if key not in KEYS:
                continue
            try:
                events.append((key, _decoded(message)))
            except BadFrame as fault:
                receiver.bad.append(fault)
        bad, receiver.bad[:] = list(receiver.bad), ()
        return Heard(events, bad)

    @property
    def behind(self) -> float:
        """Seconds since there was nothing to read."""
        return time.monotonic() - self._caught_up

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        self._receiver.close()


def hears(url: str) -> bool:
    """Can nodes on this broker hear each other's events?"""
    return scheme_of(url) in SCHEMES


def _decoded(message: kombu.Message) -> Any:
    if len(message.body or b"") > _MOST_BYTES:
        raise BadFrame("too_large", f"{len(message.body)} bytes")
    try:
        return message.decode()
    except Exception as exc:  # whatever a serializer makes of a stranger's bytes
        raise BadFrame("undecodable", repr(exc)) from exc
