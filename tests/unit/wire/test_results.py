"""Stored results, both ways between greenq and an installed Celery's backend."""

from __future__ import annotations

import sys
import types
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import billiard.exceptions
import celery.exceptions
import kombu.exceptions
import pytest
from celery import Celery
from celery.result import AsyncResult

from greenq import exceptions as own
from greenq.exceptions import ContentRefused, EncodeError, MalformedMessage
from greenq.model import Malformed, State
from greenq.wire.results import MAGIC, decode_meta, encode_exception, encode_state, encode_success
from greenq.wire.serializers import PICKLE, Accept
from tests.unit.wire.celery_side import celery_app

NOW = datetime(2026, 11, 22, 6, 49, 18, 652896, tzinfo=timezone.utc)
JSON = Accept.of(["json"])
ID = "f1960b1e-1f65-4c2c-9d2b-0f6a3b6d8f01"
VALUES = [
    3,
    None,
    "é",
    1.5,
    True,
    [1, (2,)],
    {"a": {"b": [NOW]}},
    NOW,
    UUID(int=4),
    Decimal("1.10"),
    b"x",
    2**80,
]


def seen_by_celery(payload: bytes, **conf: Any) -> AsyncResult:
    app = celery_app(**conf)
    app.backend.keep(ID, payload)
    return app.AsyncResult(ID)


