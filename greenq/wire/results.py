"""Stored results: the meta object of a task and the exception object in it (wire.md 6.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from greenq.exceptions import EncodeError, MalformedMessage
from greenq.model import State
from greenq.wire import failures
from greenq.wire.compression import compress, decompress
from greenq.wire.serializers import JSON, PICKLE, Accept, dumps, dumps_json, loads, mime_type

MAGIC = b"\x00celery-compressed\x00"


@dataclass(frozen=True, slots=True)
class Meta:
    """One stored result. `result` is the value, a custom state's meta, or a rebuilt exception.

    `children` are result tuples or None; `date_done` is the ISO text as stored; `raw` is the whole object.
    """

    status: str
    result: Any
    traceback: str | None
    children: list[Any] | None
    date_done: str | None
    task_id: str
    raw: dict[str, Any]


def encode_success(  # noqa: PLR0913  (one keyword for each field of a stored result)
    task_id: str,
    value: Any,
    *,
    serializer: str = "json",
    children: Sequence[Any] | None = (),
    date_done: datetime,
    group_id: str | None = None,
    parent_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
    compression: str | None = None,
) -> bytes:
    """Encode a SUCCESS. `children` are ids, result tuples, or objects with `as_tuple()`.

    Raises:
        EncodeError: the serializer cannot write the value.
        ConfigError: there is no such serializer or compression.
    """
    meta = _meta(task_id, State.SUCCESS, value, None, children, date_done, group_id, parent_id, extended)
    try:
        return _write(meta, serializer, compression)
    except EncodeError:
        # A task that returns another task's result object stores its tuple form, as Celery does.
        as_tuple = getattr(value, "as_tuple", None)
        if as_tuple is None:
            raise
        meta["result"] = as_tuple()
        return _write(meta, serializer, compression)


def encode_exception(  # noqa: PLR0913  (as encode_success)
    task_id: str,
    state: str,
    exc: BaseException,
    *,
    traceback: str | None = None,
    serializer: str = "json",
    children: Sequence[Any] | None = (),
    date_done: datetime | None = None,
    group_id: str | None = None,
    parent_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
    compression: str | None = None,
) -> bytes:
    """Encode a FAILURE, RETRY or REVOKED; survives whatever the exception holds or does when asked.

    Raises:
        ConfigError: there is no such serializer or compression.
    """
    described: Any = None
    if mime_type(serializer) == PICKLE:
        described = failures.picklable(exc)
    if described is None:
        described = failures.describe(exc, lambda value: dumps(value, serializer))
    meta = _meta(task_id, state, described, traceback, children, date_done, group_id, parent_id, extended)
    try:
        return _write(meta, serializer, compression)
    except EncodeError:
        # The exception object is writable by now; then it is the arguments or the children.
        meta.update(children=[], **{key: repr(meta[key])[:1024] for key in ("args", "kwargs") if key in meta})
        return _write(meta, serializer, compression)


def encode_state(  # noqa: PLR0913  (as encode_success)
    task_id: str,
    state: str,
    meta: Any,
    *,
    serializer: str = "json",
    children: Sequence[Any] | None = (),
    group_id: str | None = None,
    parent_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
    compression: str | None = None,
) -> bytes:
    """Encode STARTED or a custom state with its meta value.

    Raises:
        EncodeError: the serializer cannot write the meta value.
        ConfigError: there is no such serializer or compression.
    """
    whole = _meta(task_id, state, meta, None, children, None, group_id, parent_id, extended)
    return _write(whole, serializer, compression)


def decode_meta(payload: bytes, accept: Accept, content_type: str = JSON) -> Meta:
    """Decode what a result store holds; `content_type` is that of `result_serializer`.

    An exception is rebuilt only as a class that some imported module already has; otherwise it is a new
    subclass of Exception of that name. Nothing is imported.

    Raises:
        ContentRefused: the content type is not let in.
        MalformedMessage: the payload is no stored result.
    """
    if payload.startswith(MAGIC):
        mime, _, packed = payload[len(MAGIC) :].partition(b"\x00")
        payload = decompress(packed, mime.decode("latin-1"))
    raw = loads(payload, content_type, accept)
    if not isinstance(raw, dict) or not isinstance(raw.get("status"), str):
        raise MalformedMessage("body_shape", "a stored result is an object with a status")
    status = raw["status"]
    result = raw.get("result")
    if status in State.EXCEPTION and result is not None:
        result = failures.rebuild(result)
    traceback, children = raw.get("traceback"), raw.get("children")
    date_done = raw.get("date_done")
    if isinstance(date_done, datetime):
        date_done = date_done.isoformat()
    return Meta(
        status=status,
        result=result,
        traceback=traceback if isinstance(traceback, str) else None,
        children=children if isinstance(children, list) else None,
        date_done=date_done if isinstance(date_done, str) else None,
        task_id=str(raw.get("task_id") or ""),
        raw=raw,
    )


def _meta(  # noqa: PLR0913, PLR0917  (as encode_success)
    task_id: str,
    state: str,
    result: Any,
    traceback: str | None,
    children: Sequence[Any] | None,
    date_done: datetime | None,
    group_id: str | None,
    parent_id: str | None,
    extended: Mapping[str, Any] | None,
) -> dict[str, Any]:
    # The status comes first: the server-side script that never overwrites a success looks for it there.
    meta: dict[str, Any] = {
        "status": state,
        "result": result,
        "traceback": traceback,
        "children": [_child(child) for child in children] if children is not None else None,
        "date_done": date_done.isoformat() if date_done is not None else None,
    }
    if group_id:
        meta["group_id"] = group_id
    if parent_id:
        meta["parent_id"] = parent_id
    if extended:
        meta.update((key, value) for key, value in extended.items() if key not in meta)
    meta["task_id"] = task_id
    return meta


def _child(child: Any) -> Any:
    """A result tuple: [[id, parent], null] for a task."""
    if isinstance(child, str):
        return [[child, None], None]
    as_tuple = getattr(child, "as_tuple", None)
    return child if as_tuple is None else as_tuple()


def _write(meta: dict[str, Any], serializer: str, compression: str | None) -> bytes:
    data = dumps_json(meta) if serializer == "json" else dumps(meta, serializer)[0]
    if compression:
        packed, mime = compress(data, compression)
        data = MAGIC + mime.encode() + b"\x00" + packed
    return data
