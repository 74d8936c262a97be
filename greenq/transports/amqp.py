"""RabbitMQ through py-amqp, with a socket nobody waits on in the middle of a frame, and a fast reader."""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import kombu
from amqp.exceptions import AMQPError, ConsumerCancelled, PreconditionFailed
from amqp.transport import SSLTransport, TCPTransport
from kombu.transport import pyamqp

from greenq.exceptions import BrokerUnreachable
from greenq.transports.amqp_frames import (
    HEARTBEAT,
    FrameReader,
    Pushed,
    ack_frames,
    cancel_frame,
    consume_frame,
    decode_content,
    qos_frame,
    requeue_frame,
)
from greenq.transports.amqp_tables import FrameError
from greenq.transports.link import Arrival, Doorbell, LinkOptions, Parts, QueueMismatch

REPLY_TIMEOUT = 10.0  # seconds for the broker to answer a declaration or a close
SILENCE = 20.0  # seconds without a byte, though we asked, after which the broker is gone
_CHUNK = 65536  # under malloc's threshold for mapping pages anew at each read
_BACKLOG = 65536  # bytes the broker has not taken: then it reads nothing, heartbeats neither
_ENOUGH = 10_000  # deliveries not handed out: the rest stays in the socket (prefetch 0 has no other bound)
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
LOST = (OSError, AMQPError, FrameError)


class Wire:
    """The socket of one connection: non-blocking, written to by any fiber or thread.

    py-amqp's `sendall` may switch fibers in the middle of a frame, and the heartbeat of a native thread
    would then cut into it. Here whole frames are appended and what the kernel takes is sent, all while
    holding `_token`; a holder never waits, so no fiber and no thread can find it taken for long. The token
    is an element of a deque because pop and append are atomic whatever library has patched the locks, and a
    patched lock must not be shared by a hub and a native thread. With TLS the same token keeps a read and a
    write from entering OpenSSL at once.
    """

    def __init__(self, sock: Any) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._token: deque[None] = deque((None,))
        self._pending = bytearray()
        self.sent_at = self.received_at = time.monotonic()

    @property
    def pending(self) -> int:
        """Bytes the kernel has not taken yet."""
        return len(self._pending)

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def write(self, frames: bytes | memoryview) -> None:
        """Append whole frames and send what can be sent. Raises OSError."""
        self._enter()
        try:
            if self._pending:
                self._pending += frames
                del self._pending[: self._send(self._pending)]
            else:
                sent = self._send(frames)
                if sent < len(frames):
                    self._pending += frames[sent:]
        finally:
            self._token.append(None)
        self.sent_at = time.monotonic()

    def flush(self) -> None:
        """Send of what is pending as much as can be sent. Raises OSError."""
        if self._pending:
            self.write(b"")

    def read(self) -> bytes:
        """What has arrived, b"" if nothing. Raises OSError, also at the end of the stream."""
        self._enter()
        try:
            data: bytes = self._sock.recv(_CHUNK)
        except _WOULD_BLOCK:
            return b""
        finally:
            self._token.append(None)
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        self.received_at = time.monotonic()
        return data

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return int(self._sock.send(data))
        except _WOULD_BLOCK:
            return 0

    def _enter(self) -> None:
        while True:
            try:
                return self._token.pop()
            except IndexError:
                time.sleep(0)


class _Wired:
    """Makes a transport of py-amqp send through a Wire once it is connected."""

    wire: Wire
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.wire = Wire(self.sock)

    def write(self, frames: memoryview) -> None:
        self.wire.write(frames)


class _TcpTransport(_Wired, TCPTransport):  # type: ignore[misc]
    """Plain TCP."""


class _TlsTransport(_Wired, SSLTransport):  # type: ignore[misc]
    """TLS."""


