"""Task messages, both ways between greenq and an installed Celery."""

from __future__ import annotations

import json
import logging
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kombu.utils.json import dumps as kombu_dumps

from greenq._speedups import decode_envelope
from greenq.exceptions import ConfigError, EncodeError, MalformedMessage
from greenq.model import Request, TaskMessage
from greenq.wire.body import decode_body
from greenq.wire.messages import build_task_message, complete_v1, to_envelope
from greenq.wire.serializers import Accept
from tests.unit.wire.celery_side import celery_app, frame, received

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=timezone.utc)
JSON = Accept.of(["json"])
ODD_ARGS = [
    NOW, date(2026, 1, 2), Decimal("1.10"), UUID(int=7), b"bytes", b"\xff", 2**70, 1.5, "é\u2028", None, True,
    {"nested": [{"when": NOW}]}, "\ud800", 1e400, -0.0,
]  # fmt: skip


def built(**changes: Any) -> TaskMessage:
    fields: dict[str, Any] = {
        "name": "proj.add",
        "args": (1, 2),
        "kwargs": {},
        "task_id": "id-1",
        "origin": "gen7@host",
        "routing_key": "celery",
        "now": NOW,
        **changes,
    }
    return build_task_message(**fields)


def own(message: TaskMessage) -> Request:
    return decode_envelope(to_envelope(message, "tag-1"), "celery", "t")


def test_a_message_is_what_celery_sends_key_by_key() -> None:
    app = celery_app()
    theirs = json.loads(
        frame(
            app, 2, task_id="id-1", task={"args": (1, 2), "origin": "gen7@host"}, delivery_mode=2, priority=0
        )
    )
    ours = json.loads(to_envelope(built(ignore_result=False), theirs["properties"]["delivery_tag"]))
    assert ours == theirs
    assert list(ours["headers"]) == list(theirs["headers"])
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "xz"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_celery_reads_what_greenq_writes(serializer: str, compression: str | None) -> None:
    signature: dict[str, Any] = {
        "task": "proj.next",
        "args": [],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    message = built(
        args=tuple(ODD_ARGS[:12]),
        kwargs={"when": NOW},
        eta=NOW + timedelta(hours=1),
        expires=NOW + timedelta(days=2),
        hard_limit=9,
        soft_limit=7.5,
        retries=2,
        shadow="shown",
        group="g",
        group_index=3,
        parent_id="p",
        root_id="r",
        chain=[signature],
        callbacks=[signature],
        serializer=serializer,
        compression=compression,
        headers={"tenant": "a", "when": NOW},
    )
    request, (args, kwargs, embed) = received(celery_app(), to_envelope(message, "tag-1"))
    assert list(args) == ODD_ARGS[:12]
    assert kwargs == {"when": NOW}
    assert embed == {"callbacks": [signature], "errbacks": None, "chain": [signature], "chord": None}
    assert (request.id, request.name, request.time_limits) == ("id-1", "shown", [9, 7.5])
    assert (request.eta, request.expires) == (NOW + timedelta(hours=1), NOW + timedelta(days=2))
    assert (request.root_id, request.parent_id, request.correlation_id) == ("r", "p", "id-1")
    assert request.request_dict["tenant"] == "a"
    assert request.request_dict["when"] == NOW


@pytest.mark.parametrize("compression", [None, "zlib", "bzip2", "lzma"])
def test_greenq_reads_what_celery_writes(compression: str | None) -> None:
    options = {
        "args": ODD_ARGS[:11],
        "kwargs": {"when": NOW},
        "eta": NOW,
        "expires": NOW + timedelta(seconds=90),
        "retries": 1,
        "time_limit": 5,
        "soft_time_limit": 4.5,
        "group_id": "g",
        "group_index": 2,
        "root_id": "r",
        "parent_id": "p",
        "shadow": "s",
        "reply_to": "q-1",
        "callbacks": [{"task": "proj.next"}],
    }
    raw = frame(celery_app(), 2, task_id="id-2", task=options, compression=compression, priority=4)
    request = decode_envelope(raw, "celery", "t")
    assert (request.id, request.name, request.display_name, request.protocol) == ("id-2", "proj.add", "s", 2)
    assert (request.eta, request.expires) == (NOW.timestamp(), NOW.timestamp() + 90)
    assert (request.hard_limit, request.soft_limit, request.retries, request.priority) == (5.0, 4.5, 1, 4)
    assert (request.group, request.group_index, request.root_id, request.parent_id) == ("g", 2, "r", "p")
    assert (request.reply_to, request.correlation_id, request.routing_key) == ("q-1", "id-2", "celery")
    args, kwargs, embed = decode_body(request, JSON)
    assert [repr(each) for each in args] == [repr(each) for each in ODD_ARGS[:11]]
    assert kwargs == {"when": NOW}
    assert embed == {"callbacks": [{"task": "proj.next"}]}


def test_a_protocol_1_message_of_celery_is_completed_from_its_body() -> None:
    options = {
        "args": (1, 2),
        "kwargs": {"k": "v"},
        "eta": NOW,
        "expires": NOW + timedelta(seconds=90),
        "retries": 3,
        "time_limit": 5,
        "group_id": "g",
        "group_index": 1,
        "callbacks": [{"task": "proj.next"}],
        "chord": {"task": "proj.sum"},
    }
    request = decode_envelope(frame(celery_app(), 1, task_id="id-3", task=options), "celery", "t")
    assert (request.protocol, request.name, request.id) == (1, "", "")
    complete_v1(request, JSON)
    assert (request.id, request.name, request.retries, request.group) == ("id-3", "proj.add", 3, "g")
    assert (request.eta, request.expires) == (NOW.timestamp(), NOW.timestamp() + 90)
    assert (request.hard_limit, request.soft_limit, request.group_index) == (5.0, None, 1)
    assert (request.argsrepr, request.kwargsrepr) == ("[1, 2]", "{'k': 'v'}")
    embed = {"callbacks": [{"task": "proj.next"}], "chord": {"task": "proj.sum"}}
    assert decode_body(request, JSON) == ([1, 2], {"k": "v"}, embed)


def v1(body: Any) -> Request:
    tree = {
        "body": json.dumps(body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {},
    }
    return decode_envelope(json.dumps(tree).encode(), "celery", "t")


def test_a_protocol_1_message_without_an_id_gets_one_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = v1({"task": "proj.add\nforged"})
    with caplog.at_level(logging.WARNING):
        complete_v1(request, JSON)
    assert str(UUID(request.id)) == request.id
    assert request.id in caplog.text
    assert "add\nforged" not in caplog.messages[0]
    assert decode_body(request, JSON) == ([], {}, {})


def test_a_protocol_1_moment_is_local_time_if_the_sender_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        local = v1(
            {"task": "a", "id": "b", "utc": False, "eta": "2026-11-22T15:00:00", "expires": NOW.isoformat()}
        )
        complete_v1(local, JSON)
        utc = v1({"task": "a", "id": "b", "utc": True, "eta": "2026-11-22T06:00:00"})
        complete_v1(utc, JSON)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert local.eta == local.expires == utc.eta == NOW.timestamp()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([[], {}, {}], "body_shape"),
        (7, "body_shape"),
        ({"id": "x"}, "body_shape"),
        ({"task": ["a"], "id": "x"}, "bad_header"),
        ({"task": "", "id": "x"}, "bad_header"),
        ({"task": "a", "id": {}}, None),
        ({"task": "a", "id": ["x"]}, "bad_header"),
        ({"task": "a", "id": "x", "eta": "soon"}, "bad_header"),
        ({"task": "a", "id": "x", "timelimit": [1, 2, 3]}, "bad_header"),
        ({"task": "a", "id": "x", "retries": -1}, "bad_header"),
        ({"task": "a", "id": "x", "taskset": 5}, "bad_header"),
    ],
)
def test_rubbish_in_a_protocol_1_body_has_a_reason(body: Any, reason: str | None) -> None:
    request = v1(body)
    if reason is None:
        complete_v1(request, JSON)
        assert request.id
        return
    with pytest.raises(MalformedMessage) as caught:
        complete_v1(request, JSON)
    assert caught.value.reason == reason


