"""The decoder of task messages in plain Python, short enough to read: what the compiled one is held to."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta
from typing import Any

from kombu.utils.json import loads as kombu_loads

TEXTS = ("shadow", "root_id", "parent_id", "group", "origin", "argsrepr", "kwargsrepr")
MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?"
    r"(?:[Zz]|([+-])(\d\d)(?::?(\d\d)(?::?(\d\d))?)?)?)?",
    re.ASCII,
)


class RefusedError(Exception):
    """`args[0]` is the reason."""


def decode(raw: bytes) -> dict[str, Any]:
    """The fields of a request, or RefusedError."""
    envelope = load(raw)
    need(isinstance(envelope, dict), "envelope")
    headers = envelope.get("headers")
    headers = {} if headers is None else headers
    properties = envelope.get("properties")
    for value, kind in ((headers, dict), (properties, dict), (envelope.get("body"), str)):
        need(isinstance(value, kind), "envelope")
    encoding = properties.get("body_encoding")
    need(encoding in (None, "base64"), "body_encoding")
    need(len(headers) <= 1000, "bad_header")
    content_type = envelope.get("content-type")
    need(isinstance(content_type, str) and content_type, "content_type")
    content_encoding = envelope.get("content-encoding")
    need(content_encoding is None or isinstance(content_encoding, str), "bad_header")
    fields = {
        "content_type": content_type,
        "content_encoding": content_encoding or "utf-8",
        "body": envelope["body"],
        "body_encoding": encoding or "",
        "compression": text(headers, "compression"),
        "protocol": 2 if "task" in headers else 1,
        "headers": headers,
        "properties": properties,
        **delivery(headers, properties),
    }
    if fields["protocol"] == 2:
        fields["name"] = text(headers, "task")
        need(fields["name"], "bad_header")
        fields["id"] = text(headers, "id")
        need(fields["id"], "no_id")
        fields.update(fate(headers))
        fields.update((key, text(headers, key)) for key in TEXTS)
    return fields


def delivery(headers: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    reply_to, correlation_id = text(properties, "reply_to"), text(properties, "correlation_id")
    priority = properties.get("priority")
    need(priority is None or type(priority) is int, "bad_header")
    info = properties.get("delivery_info")
    info = {} if info is None else info
    need(isinstance(info, dict), "bad_header")
    return {
        "reply_to": reply_to or "",
        "correlation_id": correlation_id or "",
        "priority": min(max(priority or 0, 0), 9),
        "exchange": text(info, "exchange") or "",
        "routing_key": text(info, "routing_key") or "",
        "redelivered": headers.get("redelivered") is True or info.get("redelivered") is True,
        "stamped": bool(headers.get("stamped_headers")),
    }


def fate(headers: dict[str, Any]) -> dict[str, Any]:
    retries = headers.get("retries")
    need(retries is None or (type(retries) is int and 0 <= retries < 2**63), "bad_header")
    limits = headers.get("timelimit")
    need(limits is None or (isinstance(limits, list) and len(limits) == 2), "bad_header")
    ignore = headers.get("ignore_result")
    need(ignore is None or type(ignore) is bool, "bad_header")
    index = headers.get("group_index")
    need(index is None or type(index) is int, "bad_header")
    stamped = headers.get("stamped_headers")
    need(stamped is None or isinstance(stamped, list), "bad_header")
    hard, soft = limits or (None, None)
    return {
        "retries": retries or 0,
        "hard_limit": limit(hard),
        "soft_limit": limit(soft),
        "eta": moment(headers.get("eta")),
        "expires": moment(headers.get("expires")),
        "ignore_result": ignore,
        "group_index": index,
    }


def load(raw: bytes) -> Any:
    need(depth(raw) <= 128, "envelope")
    try:
        if b'"__type__"' in raw:
            return kombu_loads(raw)
        return json.loads(raw.decode("utf-8"))
    except Exception as exc:
        raise RefusedError("envelope") from exc


def depth(raw: bytes) -> int:
    """How deep arrays and objects nest; brackets in strings do not count."""
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw, flags=re.DOTALL)
    bare = bare.split(b'"')[0]  # what follows a quote that never ends is all inside it
    level = deepest = 0
    for byte in bare:
        level += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, level)
    return deepest


def limit(value: Any) -> float | None:
    need(value is None or type(value) in (int, float), "bad_header")
    try:
        seconds = float(value or 0)
    except OverflowError:
        seconds = math.inf
    need(math.isfinite(seconds) and seconds >= 0, "bad_header")
    return seconds or None


def moment(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, datetime):  # kombu's typed JSON
        value = value.isoformat()
    need(isinstance(value, str), "bad_header")
    found = MOMENT.fullmatch(value)
    need(found, "bad_header")
    assert found is not None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    micros = int((found[7] or "")[:6].ljust(6, "0"))
    east = [int(part or 0) for part in found.groups()[8:]]
    need(east[0] < 24 and east[1] < 60 and east[2] < 60, "bad_header")
    try:
        since = datetime(year, month, day, hour, minute, second) - datetime(1970, 1, 1)  # noqa: DTZ001
    except ValueError as exc:
        raise RefusedError("bad_header") from exc
    offset = timedelta(hours=east[0], minutes=east[1], seconds=east[2])
    since -= -offset if found[8] == "-" else offset
    seconds = since.days * 86400 + since.seconds
    need(-62135596800 <= seconds <= 253402300799, "bad_header")
    return (seconds * 1_000_000 + micros) / 1e6


def text(source: dict[str, Any], key: str) -> str | None:
    value = source.get(key)
    if value is None:
        return None
    need(isinstance(value, str), "bad_header")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise RefusedError("bad_header") from exc
    return str(value)


def need(condition: object, reason: str) -> None:
    if not condition:
        raise RefusedError(reason)