class AmqpConnection(pyamqp.Connection):  # type: ignore[misc]
    """py-amqp's connection, reading in large pieces; deliveries are appended to `deliveries` and go nowhere
    else, so that no answer one waits for can start a task."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.reader = FrameReader()
        self.deliveries: deque[Pushed] = deque()
        self.bell = Doorbell()
        self.withdrawn: list[str] = []  # consumers the broker has cancelled
        self._wired: Any = None
        super().__init__(*args, **options)

    def Transport(self, host: str, connect_timeout: float, ssl: Any = False, *args: Any, **options: Any) -> Any:  # noqa: N802  (py-amqp's name)
        names = ("read_timeout", "write_timeout")
        options.update(zip(names, args, strict=False))
        kind = _TlsTransport if ssl else _TcpTransport
        self._wired = kind(host, connect_timeout=connect_timeout, ssl=ssl, **options)
        return self._wired

    @property
    def wire(self) -> Wire:
        """The socket; valid until the connection is collected, and then an OSError at each use."""
        wire: Wire = self._wired.wire
        return wire

    def send(self, frames: bytes) -> None:
        """Write frames of our own making; any fiber or thread. Raises OSError."""
        self.wire.write(frames)
        self.bytes_sent += 1

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read until one frame that is no delivery was handled; py-amqp calls it while it waits for answers."""
        until = time.monotonic() + (REPLY_TIMEOUT if timeout is None else timeout)
        while True:
            handled, result = self.handle()
            if handled:
                return result
            if not self.fill():
                left = until - time.monotonic()
                if left <= 0:
                    raise socket.timeout("the broker does not answer")
                self.pause(left)

    def handle(self) -> tuple[bool, Any]:
        """Take what was read up to and with the first frame that is no delivery; whether there was one."""
        before = self.reader.frames
        frame = self.reader.take(self.deliveries)
        # on_inbound_frame counts its own; these counters are what py-amqp's heartbeat check goes by.
        self.bytes_recv += self.reader.frames - before - (frame is not None)
        if frame is None:
            return False, None
        try:
            return True, self.on_inbound_frame(frame)
        except ConsumerCancelled as exc:
            self.withdrawn.append(str(exc.reply_text))
            return True, True

    def fill(self) -> bool:
        """Move what has arrived from the socket to the reader; False if nothing has."""
        data = self.wire.read()
        if data:
            self.reader.feed(data)
        return bool(data)

    def pause(self, timeout: float) -> bool:
        """Wait for bytes, for room for what is pending, or for the bell; True if it rang."""
        wire = self.wire
        rang = self.bell.wait(timeout, wire.fileno(), writing=wire.pending > 0)
        wire.flush()
        return rang


class _Transport(pyamqp.Transport):  # type: ignore[misc]
    Connection = AmqpConnection


class _SecureTransport(pyamqp.SSLTransport):  # type: ignore[misc]
    Connection = AmqpConnection


def is_amqp(url: str) -> bool:
    """Whether the URL is one for py-amqp."""
    return urlsplit(url).scheme in {"", "amqp", "amqps", "pyamqp"}


def connect(url: str, options: LinkOptions) -> AmqpConnection:
    """Open a connection; of several addresses joined by `;`, to the first that answers.

    Raises:
        BrokerUnreachable: none does; the message names the last one and its reason.
    """
    failure: Exception | None = None
    for address in url.split(";"):
        client = kombu.Connection(
            address,
            transport=_SecureTransport if address.startswith("amqps") else _Transport,
            heartbeat=options.heartbeat,
            connect_timeout=options.connect_timeout,
            ssl=options.ssl,
            login_method=options.login_method,
            transport_options={
                "client_properties": {"connection_name": options.name},
                **options.transport_options,
            },
        )
        try:
            connection: AmqpConnection = client.transport.establish_connection()
        except LOST as exc:
            failure = BrokerUnreachable(f"no connection to {client.as_uri()}: {exc or type(exc).__name__}")
            failure.__cause__ = exc
        else:
            return connection
    assert failure is not None, "a URL has at least one address"
    raise failure


