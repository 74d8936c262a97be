"""Task messages: built in protocol 2, put into kombu's envelope, completed from protocol 1 (wire.md 5)."""

from __future__ import annotations

import logging
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import msgspec

from greenq._speedups import Malformed, decode_parts, parse_time
from greenq.exceptions import MalformedMessage
from greenq.log import printable
from greenq.model import Request, TaskMessage
from greenq.wire.body import decode_value, encode_body
from greenq.wire.reprs import safe_repr
from greenq.wire.serializers import Accept, dumps_json

logger = logging.getLogger(__name__)

_encode = msgspec.json.encode  # of what was made here; arguments and custom headers take kombu's encoder

# Headers that belong to one message or to the transport. A retry passes on all headers of its predecessor
# as custom ones: a stale `compression` would make the new body unreadable, a stale `id` another task.
_OWN_HEADERS = frozenset(
    {
        "argsrepr", "compression", "eta", "expires", "group", "group_index", "id", "ignore_result",
        "kwargsrepr", "lang", "origin", "parent_id", "redelivered", "retries", "root_id", "shadow", "task",
        "timelimit", "x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
        "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason",
    }
)  # fmt: skip


def build_task_message(  # noqa: PLR0913  (one keyword for each thing the protocol carries)
    *,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    task_id: str,
    origin: str,
    routing_key: str,
    now: datetime,
    exchange: str = "",
    serializer: str = "json",
    compression: str | None = None,
    eta: datetime | None = None,
    expires: datetime | None = None,
    retries: int = 0,
    hard_limit: float | None = None,
    soft_limit: float | None = None,
    root_id: str | None = None,
    parent_id: str | None = None,
    group: str | None = None,
    group_index: int | None = None,
    shadow: str | None = None,
    ignore_result: bool | None = None,
    reply_to: str = "",
    priority: int | None = None,
    headers: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    errbacks: Sequence[Any] | None = None,
    chain: Sequence[Any] | None = None,
    chord: Mapping[str, Any] | None = None,
    delivery_mode: int = 2,
) -> TaskMessage:
    """Build a protocol 2 message (wire.md 5.1 to 5.3).

    Naive moments are UTC. `headers` are custom ones; of the protocol's own they may set only `stamps`,
    `stamped_headers` and `replaced_task_nesting`. `chain` stands in reverse: its last element runs next.
    Raises EncodeError for an argument that cannot be serialized, ConfigError for an unknown serializer.
    """
    embed = {"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": chord}
    body = encode_body(args, kwargs, embed, serializer=serializer, compression=compression)
    own: dict[str, Any] = {
        "lang": "py", "task": name, "id": task_id, "shadow": shadow, "eta": _iso(eta),
        "expires": _iso(expires), "group": group, "group_index": group_index, "retries": retries,
        "timelimit": [hard_limit, soft_limit], "root_id": root_id or task_id, "parent_id": parent_id,
        "argsrepr": safe_repr(args), "kwargsrepr": safe_repr(kwargs), "origin": origin,
        "ignore_result": ignore_result, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    _add_custom(own, headers, body.compression)
    properties = _properties(task_id, reply_to, delivery_mode, priority, expires, now)
    return TaskMessage(own, *body[:3], properties, exchange, routing_key, not headers)


def to_envelope(message: TaskMessage, delivery_tag: str) -> bytes:
    """Write kombu's virtual-transport envelope, as its Redis transport does (wire.md 5.9).

    Raises:
        EncodeError: a custom header cannot be written as JSON.
    """
    properties = {
        **message.properties,
        "delivery_info": {"exchange": message.exchange, "routing_key": message.routing_key},
        "body_encoding": "base64",
        "delivery_tag": delivery_tag,
    }
    properties["priority"] = properties.get("priority") or 0
    envelope = {
        "body": b2a_base64(message.body, newline=False).decode("ascii"),
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": message.headers,
        "properties": properties,
    }
    if message.plain:
        try:
            return _encode(envelope)
        except UnicodeEncodeError:
            # Half a surrogate pair in an argument's text: only kombu's encoder can write it.
            return dumps_json(envelope)
    return dumps_json(envelope)


def complete_v1(request: Request, accept: Accept) -> None:
    """Fill in a protocol 1 request from its body, which is one object (wire.md 5.4).

    A message without an id gets one: Celery runs such messages too, and without an id nobody could end them.

    Raises:
        ContentRefused: the content type is not let in.
        MalformedMessage: the body cannot be read, or is neither protocol.
    """
    body = decode_value(request, accept)
    if not isinstance(body, dict) or "task" not in body:
        raise MalformedMessage("body_shape", "neither a task header nor a body that names a task")
    headers = {
        "task": body["task"],
        "id": body.get("id") or str(uuid4()),
        "group": body.get("taskset") or body.get("group"),
        **{key: body.get(key) for key in ("retries", "eta", "expires", "timelimit", "group_index")},
    }
    try:
        checked = decode_parts(headers, {}, request.content_type, None, b"", request.queue, request.tag)
    except Malformed as error:
        raise MalformedMessage(error.reason, error.detail) from error
    if not body.get("id"):
        name = printable(checked.name)
        logger.warning("A protocol 1 message for %s has no id; it runs as %s.", name, checked.id)
    request.id = checked.id
    request.name = checked.name
    request.group = checked.group
    request.group_index = checked.group_index
    request.retries = checked.retries
    request.hard_limit = checked.hard_limit
    request.soft_limit = checked.soft_limit
    request.eta = _local(checked.eta, headers["eta"], body)
    request.expires = _local(checked.expires, headers["expires"], body)
    request.argsrepr = safe_repr(body.get("args") or ())
    request.kwargsrepr = safe_repr(body.get("kwargs") or {})


def _add_custom(own: dict[str, Any], headers: Mapping[str, Any] | None, compression: str | None) -> None:
    if headers:
        own.update((key, value) for key, value in headers.items() if key not in _OWN_HEADERS)
    if compression is not None:
        own["compression"] = compression


def _properties(
    task_id: str,
    reply_to: str,
    delivery_mode: int,
    priority: int | None,
    expires: datetime | None,
    now: datetime,
) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "correlation_id": task_id,
        "reply_to": reply_to,
        "delivery_mode": delivery_mode,
        "priority": priority or 0,
    }
    if expires is not None:
        left = (_aware(expires) - _aware(now)).total_seconds()
        properties["expiration"] = str(max(0, int(left * 1000)))
    return properties


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else _aware(moment).isoformat()


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _local(seconds: float | None, text: Any, body: dict[str, Any]) -> float | None:
    """Read a moment again as local time, if the sender says it is (`utc` false) and it has no offset."""
    if seconds is None or body.get("utc") is not False or not isinstance(text, str):
        return seconds
    try:
        # Only a text that has no offset can be read with one more.
        parse_time(text + "Z")
        return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).timestamp()
    except (ValueError, OverflowError, OSError):
        return seconds
