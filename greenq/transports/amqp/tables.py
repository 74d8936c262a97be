"""AMQP 0-9-1 field tables, both ways: the headers of a message as bytes and as a dict.

The specification's 4.2.5 with RabbitMQ's meaning of the type letters, which is what every client sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from struct import Struct, error
from typing import Any

MAX_DEPTH = 64  # tables in tables; nothing legitimate comes near

_UINT8 = Struct(">B")
_INT32 = Struct(">i")
_UINT32 = Struct(">I")
_INT64 = Struct(">q")
_UINT64 = Struct(">Q")
_DOUBLE = Struct(">d")
_SCALARS = {
    ord("t"): Struct(">?"),
    ord("b"): Struct(">b"),
    ord("B"): _UINT8,
    ord("s"): Struct(">h"),  # the specification's short string is sent by nobody
    ord("U"): Struct(">h"),
    ord("u"): Struct(">H"),
    ord("I"): _INT32,
    ord("i"): _UINT32,
    ord("l"): _INT64,
    ord("L"): _INT64,
    ord("f"): Struct(">f"),
    ord("d"): _DOUBLE,
}


class FrameError(ValueError):
    """The bytes are not AMQP 0-9-1; of a frame the connection is lost, of a table only its message."""


def decode_table(buffer: bytes, position: int, end: int) -> dict[str, Any]:
    """A field table as a dict.

    Bytes that are not UTF-8 become lone surrogates, in names and in texts: encoding the table again gives
    the same bytes, and a task header with one is refused as no valid Unicode.

    Raises:
        FrameError: an unknown type, a length past the end, or more than `MAX_DEPTH` tables in each other.
    """
    try:
        try:
            return _decode_table(buffer, position, end, 0, "strict")
        except UnicodeDecodeError:
            return _decode_table(buffer, position, end, 0, "surrogateescape")
    except (IndexError, error) as exc:
        raise FrameError(f"a table is cut short: {exc}") from exc


def _decode_table(buffer: bytes, position: int, end: int, depth: int, errors: str) -> dict[str, Any]:
    # Runs over some twenty headers a message: what looks spelled out twice is a call saved twenty times.
    if end > len(buffer):
        raise FrameError("a table reaches past the end of its frame")
    table: dict[str, Any] = {}
    length = _UINT32.unpack_from
    strict = errors == "strict"
    while position < end:
        stop = position + 1 + buffer[position]
        raw = buffer[position + 1 : stop]
        name = raw.decode() if strict else raw.decode("utf-8", errors)
        kind = buffer[stop]
        if kind == 86:  # V
            table[name] = None
            position = stop + 1
        elif kind == 83:  # S
            position = stop + 5 + length(buffer, stop + 1)[0]
            raw = buffer[stop + 5 : position]
            table[name] = raw.decode() if strict else raw.decode("utf-8", errors)
        elif kind == 73:  # I
            table[name] = _INT32.unpack_from(buffer, stop + 1)[0]
            position = stop + 5
        else:
            table[name], position = _decode_value(buffer, kind, stop + 1, depth, errors)
    if position != end:
        raise FrameError("a value reaches past the end of its table")
    return table


def _decode_value(buffer: bytes, kind: int, position: int, depth: int, errors: str) -> tuple[Any, int]:
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return scalar.unpack_from(buffer, position)[0], position + scalar.size
    if kind in b"SxFA":
        start = position + 4
        stop = start + _UINT32.unpack_from(buffer, position)[0]
        return _decode_sized(buffer, kind, (start, stop), depth, errors), stop
    if kind == 86:
        return None, position
    if kind == 84:
        return _timestamp(_UINT64.unpack_from(buffer, position)[0]), position + 8
    if kind == 68:
        return Decimal(_INT32.unpack_from(buffer, position + 1)[0]).scaleb(-buffer[position]), position + 5
    raise FrameError(f"unknown type {chr(kind)!r} in a table")


def _decode_sized(buffer: bytes, kind: int, span: tuple[int, int], depth: int, errors: str) -> Any:
    start, stop = span
    if stop > len(buffer):
        raise FrameError("a value reaches past the end of its frame")
    if kind == 83:
        return buffer[start:stop].decode("utf-8", errors)
    if kind == 120:
        return buffer[start:stop]
    if depth >= MAX_DEPTH:
        raise FrameError(f"more than {MAX_DEPTH} tables in each other")
    if kind == 70:
        return _decode_table(buffer, start, stop, depth + 1, errors)
    return _decode_array(buffer, start, stop, depth + 1, errors)


def _decode_array(buffer: bytes, position: int, end: int, depth: int, errors: str) -> list[Any]:
    values = []
    while position < end:
        value, position = _decode_value(buffer, buffer[position], position + 1, depth, errors)
        values.append(value)
    if position != end:
        raise FrameError("a value reaches past the end of its array")
    return values


def _timestamp(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return seconds  # a year past 9999: a number says it as well


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A field table with its length.

    Types are chosen as py-amqp does, but bytes go as bytes (x) and long integers as RabbitMQ has them (l).

    Raises:
        FrameError: a value AMQP has no type for; the message names the key.
    """
    parts: list[bytes] = []
    for name, value in table.items():
        try:
            key = _utf8(name)
            parts.append(_UINT8.pack(len(key)) + key + _encode_value(value))
        except (error, TypeError, AttributeError) as exc:
            raise FrameError(f"header {name!r} cannot be sent over AMQP: {exc}") from exc
    encoded = b"".join(parts)
    return _UINT32.pack(len(encoded)) + encoded