def stored_by_celery(app: Celery, result: Any, state: str, **more: Any) -> bytes:
    app.backend.store_result(ID, result, state, **more)
    return bytes(app.backend.payload(ID))


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_celery_reads_a_success(value: Any, serializer: str, compression: str | None) -> None:
    payload = encode_success(
        ID,
        value,
        serializer=serializer,
        date_done=NOW,
        children=["kid"],
        parent_id="p",
        compression=compression,
    )
    result = seen_by_celery(payload, result_serializer=serializer, accept_content=["json", "pickle"])
    expected = [1, [2]] if isinstance(value, list) and serializer == "json" else value
    assert result.state == "SUCCESS"
    assert result.get(timeout=5) == expected
    assert result.date_done == NOW
    assert [child.id for child in result.children] == ["kid"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("compression", [None, "zlib", "xz"])
def test_greenq_reads_a_success_of_celery(value: Any, compression: str | None) -> None:
    payload = stored_by_celery(celery_app(result_compression=compression), value, "SUCCESS")
    assert payload.startswith(MAGIC) is (compression is not None)
    meta = decode_meta(payload, JSON)
    assert (meta.status, meta.task_id, meta.traceback) == ("SUCCESS", ID, None)
    assert meta.result == ([1, [2]] if isinstance(value, list) else value)
    assert meta.date_done is not None
    assert datetime.fromisoformat(meta.date_done).tzinfo is not None


def test_a_success_is_the_very_text_that_celery_stores() -> None:
    theirs = stored_by_celery(celery_app(), {"a": [1, 2.5, "é"]}, "SUCCESS").decode()
    meta = decode_meta(theirs.encode(), JSON)
    assert meta.date_done is not None
    ours = encode_success(
        ID, {"a": [1, 2.5, "é"]}, date_done=datetime.fromisoformat(meta.date_done), children=None
    ).decode()
    assert ours.replace('"children": null', '"children": []') == theirs.replace(
        '"children": null', '"children": []'
    )
    assert ours.startswith('{"status": "SUCCESS", "result": ')


class OwnError(Exception):
    pass


class WantsMoreError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"{code} {hint}")


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize(
    ("exc", "kind", "args"),
    [
        (ValueError("boom", 42), ValueError, ("boom", 42)),
        (OwnError("x"), OwnError, ("x",)),
        (own.TaskRevokedError("revoked"), celery.exceptions.TaskRevokedError, ("revoked",)),
        (own.NotRegistered("proj.gone"), celery.exceptions.NotRegistered, ("proj.gone",)),
        (own.MaxRetriesExceeded("enough"), celery.exceptions.MaxRetriesExceededError, ("enough",)),
        (own.TimeLimitExceeded(2), billiard.exceptions.TimeLimitExceeded, (2,)),
        (own.HardTimeLimit(2.5), billiard.exceptions.TimeLimitExceeded, (2.5,)),
        (own.SoftTimeLimitExceeded(), billiard.exceptions.SoftTimeLimitExceeded, ()),
        (own.WorkerLostError("gone"), billiard.exceptions.WorkerLostError, ("gone",)),
        (own.Killed("by hand"), billiard.exceptions.Terminated, ("by hand",)),
        (own.Ignore(), celery.exceptions.Ignore, ()),
        (own.EncodeError("no"), kombu.exceptions.EncodeError, ("no",)),
        (own.ContentRefused("content_type", "x"), kombu.exceptions.ContentDisallowed, ("content_type", "x")),
        (Malformed("envelope", "x", ID), celery.exceptions.InvalidTaskError, ("envelope", "x")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_celery_catches_a_failure_by_the_class_it_knows(
    exc: BaseException, kind: type[BaseException], args: tuple[Any, ...], serializer: str
) -> None:
    payload = encode_exception(
        ID, State.FAILURE, exc, traceback="Traceback ...", serializer=serializer, date_done=NOW
    )
    result = seen_by_celery(payload, result_serializer=serializer, accept_content=["json", "pickle"])
    with pytest.raises(kind) as caught:
        result.get(timeout=5)
    assert type(caught.value) is kind
    assert caught.value.args == args
    assert result.traceback == "Traceback ..."


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (ValueError("boom", 42), ValueError),
        (celery.exceptions.TaskRevokedError("revoked"), own.TaskRevokedError),
        (celery.exceptions.NotRegistered("proj.gone"), own.NotRegistered),
        (celery.exceptions.MaxRetriesExceededError("enough"), own.MaxRetriesExceeded),
        (billiard.exceptions.TimeLimitExceeded(2), own.TimeLimitExceeded),
        (billiard.exceptions.SoftTimeLimitExceeded(), own.SoftTimeLimitExceeded),
        (billiard.exceptions.WorkerLostError("gone"), own.WorkerLostError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_greenq_rebuilds_a_failure_of_celery_as_its_own_class(
    theirs: Exception, ours: type[Exception]
) -> None:
    payload = stored_by_celery(celery_app(), theirs, "FAILURE", traceback="Traceback ...")
    meta = decode_meta(payload, JSON)
    assert type(meta.result) is ours
    assert meta.result.args == theirs.args
    assert meta.traceback == "Traceback ..."


def test_what_greenq_stores_greenq_reads_back_as_its_own() -> None:
    for exc in (own.TaskRevokedError("x"), own.Retry("later", None, 5), own.HardTimeLimit(3)):
        meta = decode_meta(encode_exception(ID, State.RETRY, exc), JSON)
        assert isinstance(
            meta.result, own.TimeLimitExceeded if isinstance(exc, own.HardTimeLimit) else type(exc)
        )
        assert meta.result.args == exc.args


def test_an_argument_that_cannot_be_stored_becomes_its_repr() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    meta = decode_meta(encode_exception(ID, State.FAILURE, ValueError(1, {1, 2}, object, cycle)), JSON)
    assert meta.result.args[:3] == (1, "{1, 2}", "<class 'object'>")
    assert meta.result.args[3].startswith("[[[")


class MuteError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("not even this")

    __str__ = __repr__


class Opaque:
    def __repr__(self) -> str:
        raise SystemError("nor this")


class StubbornError(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise KeyError("args")


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_an_exception_that_fights_back_is_stored_all_the_same(serializer: str) -> None:
    looped = OwnError("looped")
    looped.__cause__ = looped
    chained: BaseException = OwnError("chained")
    for _ in range(20_000):
        link = OwnError("link")
        link.__context__ = chained
        chained = link
    itself = OwnError("itself")
    itself.args = (itself,)
    fighters = [MuteError(Opaque()), StubbornError("x"), looped, chained, itself, WantsMoreError(1, hint="h")]
    for exc in fighters:
        payload = encode_exception(ID, State.FAILURE, exc, serializer=serializer, date_done=NOW)
        accept = Accept.of(["json", "pickle"])
        meta = decode_meta(payload, accept, PICKLE if serializer == "pickle" else "application/json")
        assert type(meta.result).__name__ == type(exc).__name__
        result = seen_by_celery(payload, result_serializer=serializer, accept_content=["json", "pickle"])
        assert result.state == "FAILURE"
        assert isinstance(result.result, Exception)


def test_extended_arguments_that_cannot_be_stored_do_not_lose_the_failure() -> None:
    extended = {
        "name": "a",
        "args": [object()],
        "kwargs": {"k": 1},
        "worker": "w@h",
        "retries": 1,
        "queue": "q",
    }
    meta = decode_meta(encode_exception(ID, State.FAILURE, OwnError("x"), extended=extended), JSON)
    assert isinstance(meta.result, OwnError)
    assert (meta.raw["name"], meta.raw["worker"], meta.raw["queue"]) == ("a", "w@h", "q")
    assert "object object" in meta.raw["args"]


def test_states_and_their_meta_are_read_by_celery() -> None:
    started = seen_by_celery(encode_state(ID, State.STARTED, {"pid": 5, "hostname": "w@h"}))
    assert (started.state, started.info, started.date_done) == (
        "STARTED",
        {"pid": 5, "hostname": "w@h"},
        None,
    )
    progress = seen_by_celery(encode_state(ID, "PROGRESS", {"done": 0.5}, extended={"name": "proj.add"}))
    assert (progress.state, progress.info, progress.name) == ("PROGRESS", {"done": 0.5}, "proj.add")


def test_a_returned_result_object_is_stored_as_its_tuple() -> None:
    class Handle:
        def as_tuple(self) -> Any:
            return [["other", None], None]

    meta = decode_meta(encode_success(ID, Handle(), date_done=NOW, children=[Handle(), "kid"]), JSON)
    assert meta.result == [["other", None], None]
    assert meta.children == [[["other", None], None], [["kid", None], None]]
    with pytest.raises(EncodeError):
        encode_success(ID, object(), date_done=NOW)


def fake_failure(**fields: Any) -> bytes:
    return encode_state(
        ID, State.FAILURE, {"exc_type": "E", "exc_message": ["x"], "exc_module": "m", **fields}
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "int"),
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("subprocess", "Popen"),
        ("os", "path.join"),
        ("os", "__class__"),
        ("nowhere.at.all", "SomeError"),
        ("", ""),
        ("builtins", "ValueError.__init__"),
        ("builtins", "naïve\x00\ud800"),
        ("tests.lazy", "Anything"),
    ],
)
def test_a_planted_class_name_is_never_called_nor_imported(module: str, name: str) -> None:
    lazy = types.ModuleType("tests.lazy")
    lazy.__getattr__ = lambda _: pytest.fail("a stored name ran a module's code")  # type: ignore[method-assign]
    sys.modules["tests.lazy"] = lazy
    before = set(sys.modules)
    try:
        meta = decode_meta(fake_failure(exc_type=name, exc_module=module, exc_message=["id"]), JSON)
    finally:
        del sys.modules["tests.lazy"]
    assert type(meta.result).__mro__[1:] == (Exception, BaseException, object)
    assert meta.result.args == ("id",)
    assert set(sys.modules) | {"tests.lazy"} == before


@pytest.mark.parametrize(
    "result",
    ["text", 5, [1, 2], {}, {"exc_type": 7}, {"exc_type": "ValueError", "exc_module": 3}, {"exc_type": "E"}],
)
def test_an_exception_object_of_the_wrong_shape_is_still_an_exception(result: Any) -> None:
    meta = decode_meta(encode_state(ID, State.FAILURE, result), JSON)
    assert isinstance(meta.result, Exception)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "body_decode"),
        (b"[]", "body_shape"),
        (b"{}", "body_shape"),
        (b'{"status": 5}', "body_shape"),
        (b"\xff", "body_decode"),
        (MAGIC + b"application/x-gzip\x00rubbish", "compression"),
        (MAGIC + b"application/x-nothing\x00rubbish", "compression"),
        (MAGIC, "compression"),
    ],
)
def test_rubbish_in_the_store_is_an_error_with_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode_meta(payload, JSON)
    assert caught.value.reason == reason


def test_a_pickled_result_is_refused_unless_let_in() -> None:
    payload = encode_success(ID, 1, serializer="pickle", date_done=NOW)
    with pytest.raises(ContentRefused):
        decode_meta(payload, JSON, PICKLE)
    assert decode_meta(payload, Accept.of(["pickle"]), PICKLE).result == 1
