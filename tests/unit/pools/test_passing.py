"""Requests, outcomes and records cross the pipe between a worker and its child, and nothing of them is lost."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq._speedups import decode_envelope, decode_parts
from greenq.exceptions import HardTimeLimit, Killed, WorkerLostError
from greenq.model import Outcome, Record, Request, Settle, State, TaskMessage
from greenq.wire.body import decode_body
from greenq.wire.messages import build_task_message, complete_v1, to_envelope
from greenq.wire.passing import (
    pack_epitaph,
    pack_outcome,
    pack_record,
    pack_request,
    unpack_epitaph,
    unpack_outcome,
    unpack_record,
    unpack_request,
)
from greenq.wire.serializers import Accept
from tests.unit.wire.celery_side import celery_app, frame

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=timezone.utc)
ACCEPT = Accept.of(["json", "pickle"])
OWN = {"tag", "epoch", "received", "started", "state"}  # of the parent, and no use to a child
FIELDS = [name for name in dir(Request) if not name.startswith("_") and name not in OWN]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), TEXT
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.builds(
    lambda **fields: build_task_message(name="proj.add", task_id="id-1", origin="o", now=NOW, **fields),
    args=st.lists(VALUES, max_size=3).map(tuple),
    kwargs=st.dictionaries(TEXT, VALUES, max_size=3),
    routing_key=TEXT,
    exchange=TEXT,
    eta=st.sampled_from([None, NOW + timedelta(hours=1)]),
    expires=st.sampled_from([None, NOW + timedelta(days=1)]),
    retries=st.integers(0, 5),
    hard_limit=st.sampled_from([None, 9.5]),
    soft_limit=st.sampled_from([None, 3]),
    parent_id=st.none() | TEXT,
    group=st.none() | TEXT,
    group_index=st.none() | st.integers(0, 9),
    shadow=st.none() | TEXT,
    ignore_result=st.sampled_from([None, True, False]),
    reply_to=TEXT,
    priority=st.none() | st.integers(0, 9),
    compression=st.sampled_from([None, "gzip"]),
    headers=st.none() | st.dictionaries(TEXT.map(lambda key: f"x-{key}"), VALUES, max_size=3),
)
QUEUES = st.text(max_size=30).filter(lambda name: name.isprintable())


def fields_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in FIELDS}


def passed(request: Request) -> Request:
    return unpack_request(pack_request(request), ACCEPT)


def check(request: Request) -> Request:
    found = passed(request)
    assert fields_of(found) == fields_of(request)
    assert decode_body(found, ACCEPT) == decode_body(request, ACCEPT)
    return found


@given(MESSAGES, QUEUES, st.booleans())
def test_an_envelope_crosses_as_its_raw_bytes(message: TaskMessage, queue: str, acked: bool) -> None:
    raw = to_envelope(message, "tag")
    request = decode_envelope(raw, queue, "tag", 7)
    request.acked = acked
    found = check(request)
    assert found.raw == raw
    assert found.queue == queue
    assert len(pack_request(request)) == len(raw) + len(queue.encode()) + 3


def parts(message: TaskMessage, queue: str, **changes: Any) -> Request:
    info = {"exchange": message.exchange, "routing_key": message.routing_key, "redelivered": True}
    return decode_parts(
        {**message.headers, **changes},
        {**message.properties, "delivery_info": info},
        message.content_type,
        message.content_encoding,
        message.body,
        queue,
        12,
        3,
    )


@given(MESSAGES, QUEUES, st.booleans())
def test_a_message_that_came_in_parts_crosses_whole(message: TaskMessage, queue: str, acked: bool) -> None:
    request = parts(message, queue)
    request.acked = acked
    found = check(request)
    assert found.redelivered
    assert found.acked is acked


def test_headers_that_only_amqp_can_hold_cross_as_they_are() -> None:
    odd = {
        "x-when": NOW,
        "x-price": Decimal("1.10"),
        "x-bytes": b"\xff\x00",
        "x-list": [NOW, {"deep": Decimal("0.1")}],
        "x-death": [{"count": 3, "time": NOW, "queue": "celery"}],
        "x-large": 2**62,
    }
    message = build_task_message(
        name="proj.add", args=(1,), kwargs={}, task_id="id-1", origin="o", routing_key="celery", now=NOW
    )
    found = check(parts(message, "celery", **odd))
    assert {key: found.headers[key] for key in odd} == odd


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_arguments_of_every_kind_cross(serializer: str) -> None:
    args = (NOW, Decimal("1.10"), UUID(int=7), b"\xff", 2**70, "\ud800" if serializer == "pickle" else "é\u2028")
    message = build_task_message(
        name="proj.add",
        args=args,
        kwargs={"when": {"nested": [NOW]}},
        task_id="id-1",
        origin="o",
        routing_key="celery",
        now=NOW,
        serializer=serializer,
    )
    for request in (parts(message, "celery"), decode_envelope(to_envelope(message, "t"), "celery", "t")):
        assert tuple(decode_body(check(request), ACCEPT)[0]) == args


@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 1])
def test_eight_megabytes_cross(size: int) -> None:
    message = build_task_message(
        name="proj.add", args=("x" * size,), kwargs={}, task_id="id-1", origin="o", routing_key="celery", now=NOW
    )
    assert decode_body(check(parts(message, "celery")), ACCEPT)[0] == ["x" * size]
    assert decode_body(check(decode_envelope(to_envelope(message, "t"), "celery", "t")), ACCEPT)[0] == ["x" * size]


# Protocol 1.


def old_envelope(**changes: Any) -> bytes:
    return frame(celery_app(), 1, task_id="id-1", task={"args": (1, 2), "kwargs": {"z": 3}, **changes})


def without_id(raw: bytes) -> bytes:
    """As some producers of other languages send it."""
    envelope = json.loads(raw)
    body = json.loads(base64.b64decode(envelope["body"]))
    del body["id"]
    envelope["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    envelope["headers"].pop("id", None)
    return json.dumps(envelope).encode()


@pytest.mark.parametrize("change", [{}, {"eta": NOW}, {"expires": NOW}, {"time_limit": 5, "soft_time_limit": 3}])
def test_a_message_of_protocol_1_crosses(change: Mapping[str, Any]) -> None:
    request = decode_envelope(old_envelope(**change), "celery", "t")
    complete_v1(request, ACCEPT)
    found = check(request)
    assert (found.protocol, found.name, found.id) == (1, "proj.add", "id-1")


def test_one_without_an_id_keeps_the_one_it_was_given() -> None:
    raw = without_id(old_envelope())
    request = decode_envelope(raw, "celery", "t")
    complete_v1(request, ACCEPT)
    assert len(request.id) == 36
    found = check(request)
    assert found.id == request.id
    body = json.dumps({"task": "proj.add", "args": [1], "kwargs": {}}).encode()
    other = decode_parts({}, {}, "application/json", "utf-8", body, "celery", 1)
    complete_v1(other, ACCEPT)
    assert check(other).id == other.id


# Outcomes and records.

RECORDS = st.builds(
    Record, TEXT, st.sampled_from(sorted(State.READY)), st.binary(max_size=50), TEXT, st.none() | st.floats(0, 1e6)
)
OUTCOMES = st.builds(
    lambda **fields: Outcome(request=a_request(), **fields),
    state=st.sampled_from([State.SUCCESS, State.FAILURE, State.RETRY, State.REVOKED, State.CANCELLED, State.IGNORED]),
    how=st.sampled_from(list(Settle)),
    record=st.none() | RECORDS,
    more_records=st.lists(RECORDS, max_size=2),
    follow_ups=st.lists(MESSAGES, max_size=2),
    runtime=st.floats(0, 1e6),
    result_text=TEXT,
    traceback=TEXT,
    expected=st.booleans(),
    due=st.floats(0, 1e10),
    reason=TEXT,
)


def a_request() -> Request:
    return decode_parts({"task": "proj.add", "id": "id-1"}, {}, "application/json", "utf-8", b"[[],{},{}]", "q", 1)


@given(OUTCOMES)
def test_an_outcome_crosses_with_all_that_follows_it(outcome: Outcome) -> None:
    mine = a_request()
    assert unpack_outcome(pack_outcome(outcome), mine) == replaced(outcome, mine)


def small_message() -> TaskMessage:
    return build_task_message(name="n", args=(), kwargs={}, task_id="i", origin="", routing_key="q", now=NOW)


def replaced(outcome: Outcome, request: Request) -> Outcome:
    outcome.request = request
    return outcome


@given(TEXT, st.floats(0, 1e6))
def test_a_plain_success_crosses_in_a_few_bytes(text: str, runtime: float) -> None:
    outcome = Outcome(a_request(), State.SUCCESS, runtime=runtime, result_text=text)
    packed = pack_outcome(outcome)
    assert len(packed) == 9 + len(text.encode())
    assert unpack_outcome(packed, outcome.request) == outcome


def test_the_value_of_a_task_stays_in_its_process() -> None:
    outcome = Outcome(a_request(), State.SUCCESS, value=object())
    assert unpack_outcome(pack_outcome(outcome), outcome.request).value is None
    outcome.follow_ups = [small_message()]
    assert unpack_outcome(pack_outcome(outcome), outcome.request).value is None


def test_a_record_of_eight_megabytes_crosses() -> None:
    payload = os.urandom(8 << 20)
    outcome = Outcome(a_request(), State.SUCCESS, record=Record("id-1", State.SUCCESS, payload, "reply", 5.0))
    assert unpack_outcome(pack_outcome(outcome), outcome.request).record == outcome.record
    assert unpack_record(pack_record(Record("id", State.STARTED, payload))) == Record("id", State.STARTED, payload)


def test_a_follow_up_that_cannot_travel_is_refused_by_name_and_not_cut() -> None:
    message = small_message()
    message.headers["x-lock"] = lambda: None
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pack_outcome(Outcome(a_request(), State.SUCCESS, follow_ups=[message]))


@pytest.mark.parametrize("error", [WorkerLostError("gone: SIGKILL"), HardTimeLimit(3.5), Killed(15)])
def test_an_epitaph_names_what_ended_the_task(error: BaseException) -> None:
    request = decode_envelope(old_envelope(), "celery", "t")
    complete_v1(request, ACCEPT)
    request.acked = True
    found, ending = unpack_epitaph(pack_epitaph(request, error), ACCEPT)
    assert fields_of(found) == fields_of(request)
    assert (type(ending), ending.args) == (type(error), error.args)