class AmqpLink:
    """A Link over one connection and one channel; acknowledgements go out in one write a batch.

    Writers: everything but the answers py-amqp waits for is frames without content and without a reply
    (`Wire` says why any fiber may write them), so a settlement needs neither the owner nor its attention.
    """

    def __init__(self, url: str, options: LinkOptions) -> None:
        self._connection = connect(url, options)
        self._numbers = count(1)
        self._queues: dict[str, str] = {}  # consumer tag -> queue; kept after cancelling, for what still comes
        self._consumers: dict[str, tuple[str, Mapping[str, Any]]] = {}  # queue -> consumer tag, arguments
        self._unsettled: set[int] = set()
        self._count = 0
        self._asked_at = 0.0
        beat = self._connection.heartbeat or 2 * SILENCE
        self._interval = min(beat / 2, SILENCE / 2)
        self._grace = min(2 * beat, SILENCE) - self._interval
        try:
            self._channel = self._connection.channel()
        except LOST as exc:
            raise self._lost(exc) from exc
        self._number: int = self._channel.channel_id
        version = str(self._connection.server_properties.get("version", "")).split(".")
        # From 4.0 on the global count is gone; quorum queues never knew it.
        self.shared_prefetch = version[0] == "3"

    def declare(self, queue: Any) -> None:
        """See Link. On a channel of its own: a refusal closes the channel, with all that is unsettled on it."""
        try:
            channel = self._connection.channel()
            try:
                queue(channel).declare()
            finally:
                channel.close()
        except PreconditionFailed as exc:
            argument, current = _mismatch(str(exc.reply_text))
            raise QueueMismatch(queue.name, argument, current, str(exc.reply_text)) from exc
        except LOST as exc:
            raise self._lost(exc) from exc

    def consume(self, queue: str, arguments: Mapping[str, Any]) -> None:
        consumer = f"greenq-{next(self._numbers)}"
        self._queues[consumer] = queue
        self._consumers[queue] = (consumer, arguments)
        self._send(consume_frame(self._number, queue, consumer, arguments))

    def cancel(self, queue: str) -> None:
        consumer, _ = self._consumers.pop(queue, ("", {}))
        if consumer:
            self._send(cancel_frame(self._number, consumer))

    def prefetch(self, count: int) -> None:
        """See Link. Where the count is a consumer's own it is fixed for its life: another one takes over."""
        if count == self._count:
            return
        self._count = count
        self._send(self._qos())
        if not self.shared_prefetch:
            for queue, (_, arguments) in list(self._consumers.items()):
                self.cancel(queue)
                self.consume(queue, arguments)

    def _qos(self) -> bytes:
        return qos_frame(self._number, self._count, shared=self.shared_prefetch)

    def wait(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        try:
            while not self._read():
                self.beat()
                left = until - time.monotonic()
                if left <= 0 or self._connection.pause(min(left, self._interval)):
                    return
                self._judge()
        except LOST as exc:
            raise self._lost(exc) from exc

    def _read(self) -> bool:
        """Whether there is something for the owner; nothing in here waits."""
        connection = self._connection
        before = len(connection.deliveries)
        while len(connection.deliveries) < _ENOUGH and connection.fill():
            self._asked_at = 0.0
            while connection.handle()[0]:
                continue
        return len(connection.deliveries) > before or bool(connection.withdrawn)

    def _judge(self) -> None:
        if self._asked_at and time.monotonic() - self._asked_at > self._grace and not self._read():
            # Judged after a read that found nothing: a hub that computed for minutes has only not looked.
            quiet = time.monotonic() - self._connection.wire.received_at
            if self._asked_at:
                raise TimeoutError(f"the broker has been silent for {quiet:.0f} s")

    def wake(self) -> None:
        self._connection.bell.ring()

    def take(self, limit: int) -> list[Arrival]:
        deliveries = self._connection.deliveries
        arrivals = []
        for _ in range(min(limit, len(deliveries))):
            pushed = deliveries.popleft()
            self._unsettled.add(pushed.tag)
            arrivals.append(Arrival(self._queues[pushed.consumer], pushed.tag, pushed.body, pushed))
        return arrivals

    def parts(self, arrival: Arrival) -> Parts:
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
        held = self._unsettled
        known = []
        for tag in tags:
            if tag in held:  # an unknown tag would make the broker close the channel
                held.discard(tag)  # type: ignore[arg-type]
                known.append(tag)
        if known:
            self._send(ack_frames(self._number, known))  # type: ignore[arg-type]
        return len(known)

    def requeue(self, tag: str | int) -> bool:
        if tag not in self._unsettled:
            return False
        self._unsettled.discard(tag)  # type: ignore[arg-type]
        self._send(requeue_frame(self._number, tag))  # type: ignore[arg-type]
        return True

    def cancelled(self) -> list[str]:
        withdrawn, self._connection.withdrawn = self._connection.withdrawn, []
        queues = [self._queues[consumer] for consumer in withdrawn]
        for queue in queues:
            self._consumers.pop(queue, None)
        return queues

    def beat(self) -> None:
        """See Link.

        After half a heartbeat without a byte from the broker it is asked for one: setting the prefetch again
        changes nothing and is answered at once. So a half-open connection shows within `SILENCE` seconds, also
        with Celery's heartbeat of two minutes.
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
            raise self._lost(exc) from exc

    def _lost(self, exc: Exception) -> BrokerUnreachable:
        return BrokerUnreachable(f"the connection to RabbitMQ is lost: {exc or type(exc).__name__}")

    def close(self) -> None:
        """See Link. The answer to the close says that every ack before it was read."""
        connection = self._connection
        try:
            until = time.monotonic() + REPLY_TIMEOUT
            while connection.wire.pending and time.monotonic() < until:
                connection.pause(1.0)
            connection.close()
        except LOST:
            connection.collect()
