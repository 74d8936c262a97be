"""What is a command frame and what is not (wire.md 4)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.wire.control import BadFrame, LogicalClock, command_body, read_frame, with_reply

REPLY = {"exchange": "reply.celery.pidbox", "routing_key": "key"}


def read(body: object, headers: object = None) -> Any:
    return read_frame(body, {} if headers is None else headers, "celery")


def test_a_command_made_by_the_client_is_read_as_it_was_meant() -> None:
    body = with_reply(command_body("stats", {"a": 1}, destination=["w@h"]), "t-1", "key", "celery")
    frame = read(body, {"clock": 7})
    assert (frame.method, frame.arguments, frame.ticket, frame.reply_key) == ("stats", {"a": 1}, "t-1", "key")
    assert (frame.destination, frame.clock) == (("w@h",), 7)


def test_a_frame_without_reply_to_wants_no_answer() -> None:
    assert read({"method": "ping"}).reply_key == ""


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (5, "not_an_object"),
        ([], "not_an_object"),
        ("ping", "not_an_object"),
        (None, "not_an_object"),
        ({}, "method"),
        ({"method": 5}, "method"),
        ({"method": ""}, "method"),
        ({"method": "ping", "arguments": []}, "arguments"),
        ({"method": "ping", "arguments": "x"}, "arguments"),
        ({"method": "ping", "destination": 5}, "destination"),
        ({"method": "ping", "destination": [5]}, "destination"),
        ({"method": "ping", "destination": {"w@h": 1}}, "destination"),
        ({"method": "ping", "pattern": 5, "matcher": "glob"}, "pattern"),
        ({"method": "ping", "pattern": "*" * 300, "matcher": "glob"}, "pattern"),
        ({"method": "ping", "pattern": "w.*", "matcher": "pcre"}, "matcher"),
        ({"method": "ping", "pattern": "w.*", "matcher": ["glob"]}, "matcher"),
        ({"method": "ping", "ticket": 5}, "ticket"),
        ({"method": "ping", "reply_to": "celery"}, "reply_to"),
        ({"method": "ping", "reply_to": {}}, "reply_to"),
        ({"method": "ping", "reply_to": {"exchange": "", "routing_key": "celery"}}, "reply_to"),
        ({"method": "ping", "reply_to": {"exchange": "celery", "routing_key": "celery"}}, "reply_to"),
        ({"method": "ping", "reply_to": {"exchange": "reply.celery.pidbox"}}, "reply_to"),
        ({"method": "ping", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": 5}}, "reply_to"),
    ],
)
def test_a_frame_that_is_none_says_what_is_wrong(body: object, kind: str) -> None:
    with pytest.raises(BadFrame) as caught:
        read(body)
    assert caught.value.kind == kind


@pytest.mark.parametrize("clock", [10**300, -1, "7", None, 1.5, True, [1]])
def test_a_clock_that_makes_no_sense_is_ignored(clock: object) -> None:
    assert read({"method": "ping"}, {"clock": clock}).clock == 0
    assert read({"method": "ping"}, "no headers").clock == 0


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, True),
        ({"destination": []}, True),
        ({"destination": ["w@h"]}, True),
        ({"destination": "w@h"}, True),
        ({"destination": ["x@h", "w@h"]}, True),
        ({"destination": ["x@h"]}, False),
        ({"destination": ["w@"]}, False),
        ({"pattern": "w@*", "matcher": "glob"}, True),
        ({"pattern": "x@*", "matcher": "glob"}, False),
        ({"pattern": "x@*"}, True),
        ({"matcher": "glob"}, True),
        ({"destination": ["w@h"], "pattern": "x@*", "matcher": "glob"}, True),
    ],
)
def test_destination_then_pattern_decide_who_is_meant(fields: dict[str, Any], meant: bool) -> None:
    assert read({"method": "ping", **fields}).is_for("w@h") is meant


def test_no_glob_holds_the_listener_for_long() -> None:
    frame = read({"method": "ping", "pattern": "*a" * 100 + "b", "matcher": "glob"})
    started = time.process_time()
    assert not frame.is_for("a" * 200)
    assert time.process_time() - started < 1.0  # a backtracking match would not end at all


def test_ten_thousand_destinations_are_looked_through() -> None:
    frame = read({"method": "ping", "destination": [f"w{i}@h" for i in range(10_000)]})
    assert frame.is_for("w9999@h")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to"])


@given(st.dictionaries(FIELDS, JSON) | JSON, JSON)
def test_any_json_is_a_frame_or_a_bad_frame(body: object, headers: object) -> None:
    try:
        frame = read(body, headers)
    except BadFrame as fault:
        assert str(fault).startswith(fault.kind)
    else:
        frame.is_for("w@h")


def test_the_clock_moves_past_what_it_sees() -> None:
    clock = LogicalClock(5)
    assert clock.forward() == 6
    assert clock.adjust(10) == 11
    assert clock.adjust(3) == 12
