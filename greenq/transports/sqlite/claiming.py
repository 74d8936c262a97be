"""Which messages a claim takes, in which order, and how they look when they come back a second time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from greenq.transports.base import Delivery

READY = "queue = ? AND owner IS NULL AND due IS NULL"
PROBE = f"SELECT 1 FROM message WHERE {READY} LIMIT 1"
TIMES = (
    "SELECT (SELECT min(due) FROM message WHERE due IS NOT NULL), "
    "(SELECT min(expires) FROM message WHERE expires IS NOT NULL AND owner IS NULL)"
)
_PRIORITIES = f"SELECT priority FROM message WHERE {READY} ORDER BY priority, id LIMIT ?"
_CLAIM = (
    "UPDATE message SET owner = ?, claim = ?, deliveries = deliveries + 1 WHERE id IN "
    f"(SELECT id FROM message WHERE {READY} ORDER BY priority, id LIMIT ?) "
    "RETURNING priority, id, redelivered, body"
)


def bring_up_to_date(run: sqlite3.Connection, now: float) -> None:
    """Within a transaction: make ready what is due, delete what has outlived its queue's message TTL."""
    run.execute("UPDATE message SET due = NULL WHERE due <= ?", (now,))
    run.execute("DELETE FROM message WHERE expires <= ? AND owner IS NULL", (now,))


def take(
    run: sqlite3.Connection, owner: str, claim: int, queues: Sequence[str], limit: int, rotation: int
) -> list[Delivery]:
    """Within a transaction: claim up to `limit` ready messages for the owner.

    Priority by priority (0 first, as in kombu's Redis transport), and within one in turn from each queue,
    beginning with the one `rotation` says.
    """
    if len(queues) == 1:
        return _take_from(run, owner, claim, queues[0], limit)
    start = rotation % max(len(queues), 1)
    order = [*queues[start:], *queues[:start]]
    plan = _plan(run, order, limit)
    taken = [iter(_take_from(run, owner, claim, queue, plan.count(place))) for place, queue in enumerate(order)]
    return [next(taken[place]) for place in plan]


def _plan(run: sqlite3.Connection, order: Sequence[str], limit: int) -> list[int]:
    """From which of the queues (its place in `order`) to take, message by message."""
    candidates: list[tuple[int, int, int]] = []
    for place, queue in enumerate(order):
        rank, level = 0, -1
        for (priority,) in run.execute(_PRIORITIES, (queue, limit)):
            rank, level = (rank + 1 if priority == level else 0), priority
            candidates.append((priority, rank, place))
    candidates.sort()
    return [place for _, _, place in candidates[:limit]]


def _take_from(run: sqlite3.Connection, owner: str, claim: int, queue: str, share: int) -> list[Delivery]:
    if not share:
        return []
    rows: list[Any] = run.execute(_CLAIM, (owner, claim, queue, share)).fetchall()
    rows.sort()  # RETURNING promises no order
    return [
        Delivery(f"{number}-{claim}", mark_redelivered(body) if redelivered else body, queue)
        for _, number, redelivered, body in rows
    ]


def mark_redelivered(raw: bytes) -> bytes:
    """The envelope with the two marks kombu's Redis transport puts into one it restores (wire.md 5.9).

    What is no JSON object is left as it is: whoever decodes it will say so.
    """
    try:
        envelope = json.loads(raw)
        envelope["headers"]["redelivered"] = True
        envelope["properties"].setdefault("delivery_info", {})["redelivered"] = True
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return raw
    return json.dumps(envelope).encode()
