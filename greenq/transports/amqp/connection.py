"""A py-amqp connection whose socket nobody waits on in the middle of a frame, read in large pieces."""

from __future__ import annotations

import re
import ssl
import time
from collections import deque
from struct import error
from typing import Any
from urllib.parse import urlsplit

import kombu
from amqp.exceptions import AMQPError, ConsumerCancelled, PreconditionFailed
from amqp.transport import SSLTransport, TCPTransport
from kombu.transport import pyamqp

from greenq.conversion import mask_url
from greenq.exceptions import BrokerUnreachable
from greenq.transports.amqp.frames import FrameReader, Pushed
from greenq.transports.amqp.tables import FrameError
from greenq.transports.link import Doorbell, LinkOptions, LinkRefused, QueueMismatch

LOST = (OSError, AMQPError, FrameError)
REPLY_TIMEOUT = 10.0  # seconds the broker may take to answer a declaration
CLOSE_TIMEOUT = 3.0  # and a close
ENOUGH = 10_000  # deliveries not handed out; with prefetch 0 nothing else keeps the rest in the socket

# AMQP 0-9-1, reply codes: refused, locked, failed precondition, a command, syntax or value it does not know.
_REFUSED = frozenset({403, 405, 406, 501, 502, 503, 530, 540})
_CHUNK = 65536  # bytes a read; malloc maps and unmaps pages for more than twice that, at every call
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_INEQUIVALENT = re.compile(
    r"inequivalent arg '([^']*)' for (\w+ '[^']*').*? but current is (?:the value )?'?([^' ]*)"
)


class Wire:
    """The socket of one connection: non-blocking, and written to by any fiber or thread.

    py-amqp's own `sendall` may switch fibers in the middle of a frame, and the heartbeat of a native thread
    would then cut into it. Here whole frames are appended and as much is sent as the kernel takes, all while
    holding `_token`; a holder never waits, so nobody finds it taken for long. The token is an element of a
    deque because pop and append are atomic whichever library has patched the locks, and a patched lock must
    not be shared between a hub and a native thread. With TLS the same token keeps a read and a write from
    entering OpenSSL together.
    """

    def __init__(self, sock: Any) -> None:
        sock.settimeout(0.0)
        self._sock = sock
        self._token: deque[None] = deque((None,))
        self._pending = bytearray()
        self._layered = isinstance(sock, ssl.SSLSocket)  # holds bytes of its own, of which poll knows nothing
        self.empty = False  # the last read took all there was
        self.sent_at = self.received_at = time.monotonic()

    @property
    def pending(self) -> int:
        """Bytes the kernel has not taken yet."""
        return len(self._pending)

    def fileno(self) -> int:
        """The descriptor; -1 once the socket is closed."""
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
            self.empty = True
            return b""
        finally:
            self._token.append(None)
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        self.empty = len(data) < _CHUNK and not self._layered
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


