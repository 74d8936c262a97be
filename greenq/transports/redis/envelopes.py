"""What stands in kombu's `unacked` hash, and how a message leaves it for its queue again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

_BETWEEN = b', "", "'
WRAPPED = b'{"greenq-raw"'


class Entry(NamedTuple):
    """One value of the `unacked` hash, taken apart."""

    raw: bytes
    exchange: str
    routing_key: str


def tail(queue: str) -> str:
    """What follows the envelope in a value: `, "", "<queue>"]`, so that kombu restores to that queue."""
    return f', "", {json.dumps(queue)}]'


def unwrap(raw: bytes) -> bytes:
    """The bytes as they stood in the queue: what is not a JSON object is kept as hex in one (scripts.CLAIM).

    A stock kombu worker that restores such an entry puts the object into the queue; it comes back as the
    original bytes all the same.
    """
    if not raw.startswith(WRAPPED):
        return raw
    try:
        return bytes.fromhex(json.loads(raw)["greenq-raw"])
    except (ValueError, TypeError, KeyError):
        return raw


def parse_entry(value: bytes) -> Entry | None:
    """Take a value of the `unacked` hash apart: `[envelope, exchange, routing key]`, ours or kombu's.

    Where it is our own the envelope comes out byte for byte. None for what is no such value.
    """
    at = value.rfind(_BETWEEN)
    if value.startswith(b"[") and at > 0:
        # Only where all that follows is one JSON string: the pattern also occurs inside envelopes.
        queue = _loads(value[at + len(_BETWEEN) - 1 : -1])
        if isinstance(queue, str):
            return Entry(unwrap(value[1:at]), "", queue)
    fields = _loads(value)
    if not isinstance(fields, list) or len(fields) != 3:
        return None
    payload, exchange, routing_key = fields
    if not isinstance(exchange or "", str) or not isinstance(routing_key or "", str):
        return None
    return Entry(unwrap(json.dumps(payload).encode()), exchange or "", routing_key or "")


def mark_redelivered(raw: bytes) -> bytes:
    """Set the two marks kombu sets when it restores a message; what is not an envelope stays as it is."""
    payload = _loads(raw)
    if not isinstance(payload, dict):
        return raw
    headers, properties = payload.get("headers"), payload.get("properties")
    if isinstance(headers, dict):
        headers["redelivered"] = True
    info = properties.get("delivery_info") if isinstance(properties, dict) else None
    if isinstance(info, dict):
        info["redelivered"] = True
    return json.dumps(payload).encode()


def priority_of(raw: bytes) -> int:
    """The envelope's priority, 0 to 9; 0 where it has none, as in kombu."""
    payload = _loads(raw)
    properties = payload.get("properties") if isinstance(payload, dict) else None
    try:
        return min(max(int(properties["priority"]), 0), 9) if isinstance(properties, dict) else 0
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def bound_queues(table: Iterable[bytes], separator: str, routing_key: str) -> list[str]:
    """The queues an exchange's bindings lead to, for a routing key.

    A member is `key SEP pattern SEP queue`; only topic bindings have a pattern. The stored pattern is not
    used: no regular expression of somebody else's is run here, ours is made from the key as kombu makes it.
    """
    found: set[str] = set()
    for member in table:
        key, _, rest = member.decode(errors="replace").partition(separator)
        pattern, _, queue = rest.partition(separator)
        if queue and (_topic(key).match(routing_key) if pattern else key == routing_key):
            found.add(queue)
    return sorted(found)


def _topic(key: str) -> re.Pattern[str]:
    wild = {"*": r".*?[^\.]", "#": r".*?"}
    return re.compile(r"^" + r"\.".join(wild.get(word) or re.escape(word) for word in key.split(".")) + "$")


def _loads(raw: bytes) -> Any:
    """Plain JSON without kombu's type hooks, or None: marks are set on text, no value is rebuilt."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
