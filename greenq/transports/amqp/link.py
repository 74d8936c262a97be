"""Consume from RabbitMQ: one connection, one channel, acknowledgements in one write a batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from greenq.transports.amqp.connection import CLOSE_TIMEOUT, ENOUGH, LOST, connect
from greenq.transports.amqp.frames import (
    HEARTBEAT,
    Pushed,
    ack_frames,
    cancel_frame,
    consume_frame,
    decode_content,
    qos_frame,
    requeue_frame,
)
from greenq.transports.link import Arrival, LinkOptions, Parts

SILENCE = 20.0  # seconds without a byte from a broker that was asked for one, after which it is gone

_ROUNDS = 64  # times 32 acks: more than a sensible prefetch leaves to the last moment
_BACKLOG = 65536  # bytes the broker has not taken: it reads nothing, heartbeats neither


class AmqpLink:
    """A Link to RabbitMQ.

    What settles and steers is frames without content and without a reply, which any fiber or thread may
    write (see `Wire`): a settlement needs neither the owner of the link nor its attention.
    """

    def __init__(self, url: str, options: LinkOptions) -> None:
        self._connection = connect(url, options)
        self._numbers = count(1)
        self._queues: dict[str, str] = {}  # consumer tag -> queue; stays for what comes after a cancel
        self._consumers: dict[str, tuple[str, Mapping[str, Any]]] = {}  # queue -> consumer tag, arguments
        self._unsettled: set[Any] = set()
        self._count = 0
        self._acked = 0
        self._asked_at = 0.0
        beat = self._connection.heartbeat or SILENCE
        self._interval = min(beat, SILENCE) / 2
        self._grace = min(2 * beat, SILENCE) - self._interval
        try:
            self._amqp_channel = self._connection.channel()
        except LOST as exc:
            self._connection.collect()
            raise self._connection.lost(exc) from exc
        self._channel: int = self._amqp_channel.channel_id
        # RabbitMQ counts for a whole channel from 3.3 until 4.0, for single consumers always.
        version = str(self._connection.server_properties.get("version", ""))
        self._shared = version.startswith("3.")

    @property
    def shared_prefetch(self) -> bool:
        """See Link."""
        return self._shared

    def declare(self, queue: Any) -> None:
        """See Link."""
        self._connection.declare(queue)

    def unshare_prefetch(self) -> None:
        """See Link."""
        if self._shared:
            self._send(qos_frame(self._channel, 0, shared=True))
            self._shared = False
            self._renew_consumers()

    def consume(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """See Link."""
        consumer = f"greenq-{next(self._numbers)}"
        self._queues[consumer] = queue
        self._consumers[queue] = (consumer, arguments)
        self._send(consume_frame(self._channel, queue, consumer, arguments))

    def cancel(self, queue: str) -> None:
        """See Link."""
        consumer, _ = self._consumers.pop(queue, ("", {}))
        if consumer:
            self._send(cancel_frame(self._channel, consumer))

    def prefetch(self, count: int) -> None:
        """See Link."""
        if count != self._count:
            self._count = count
            self._renew_consumers()

    def _renew_consumers(self) -> None:
        self._send(self._qos())
        if not self._shared:
            # A consumer keeps the count it began with. Its successor has the new one, and what was
            # delivered stays with the channel.
            for queue, (_, arguments) in list(self._consumers.items()):
                self.cancel(queue)
                self.consume(queue, arguments)

    def _qos(self) -> bytes:
        return qos_frame(self._channel, self._count, shared=self._shared)

    def wait(self, timeout: float) -> None:
        """See Link."""
        connection = self._connection
        until = time.monotonic() + timeout
        try:
            while not self._read():
                now = time.monotonic()
                # Judged right after a read that found nothing: a hub that computed for minutes has only not
                # looked, and the answer would lie in the socket.
                if self._asked_at and now - self._asked_at > self._grace:
                    quiet = now - connection.wire.received_at
                    raise TimeoutError(f"no byte from the broker for {quiet:.0f} s")
                self.beat()
                if now >= until or connection.pause(min(until - now, self._interval)):
                    return
        except LOST as exc:
            raise self._connection.lost(exc) from exc

    def _read(self) -> bool:
        """Read without waiting; whether there is news for the owner."""
        connection = self._connection
        before = len(connection.deliveries)
        if before >= ENOUGH or connection.drain():
            self._asked_at = 0.0
        return len(connection.deliveries) > before or bool(connection.withdrawn)

    def wake(self) -> None:
        """See Link."""
        self._connection.bell.ring()

    def take(self, limit: int) -> list[Arrival]:
        """See Link."""
        deliveries = self._connection.deliveries
        arrivals = []
        for _ in range(min(limit, len(deliveries))):
            pushed = deliveries.popleft()
            self._unsettled.add(pushed.tag)
            arrivals.append(Arrival(self._queues[pushed.consumer], pushed.tag, pushed.body, pushed))
        return arrivals

    def parts(self, arrival: Arrival) -> Parts:
        """See Link."""
        pushed: Pushed = arrival.source
        properties = decode_content(pushed.header)
        headers = properties.pop("headers", None) or {}
        properties["delivery_info"] = {
            "exchange": pushed.exchange,
            "routing_key": pushed.routing_key,
            "redelivered": pushed.redelivered,
        }
        return Parts(headers, properties, properties.get("content_type"), properties.get("content_encoding"))

    def ack(self, tags: Sequence[str | int]) -> int:
        """See Link. Whether the broker has read them is never known: AMQP does not answer an ack."""
        unsettled = self._unsettled
        ours: list[Any] = [tag for tag in tags if tag in unsettled]  # an unknown one would cost us the channel
        unsettled.difference_update(ours)
        if ours:
            self._acked += len(ours)
            self._send(ack_frames(self._channel, ours))
        return len(ours)

    def requeue(self, tag: str | int) -> bool:
        """See Link."""
        if tag not in self._unsettled:
            return False
        self._unsettled.discard(tag)
        self._send(requeue_frame(self._channel, int(tag)))
        return True

    def withdrawn(self) -> list[str]:
        """See Link."""
        consumers, self._connection.withdrawn = self._connection.withdrawn, []
        queues = [self._queues[consumer] for consumer in consumers]
        for queue in queues:
            self._consumers.pop(queue, None)
        return queues

    def beat(self) -> None:
        """See Link.

        After some seconds without a byte the broker is asked for one: setting the prefetch again changes
        nothing and is answered at once. A half-open connection so shows within `SILENCE` seconds, also with
        Celery's heartbeat of two minutes.
        """
        wire = self._connection.wire
        now = time.monotonic()
        if wire.pending > _BACKLOG:
            return
        if not self._asked_at and now - wire.received_at >= self._interval:
            self._asked_at = now
            self._send(self._qos())
        elif now - wire.sent_at >= self._interval:
            self._send(HEARTBEAT)

    def _send(self, frames: bytes) -> None:
        try:
            self._connection.send(frames)
        except LOST as exc:
            self.wake()  # the owner finds the same at its next read
            raise self._connection.lost(exc) from exc

    def close(self) -> None:
        """See Link. The broker's answer to the close says that it has read every ack before it."""
        connection = self._connection
        if not self._shared and connection.connected and not connection.broken:
            connection.patience = CLOSE_TIMEOUT
            self._await_acks()
        connection.finish()

    def _await_acks(self) -> None:
        """Let the acks reach their quorum queues: a channel passes on 32 at a time, its end forgets the rest.

        The answer to a passive declaration comes from the queue itself, behind what it has done before, and
        lets the channel send the next.
        """
        try:
            for _ in range(min(self._acked // 32 + 2, _ROUNDS)):
                for queue in set(self._queues.values()):
                    self._amqp_channel.queue_declare(queue, passive=True)
        except LOST as exc:
            self._connection.lost(exc)  # what was not acknowledged comes back