def test_a_hybrid_runs_with_its_headers_and_the_arguments_of_its_body() -> None:
    tree = json.loads(to_envelope(built(), "t"))
    tree["body"] = json.dumps(
        {"task": "other", "id": "other", "args": [5], "kwargs": {}, "errbacks": [{"task": "e"}]}
    )
    del tree["properties"]["body_encoding"]
    request = decode_envelope(json.dumps(tree).encode(), "celery", "t")
    assert (request.id, request.name) == ("id-1", "proj.add")
    assert decode_body(request, JSON) == ([5], {}, {"errbacks": [{"task": "e"}]})


def test_an_expiry_becomes_milliseconds_for_the_broker() -> None:
    assert built(expires=NOW + timedelta(seconds=60)).properties["expiration"] == "60000"
    assert built(expires=NOW - timedelta(seconds=60)).properties["expiration"] == "0"
    assert "expiration" not in built().properties


def test_a_moment_without_a_zone_is_utc() -> None:
    message = built(eta=NOW.replace(tzinfo=None))
    assert message.headers["eta"] == "2026-11-22T06:00:00+00:00"
    assert own(message).eta == NOW.timestamp()


def test_custom_headers_are_passed_on_but_never_replace_the_protocols_own() -> None:
    first = own(built(headers={"tenant": "a"}, compression="zlib", retries=1, shadow="s"))
    inherited = {**first.headers, "stamped_headers": ["run"], "stamps": {"run": 5}, "x-death": [{}]}
    again = built(task_id="id-2", retries=2, headers=inherited)
    assert again.headers["tenant"] == "a"
    assert again.headers["stamps"] == {"run": 5}
    assert (again.headers["id"], again.headers["retries"], again.headers["shadow"]) == ("id-2", 2, None)
    assert not {"compression", "x-death"} & set(again.headers)
    assert decode_body(own(again), JSON) == ([1, 2], {}, {})


@pytest.mark.parametrize("header", [NOW, UUID(int=3), Decimal("1.5"), b"x", float("nan"), {"deep": [NOW]}])
def test_an_envelope_is_written_as_kombus_encoder_would(header: Any) -> None:
    message = built(headers={"custom": header})
    raw = to_envelope(message, "t")
    tree = {
        "body": json.loads(raw)["body"],
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": message.headers,
        "properties": json.loads(raw)["properties"],
    }
    assert raw.decode() == kombu_dumps(tree)


def test_an_argument_that_cannot_be_written_is_the_callers_error() -> None:
    with pytest.raises(EncodeError, match="object"):
        built(args=(object(),))
    with pytest.raises(TypeError):
        built(kwargs={"k": object()})
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(EncodeError):
        built(args=(cycle,))
    with pytest.raises(ConfigError, match="json"):
        built(serializer="jsno")
    with pytest.raises(ConfigError, match="gzip"):
        built(compression="gzap")
