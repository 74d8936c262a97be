"""AMQP frames and tables against py-amqp, which serves as the oracle, and against broken bytes."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timezone
from decimal import Decimal
from struct import pack
from typing import Any

import pytest
from amqp.basic_message import Message
from amqp.serialization import decode_properties_basic, dumps, loads
from hypothesis import given
from hypothesis import strategies as st

from greenq.transports.amqp.frames import (
    HEARTBEAT,
    FrameReader,
    Pushed,
    ack_frames,
    decode_content,
    publish_frames,
)
from greenq.transports.amqp.tables import MAX_DEPTH, FrameError, decode_table, encode_table, short

# AMQP's timestamps are whole seconds, and naive, in UTC, as py-amqp gives them
moments = st.integers(0, 2**32).map(
    lambda seconds: datetime.fromtimestamp(seconds, tz=timezone.utc).replace(tzinfo=None)
)
decimals = st.builds(
    lambda number, digits: Decimal(number).scaleb(-digits), st.integers(-(2**31), 2**31 - 1), st.integers(0, 20)
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | moments | decimals
)  # fmt: skip
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda name: len(name.encode()) < 256)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=8)


def decoded(encoded: bytes) -> dict[str, Any]:
    return decode_table(encoded, 4, len(encoded))


@given(tables)
def test_a_table_means_the_same_to_py_amqp_and_to_us(table: dict[str, Any]) -> None:
    ours = encode_table(table)
    assert loads("F", ours, 0)[0] == [table]
    assert decoded(ours) == table
    assert decoded(dumps("F", [table])) == table


@given(st.dictionaries(names, st.binary(max_size=50), max_size=4))
def test_bytes_stay_bytes(table: dict[str, bytes]) -> None:
    assert decoded(encode_table(table)) == table


@given(st.binary(max_size=80), st.binary(min_size=1, max_size=40))
def test_texts_that_are_no_utf8_are_encoded_again_as_they_came(text: bytes, name: bytes) -> None:
    item = bytes([len(name)]) + name + b"S" + pack(">I", len(text)) + text
    encoded = pack(">I", len(item)) + item
    assert encode_table(decoded(encoded)) == encoded


@given(st.binary(max_size=200))
def test_a_table_is_read_or_refused(junk: bytes) -> None:
    try:
        assert isinstance(decode_table(junk, 0, len(junk)), dict)
    except FrameError as exc:
        assert str(exc)


@given(st.binary(max_size=200))
def test_a_content_header_is_read_or_refused(junk: bytes) -> None:
    try:
        assert isinstance(decode_content(b"\x00\x3c\x00\x00" + bytes(8) + junk), dict)
    except ValueError as exc:
        assert str(exc)


def test_tables_in_tables_end_somewhere() -> None:
    table: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        table = {"t": table}
    assert decoded(encode_table(table)) == table
    with pytest.raises(FrameError, match="tables in each other"):
        decoded(encode_table({"t": table}))


@pytest.mark.parametrize(
    ("letter", "packed", "value"),
    [
        ("t", b"\x01", True),
        ("b", b"\xff", -1),
        ("B", b"\xff", 255),
        ("s", b"\xff\xfe", -2),
        ("u", b"\xff\xfe", 65534),
        ("I", b"\xff" * 4, -1),
        ("i", b"\xff" * 4, 2**32 - 1),
        ("l", b"\xff" * 8, -1),
        ("L", b"\xff" * 8, -1),
        ("f", pack(">f", 0.5), 0.5),
        ("d", pack(">d", 0.1), 0.1),
        ("x", pack(">I", 2) + b"\x00\xff", b"\x00\xff"),
        ("T", pack(">Q", 0), datetime.fromtimestamp(0, tz=timezone.utc).replace(tzinfo=None)),
        ("T", b"\xff" * 8, 2**64 - 1),
        ("V", b"", None),
        ("D", b"\x02" + pack(">i", 314), Decimal("3.14")),
    ],
)
def test_every_type_letter_of_rabbitmq_is_read(letter: str, packed: bytes, value: Any) -> None:
    item = b"\x01k" + letter.encode() + packed
    assert decode_table(item, 0, len(item)) == {"k": value}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": names, "content_encoding": names, "headers": tables, "delivery_mode": st.integers(1, 2),
            "priority": st.integers(0, 255), "correlation_id": names, "reply_to": names, "expiration": names,
            "message_id": names, "timestamp": st.integers(0, 2**63), "type": names, "user_id": names, "app_id": names,
        },
    )
)  # fmt: skip
def test_properties_mean_the_same_to_py_amqp_and_to_us(properties: dict[str, Any]) -> None:
    frames = publish_frames(1, ("", "q"), properties, b"", mandatory=False, frame_max=4096)
    header = frames[frames.index(b"\xce\x02") + 8 : -1] if len(frames) < 60 else _second_payload(frames)
    assert decode_content(header) == properties
    theirs = decode_properties_basic(header, 12)[0]
    theirs["headers"] = theirs.pop("application_headers", None)
    assert {name: value for name, value in theirs.items() if value is not None} == properties


def _second_payload(frames: bytes) -> bytes:
    start = 7 + int.from_bytes(frames[3:7], "big") + 1
    return frames[start + 7 : start + 7 + int.from_bytes(frames[start + 3 : start + 7], "big")]


def deliver(tag: int, body: bytes, channel: int = 1, frame_max: int = 64) -> bytes:
    """A delivery as a broker sends it."""
    published = publish_frames(channel, ("", "q"), {"priority": 3}, body, mandatory=False, frame_max=frame_max)
    rest = published[7 + int.from_bytes(published[3:7], "big") + 1 :]
    method = b"\x00\x3c\x00\x3c" + short("c1") + pack(">QB", tag, 1) + short("ex") + short("key")
    return pack(">BHI", 1, channel, len(method)) + method + b"\xce" + rest


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=6),
    st.lists(st.integers(1, 100), min_size=1, max_size=20),
    st.booleans(),
)
def test_deliveries_survive_any_cut_of_the_stream(bodies: list[bytes], cuts: list[int], beats: bool) -> None:
    stream = b"".join(deliver(2**63 + n, body) + HEARTBEAT * beats for n, body in enumerate(bodies))
    reader, found, others = FrameReader(), deque[Pushed](), []
    position = turn = 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        turn += 1
        reader.feed(stream[position : position + size])
        position += size
        while (frame := reader.take(found)) is not None:
            others.append(frame)
    assert [pushed.body for pushed in found] == bodies
    assert [pushed.tag for pushed in found] == [2**63 + n for n in range(len(bodies))]
    assert others == [(8, 0, b"")] * (len(bodies) * beats)
    first = found[0]
    assert first[:5] == ("c1", 2**63, True, "ex", "key")
    assert decode_content(first.header) == {"priority": 3}


def test_deliveries_of_two_channels_do_not_mix() -> None:
    def frames(data: bytes) -> list[bytes]:
        parts = []
        while data:
            size = 8 + int.from_bytes(data[3:7], "big")
            parts.append(data[:size])
            data = data[size:]
        return parts

    reader, found = FrameReader(), deque[Pushed]()
    one, two = frames(deliver(1, b"a" * 200)), frames(deliver(1, b"b" * 200, channel=2))
    for pair in zip(one, two, strict=True):
        reader.feed(b"".join(pair))
        assert reader.take(found) is None
    assert [pushed.body for pushed in found] == [b"a" * 200, b"b" * 200]


@given(st.binary(min_size=8, max_size=300))
def test_a_stream_out_of_step_is_refused_or_passed_on(junk: bytes) -> None:
    reader, found = FrameReader(), deque[Pushed]()
    reader.feed(deliver(1, b"x")[:20] + junk)
    try:
        while reader.take(found) is not None:
            continue
    except FrameError as exc:
        assert str(exc)


def test_an_ack_is_21_bytes_that_py_amqp_would_have_sent() -> None:
    frames = ack_frames(7, [1, 2**63])
    assert len(frames) == 42
    assert frames[:21] == pack(">BHIHH", 1, 7, 13, 60, 80) + dumps("Lb", (1, False)) + b"\xce"
    assert frames[21:][11:19] == pack(">Q", 2**63)


def test_a_large_body_is_cut_at_the_size_agreed_on() -> None:
    frames = publish_frames(1, ("", "q"), {}, b"z" * 1000, mandatory=True, frame_max=108)
    sizes, position = [], 0
    while position < len(frames):
        sizes.append(int.from_bytes(frames[position + 3 : position + 7], "big"))
        position += sizes[-1] + 8
    assert max(sizes) == 100
    assert sum(sizes[2:]) == 1000


@pytest.mark.parametrize(
    "headers", [{"o": object()}, {"i": 2**64}, {"k" * 256: 1}, {5: 1}, {"nested": {"deep": [object()]}}]
)
def test_what_amqp_cannot_carry_is_named(headers: dict[Any, Any]) -> None:
    with pytest.raises(FrameError, match="cannot be sent over AMQP"):
        encode_table(headers)


def test_a_message_of_py_amqp_reads_the_same() -> None:
    message = Message(b"x", application_headers={"a": 1}, content_type="t", priority=5)
    header = pack(">HHQ", 60, 0, 1) + message._serialize_properties()
    assert decode_content(header) == {"headers": {"a": 1}, "content_type": "t", "priority": 5}