def _encode_value(value: Any) -> bytes:
    encoder = _ENCODERS.get(type(value))
    if encoder is not None:
        return encoder(value)
    for kind, encoder in _ENCODERS.items():  # subclasses: lazy reprs, enums, named tuples
        if isinstance(value, kind):
            return encoder(value)
    raise TypeError(f"no AMQP type for {type(value).__name__}")


def _encode_text(value: str) -> bytes:
    text = _utf8(value)
    return b"S" + _UINT32.pack(len(text)) + text


def _utf8(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")  # not one of ours; as py-amqp sends them


def _encode_bytes(value: bytes) -> bytes:
    return b"x" + _UINT32.pack(len(value)) + value


def _encode_integer(value: int) -> bytes:
    if -0x80000000 <= value <= 0x7FFFFFFF:
        return b"I" + _INT32.pack(value)
    return b"l" + _INT64.pack(value)


def _encode_array(values: Iterable[Any]) -> bytes:
    encoded = b"".join(map(_encode_value, values))
    return b"A" + _UINT32.pack(len(encoded)) + encoded


def _encode_moment(value: datetime) -> bytes:
    moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    return b"T" + _UINT64.pack(int(moment.timestamp()))


def _encode_decimal(value: Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    digits = -exponent if isinstance(exponent, int) and exponent < 0 else 0
    return b"D" + _UINT8.pack(digits) + _INT32.pack(int(value.scaleb(digits)))


# Read only. bool stands before int, whose subclass it is.
_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: _encode_text,
    type(None): lambda value: b"V",
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _encode_integer,
    dict: lambda value: b"F" + encode_table(value),
    list: _encode_array,
    tuple: _encode_array,
    float: lambda value: b"d" + _DOUBLE.pack(value),
    bytes: _encode_bytes,
    datetime: _encode_moment,
    Decimal: _encode_decimal,
}


def short(text: str) -> bytes:
    """A short string, at most 255 bytes.

    Raises:
        FrameError: it is longer.
    """
    encoded = text.encode()
    if len(encoded) > 255:
        raise FrameError(f"{text[:40]!r}... is longer than the 255 bytes AMQP allows for a name")
    return _UINT8.pack(len(encoded)) + encoded
