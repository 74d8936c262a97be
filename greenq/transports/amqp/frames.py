"""AMQP 0-9-1 as bytes: frames in, frames out; no socket, and no state beyond one reader.

py-amqp decodes and encodes value by value, which costs more than running the task. The handshake, the
declarations and every rare frame stay with it; what there is one of per message is done here.
Layout: the AMQP 0-9-1 specification, 2.3 and 4.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct, error
from typing import Any, NamedTuple

from greenq.transports.amqp.tables import FrameError, decode_table, encode_table, short

FRAME_END = 0xCE
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_HEADER = Struct(">BHI")
_DELIVERY = Struct(">QB")
_UINT16 = Struct(">H")
_UINT32 = Struct(">I")
_UINT64 = Struct(">Q")
_METHOD_FRAME = Struct(">BHIHH")
_CONTENT_FRAME = Struct(">BHIHHQH")
_ACK = Struct(">BHIHHQBB")  # also reject: the bit is `multiple` or `requeue`
_QOS = Struct(">BHIHHIHBB")
_DELIVER = b"\x00\x3c\x00\x3c"
# Content properties in the order of their flag bits, highest first: name, wire type.
_PROPERTIES = (
    ("content_type", "s"),
    ("content_encoding", "s"),
    ("headers", "F"),
    ("delivery_mode", "o"),
    ("priority", "o"),
    ("correlation_id", "s"),
    ("reply_to", "s"),
    ("expiration", "s"),
    ("message_id", "s"),
    ("timestamp", "L"),
    ("type", "s"),
    ("user_id", "s"),
    ("app_id", "s"),
    ("cluster_id", "s"),
)


class Pushed(NamedTuple):
    """One message as the broker pushed it; `header` is the payload of its content header frame."""

    consumer: str
    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    header: bytes
    body: bytes


Frame = tuple[int, int, bytes]  # type, channel, payload


class FrameReader:
    """Cuts a byte stream into frames and puts deliveries together; one owner.

    Deliveries are handed out as they complete. Every other frame is returned, for py-amqp to handle.
    """

    def __init__(self) -> None:
        self.frames = 0  # read so far; py-amqp counts in frames too
        self._buffer = b""
        self._position = 0
        self._partial: dict[int, list[Any]] = {}  # channel -> [consumer, ..., header, size, chunks]

    def feed(self, data: bytes) -> None:
        """Take what the socket gave."""
        if self._position < len(self._buffer):
            data = self._buffer[self._position :] + data
        self._buffer, self._position = data, 0

    def take(self, deliveries: deque[Pushed]) -> Frame | None:
        """Append complete deliveries and return the first other frame; None when more bytes are needed.

        Raises:
            FrameError: the stream is out of step and can only be closed.
        """
        try:
            return self._take(deliveries)
        except (IndexError, error) as exc:
            raise FrameError(f"a frame is shorter than what it announces: {exc}") from exc

    def _take(self, deliveries: deque[Pushed]) -> Frame | None:
        buffer, position, end = self._buffer, self._position, len(self._buffer)
        other: Frame | None = None
        while other is None and end - position >= 8:
            kind, channel, size = _HEADER.unpack_from(buffer, position)
            stop = position + 7 + size
            if stop >= end:
                break
            if buffer[stop] != FRAME_END:
                raise FrameError(f"a frame of {size} bytes does not end where it should")
            start = position + 7
            if kind == 1 and buffer[start : start + 4] == _DELIVER:
                self._partial[channel] = _deliver_arguments(buffer, start + 4)
            elif channel in self._partial and kind in (2, 3):
                self._content(kind, channel, buffer[start:stop], deliveries)
            else:
                other = (kind, channel, buffer[start:stop])
            position = stop + 1
            self.frames += 1
        self._position = position
        return other

    def _content(self, kind: int, channel: int, payload: bytes, deliveries: deque[Pushed]) -> None:
        partial = self._partial[channel]
        if kind == 2:
            partial += (payload, [], _UINT64.unpack_from(payload, 4)[0])
        elif len(partial) == 8:
            partial[6].append(payload)
            partial[7] -= len(payload)
        missing = partial.pop() if len(partial) == 8 else -1
        if missing < 0:
            raise FrameError("content frames in an order that AMQP does not know")
        if missing:
            partial.append(missing)
            return
        del self._partial[channel]
        chunks = partial[6]
        partial[6] = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        deliveries.append(Pushed._make(partial))


def _deliver_arguments(buffer: bytes, position: int) -> list[Any]:
    size = buffer[position]
    position += 1
    consumer = buffer[position : position + size].decode("utf-8", "replace")
    position += size
    tag, redelivered = _DELIVERY.unpack_from(buffer, position)
    position += 9
    size = buffer[position]
    position += 1
    exchange = buffer[position : position + size].decode("utf-8", "replace")
    position += size
    size = buffer[position]
    position += 1
    routing_key = buffer[position : position + size].decode("utf-8", "replace")
    return [consumer, tag, redelivered == 1, exchange, routing_key]


def decode_content(payload: bytes) -> dict[str, Any]:
    """The properties of a content header frame; the header table under `headers`.

    Raises:
        ValueError: the payload does not parse; the message is at fault, not the connection.
    """
    properties: dict[str, Any] = {}
    position = 14
    try:
        (flags,) = _UINT16.unpack_from(payload, 12)
        for name, kind in _present(flags):
            if kind == "s":
                stop = position + 1 + payload[position]
                properties[name] = payload[position + 1 : stop].decode()
                position = stop
            elif kind == "o":
                properties[name] = payload[position]
                position += 1
            elif kind == "F":
                start = position + 4
                position = start + _UINT32.unpack_from(payload, position)[0]
                properties[name] = decode_table(payload, start, position)
            else:
                (properties[name],) = _UINT64.unpack_from(payload, position)
                position += 8
    except (IndexError, error) as exc:
        raise FrameError(f"the content header is cut short: {exc}") from exc
    if position > len(payload):
        raise FrameError("the content header is cut short")
    return properties


@lru_cache(maxsize=64)
def _present(flags: int) -> tuple[tuple[str, str], ...]:
    """The properties whose bits are set; one sender uses a few combinations for ever."""
    return tuple(item for number, item in enumerate(_PROPERTIES) if flags & (0x8000 >> number))


def publish_frames(
    channel: int,
    routing: tuple[str, str],
    properties: Mapping[str, Any],
    body: bytes,
    *,
    mandatory: bool,
    frame_max: int,
) -> bytes:
    """Basic.Publish with its content: method, header and body frames in one piece.

    `routing` is (exchange, routing key); `properties` use the names of `decode_content`, None is left out.

    Raises:
        FrameError: a property or header that AMQP cannot carry.
    """
    flags, bit, parts = 0, 0x8000, []
    for name, kind in _PROPERTIES:
        value = properties.get(name)
        if value is not None:
            flags |= bit
            try:
                parts.append(_encode_property(kind, value))
            except (error, ValueError, TypeError) as exc:
                raise FrameError(f"property {name} cannot be sent over AMQP: {exc}") from exc
        bit >>= 1
    arguments = _UINT16.pack(0) + short(routing[0]) + short(routing[1]) + (b"\x01" if mandatory else b"\x00")
    header = b"".join(parts)
    frames = [
        _METHOD_FRAME.pack(1, channel, 4 + len(arguments), 60, 40) + arguments + b"\xce",
        _CONTENT_FRAME.pack(2, channel, 14 + len(header), 60, 0, len(body), flags) + header + b"\xce",
    ]
    room = frame_max - 8
    for start in range(0, len(body), room):
        chunk = body[start : start + room]
        frames.append(_HEADER.pack(3, channel, len(chunk)) + chunk + b"\xce")
    return b"".join(frames)


def _encode_property(kind: str, value: Any) -> bytes:
    if kind == "s":
        return short(str(value))
    if kind == "o":
        return bytes((int(value),))
    if kind == "L":
        return _UINT64.pack(int(value))
    return encode_table(value)


def ack_frames(channel: int, tags: Iterable[int]) -> bytes:
    """One Basic.Ack a tag, 21 bytes each; `multiple` would acknowledge what still runs."""
    pack = _ACK.pack
    return b"".join([pack(1, channel, 13, 60, 80, tag, 0, FRAME_END) for tag in tags])


def requeue_frame(channel: int, tag: int) -> bytes:
    """Basic.Reject with requeue: back to the queue, in its old place where the queue can."""
    return _ACK.pack(1, channel, 13, 60, 90, tag, 1, FRAME_END)


def qos_frame(channel: int, count: int, *, shared: bool) -> bytes:
    """Basic.Qos, which has no nowait form: its QosOk comes back later and is let fall by py-amqp."""
    return _QOS.pack(1, channel, 11, 60, 10, 0, min(count, 65535), shared, FRAME_END)


def consume_frame(channel: int, queue: str, consumer: str, arguments: Mapping[str, Any]) -> bytes:
    """Basic.Consume without waiting for an answer; acknowledgements required."""
    payload = _UINT16.pack(0) + short(queue) + short(consumer) + b"\x08" + encode_table(arguments)
    return _METHOD_FRAME.pack(1, channel, 4 + len(payload), 60, 20) + payload + b"\xce"


def cancel_frame(channel: int, consumer: str) -> bytes:
    """Basic.Cancel without waiting for an answer; what was delivered stays to be settled."""
    payload = short(consumer) + b"\x01"
    return _METHOD_FRAME.pack(1, channel, 4 + len(payload), 60, 30) + payload + b"\xce"
