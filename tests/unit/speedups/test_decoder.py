"""The compiled decoder against the plain-Python oracle, and what it keeps."""

from __future__ import annotations

import gc
import json
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenq._speedups import (
    Malformed,
    Request,
    decode_envelope,
    decode_parts,
    parse_time,
    plain_json,
    too_deep,
)
from tests.unit.speedups import oracle
from tests.unit.speedups.frames import ID, envelope, moments, mutated, odd_moments, scalars, values


def compiled_outcome(raw: bytes) -> Any:
    try:
        request = decode_envelope(raw, "q", "t1", 3)
    except Malformed as error:
        return error.reason
    assert (request.queue, request.tag, request.epoch, request.raw) == ("q", "t1", 3, raw)
    return request


def both_outcomes(raw: bytes) -> tuple[object, object]:
    """What the compiled decoder makes of it and what the oracle does: the fields, or why it is refused."""
    compiled = compiled_outcome(raw)
    try:
        expected = oracle.decode(raw)
    except oracle.RefusedError as refused:
        return compiled, refused.args[0]
    assert isinstance(compiled, Request), compiled
    # By repr: it tells 1 from 1.0 and True, and NaN equals itself.
    found = {key: repr(getattr(compiled, key)) for key in expected}
    return found, {key: repr(value) for key, value in expected.items()}


@settings(max_examples=600, deadline=None)
@given(mutated())
def test_a_mutated_envelope_gives_what_the_oracle_gives(raw: bytes) -> None:
    compiled, expected = both_outcomes(raw)
    assert compiled == expected


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_bytes_that_were_never_an_envelope_give_what_the_oracle_gives(raw: bytes) -> None:
    compiled, expected = both_outcomes(raw)
    assert compiled == expected


@settings(max_examples=600, deadline=None)
@given(odd_moments | st.text(alphabet="0123456789-:.+TZ ", max_size=32))
def test_a_moment_is_read_as_the_oracle_reads_it(text: str) -> None:
    try:
        expected = oracle.moment(text)
    except oracle.RefusedError:
        with pytest.raises(ValueError):
            parse_time(text)
    else:
        assert parse_time(text) == expected


@given(moments)
def test_what_isoformat_writes_is_read_back_to_the_microsecond(text: str) -> None:
    try:
        expected = oracle.moment(text)
    except oracle.RefusedError:
        return  # an offset has pushed it over the edge of the calendar
    assert parse_time(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v) | st.tuples(v, v)))
def test_a_plain_value_is_written_byte_for_byte_as_the_standard_library_does(value: Any) -> None:
    text = plain_json(value)
    if text is not None:
        assert text == json.dumps(value)
    else:
        assert (
            "NaN" in json.dumps(value) or "Infinity" in json.dumps(value) or _has_big(value) or _deep(value)
        )


def _has_big(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_big, value))
    if isinstance(value, dict):
        return any(map(_has_big, value.values()))
    return type(value) is int and not -(2**63) <= value < 2**63


def _deep(value: Any, level: int = 0) -> bool:
    if level > 16:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_deep(each, level + 1) for each in inner)


class Odd(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [object(), {1: 2}, Odd("x"), {Odd("x"): 1}, b"x", {1}, 1j, [[object()]]])
def test_what_is_not_plain_is_left_to_the_real_encoder(value: Any) -> None:
    assert plain_json(value) is None


@pytest.mark.parametrize("depth", [1, 127, 128, 129, 130, 10_000])
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_nesting_is_counted_outside_strings_only(depth: int, bracket: str) -> None:
    opened = bracket[0] * depth
    assert too_deep(opened.encode(), 128) is (depth > 128)
    assert not too_deep(f'"{opened}"'.encode(), 128)
    assert not too_deep(f'"\\"{opened}\\\\"'.encode(), 128)
    assert not too_deep((bracket * depth).encode(), 128)


def test_a_hundred_thousand_levels_are_refused_not_a_crash() -> None:
    assert compiled_outcome(b"[" * 100_000) == "envelope"
    assert compiled_outcome(b'{"headers":' * 100_000) == "envelope"


def test_a_refusal_says_whose_message_it_was() -> None:
    tree = envelope(retries="many")
    with pytest.raises(Malformed) as caught:
        decode_envelope(json.dumps(tree).encode(), "q", "t")
    error = caught.value
    assert (error.reason, error.task_id, error.task, error.reply_to) == (
        "bad_header",
        ID,
        "proj.add",
        "b1f3-44",
    )
    assert "retries" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.task_id, str(again)) == (error.reason, ID, str(error))


def test_a_message_taken_apart_by_its_transport_gives_the_same_request() -> None:
    tree = envelope(eta="2026-11-22T06:49:18.652896+00:00", timelimit=[3, None])
    whole = decode_envelope(json.dumps(tree).encode(), "q", "t")
    parts = decode_parts(
        tree["headers"], tree["properties"], "application/json", "utf-8", b"[[], {}, {}]", "q", 7, 2
    )
    same = (
        "id",
        "name",
        "eta",
        "hard_limit",
        "soft_limit",
        "reply_to",
        "routing_key",
        "headers",
        "properties",
    )
    assert {key: getattr(parts, key) for key in same} == {key: getattr(whole, key) for key in same}
    assert (parts.tag, parts.epoch, parts.body, parts.body_encoding, parts.raw) == (
        7,
        2,
        b"[[], {}, {}]",
        "",
        None,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": []}, "envelope"),
        ({"properties": None}, "envelope"),
        ({"body": None}, "envelope"),
        ({"body": memoryview(b"x")}, "envelope"),
        ({"content_type": None}, "content_type"),
        ({"content_type": b"application/json"}, "content_type"),
        ({"content_encoding": 8}, "bad_header"),
        ({"headers": {"task": "a", "id": "b\ud800"}}, "bad_header"),
        ({"headers": {"task": "a", "id": b"b"}}, "bad_header"),
        ({"headers": {f"h{n}": n for n in range(10_000)}}, "bad_header"),
        ({"properties": {"priority": "high"}}, "bad_header"),
        ({"properties": {"delivery_info": [1]}}, "bad_header"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    parts: dict[str, Any] = {
        "headers": {"task": "a", "id": "b"},
        "properties": {},
        "content_type": "application/json",
        "content_encoding": None,
        "body": b"[[], {}, {}]",
        "queue": "q",
        "tag": 1,
        **changes,
    }
    with pytest.raises(Malformed) as caught:
        decode_parts(**parts)
    assert caught.value.reason == reason


def test_a_request_can_cross_a_pipe() -> None:
    request = decode_envelope(json.dumps(envelope(shadow="s", retries=4)).encode(), "q", "t", 5)
    request.state, request.received, request.acked = "ready", 12.5, True
    again = pickle.loads(pickle.dumps(request))
    names = [name for name in dir(Request) if not name.startswith("_")]
    assert len(names) > 30
    assert {name: getattr(again, name) for name in names} == {name: getattr(request, name) for name in names}


def test_a_waiting_request_keeps_bytes_and_no_dicts() -> None:
    request = decode_envelope(json.dumps(envelope()).encode(), "q", "t")
    assert not gc.is_tracked(request)
    assert request.headers is not request.headers
    assert sys.getsizeof(request) < 400