class AmqpConnection(pyamqp.Connection):
    """py-amqp's connection with its own reading.

    Deliveries are appended to `deliveries` and go nowhere else: waiting for an answer can start no task.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.reader = FrameReader()
        self.deliveries: deque[Pushed] = deque()
        self.bell = Doorbell()
        self.withdrawn: list[str] = []  # consumers the broker has cancelled
        self.patience = REPLY_TIMEOUT
        self.broken = False
        self._wired: Any = None
        super().__init__(*args, **options)

    def Transport(  # noqa: N802  (py-amqp's name)
        self, host: str, connect_timeout: float, secure: Any, *timeouts: Any, **options: Any
    ) -> Any:
        """Make the transport that will be connected."""
        options.update(zip(("read_timeout", "write_timeout"), timeouts, strict=False))
        kind = _TlsTransport if secure else _TcpTransport
        self._wired = kind(host, connect_timeout=connect_timeout, ssl=secure, **options)
        return self._wired

    @property
    def wire(self) -> Wire:
        """The socket. Once the connection is collected every use of it is an OSError."""
        wire: Wire = self._wired.wire
        return wire

    def send(self, frames: bytes) -> None:
        """Write frames of our own making; from any fiber or thread. Raises OSError."""
        self.wire.write(frames)
        self.bytes_sent += 1

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read until one frame that is no delivery was handled; so py-amqp waits for its answers."""
        until = time.monotonic() + (self.patience if timeout is None else timeout)
        while True:
            handled, result = self.handle()
            if handled:
                return result
            if not self.fill():
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the broker does not answer")
                self.pause(left)

    def handle(self) -> tuple[bool, Any]:
        """Take what was read, up to and with the first frame that is no delivery; whether there was one."""
        before = self.reader.frames
        frame = self.reader.take(self.deliveries)
        # on_inbound_frame counts its own; by these counters py-amqp would judge the peer's heartbeat.
        self.bytes_recv += self.reader.frames - before - (frame is not None)
        if frame is None:
            return False, None
        try:
            return True, self.on_inbound_frame(frame)
        except ConsumerCancelled as exc:
            self.withdrawn.append(str(exc.reply_text))
            return True, True
        except (LookupError, ValueError, TypeError, error) as exc:
            # What py-amqp says of a frame for a channel that is not open, or with arguments cut short.
            raise FrameError(f"a frame that makes no sense: {exc!r}") from exc

    def fill(self) -> bool:
        """Move what has arrived from the socket to the reader; False if nothing has."""
        data = self.wire.read()
        if data:
            self.reader.feed(data)
        return bool(data)

    def drain(self) -> bool:
        """Handle what has arrived without waiting, as long as `ENOUGH` is not reached; False if nothing has."""
        arrived = False
        while len(self.deliveries) < ENOUGH and self.fill():
            arrived = True
            while self.handle()[0]:
                continue
            if self.wire.empty:
                break
        return arrived

    def pause(self, timeout: float) -> bool:
        """Wait for bytes, for room for what is pending, or for the bell; True if it rang."""
        wire = self.wire
        rang = self.bell.wait(timeout, wire.fileno(), writing=wire.pending > 0)
        wire.flush()
        return rang

    def declare(self, queue: Any) -> None:
        """Declare a kombu.Queue with its exchange and binding, on a channel of its own.

        A refusal closes the channel it is heard on, with all that is unsettled there.

        Raises:
            QueueMismatch: the queue exists with other arguments.
            BrokerUnreachable: anything else.
        """
        try:
            channel = self.channel()
            try:
                queue(channel).declare()
            finally:
                channel.close()
        except PreconditionFailed as exc:
            detail = str(exc.reply_text)
            found = _INEQUIVALENT.search(detail)
            argument, entity, current = found.groups() if found else ("arguments", f"queue {queue.name!r}", "")
            raise QueueMismatch(entity, argument, "" if current == "none" else current, detail) from exc
        except LOST as exc:
            raise self.lost(exc) from exc

    def lost(self, exc: BaseException) -> BrokerUnreachable:
        """What its loss is called above this room; from now on nothing more is expected of the broker."""
        self.broken = True
        refused = getattr(exc, "reply_code", 0) in _REFUSED
        kind = LinkRefused if refused else BrokerUnreachable
        return kind(f"the connection to RabbitMQ is lost: {str(exc) or type(exc).__name__}")

    def finish(self) -> None:
        """Close in order if the broker answers in time, at once if it is lost; never raises."""
        if self.broken:
            self.collect()
            return
        self.patience = CLOSE_TIMEOUT
        try:
            until = time.monotonic() + CLOSE_TIMEOUT
            while self.wire.pending and time.monotonic() < until:
                self.pause(0.5)
                self.drain()
            self.close()
        except LOST:
            self.collect()

    def collect(self) -> None:
        """Drop everything at once; py-amqp calls it when the connection has ended in whatever way."""
        super().collect()
        self.bell.close()


class _Transport(pyamqp.Transport):
    Connection = AmqpConnection


class _SecureTransport(pyamqp.SSLTransport):
    Connection = AmqpConnection


def is_amqp(url: str) -> bool:
    """Whether the URL is one for py-amqp."""
    return urlsplit(url).scheme in {"amqp", "amqps", "pyamqp"}


def connect(url: str, options: LinkOptions) -> AmqpConnection:
    """Open a connection; of several addresses joined by `;`, to the first that answers.

    Raises:
        BrokerUnreachable: none does; the message names the last one and its reason.
    """
    failure: BrokerUnreachable | None = None
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
            reason = str(exc) or type(exc).__name__
            failure = BrokerUnreachable(f"no connection to {mask_url(address)}: {reason}")
            failure.__cause__ = exc
        else:
            return connection
    assert failure is not None, "a URL has at least one address"
    raise failure
