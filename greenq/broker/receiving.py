"""One connection that hears what is broadcast: commands, replies, elections."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Any

import kombu
from kombu.transport.virtual import Transport as VirtualTransport

from greenq.broker.connections import broker_errors
from greenq.exceptions import BrokerError, BrokerUnreachable
from greenq.wire.control import BadFrame

SUBSCRIBE = 0.02  # seconds for the broker to take a subscription
PICKLES = frozenset({"pickle", "application/x-python-serialize"})
_PROBE_EVERY = 10.0  # seconds of silence after which the broker is asked whether it is there


class Receiver:
    """A connection, what came in over it, and what came in that could not be read; one owner."""

    channel: Any
    consumer: kombu.Consumer
    queue: kombu.Queue

    def __init__(self, url: str, connection: kombu.Connection) -> None:
        self.url = url
        self.connection = connection
        self.inbox: list[kombu.Message] = []
        self.bad: list[BadFrame] = []
        self._dropped = 0
        self._beaten = self._heard = time.monotonic()

    def errors(self) -> Any:
        """Turn the transport's errors into ours."""
        return broker_errors(self.connection, self.url)

    def connect(self, timeout: float) -> None:
        """Connect, within `timeout` seconds, and make the channel.

        Raises:
            BrokerUnreachable: no connection.
        """
        with self.errors():
            self.connection.ensure_connection(max_retries=1, timeout=timeout)
            self.channel = self.connection.default_channel
            self.channel.Message = _never_inflated(self.channel.Message)

    def listen(self, queue: kombu.Queue, accept: Sequence[str]) -> None:
        """Declare and bind a queue, and have what comes to it put into `inbox`."""
        self.consumer = kombu.Consumer(
            self.channel,
            [queue],
            no_ack=True,
            on_message=self.inbox.append,
            accept=accept,
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
    """A channel's class of messages, without what it inflates: nobody sends a compressed frame here but as a bomb.

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
