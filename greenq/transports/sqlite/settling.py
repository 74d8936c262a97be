"""How deliveries end: acknowledged, back in their queue, delayed, or in the dead queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from greenq.model import Settle, Settlement

DEAD_KEPT = 10_000  # the newest of a dead queue

# A tag is "<id>-<claim>", so that one of an earlier delivery, even by this owner, settles nothing.
_MINE = "id = ? AND claim = ? AND owner = ?"
_ACK = f"DELETE FROM message WHERE {_MINE}"
_REQUEUE = f"UPDATE message SET owner = NULL, redelivered = 1 WHERE {_MINE} RETURNING queue"
_DELAY = (
    f"UPDATE message SET owner = NULL, due = ?, redelivered = max(redelivered, ?) WHERE {_MINE} RETURNING queue"
)
_BURY = (
    "INSERT INTO message (queue, priority, redelivered, reason, body) "
    f"SELECT queue || '.dead', 0, 0, ?, body FROM message WHERE {_MINE} RETURNING queue"
)
_TRIM = (
    "DELETE FROM message WHERE id IN "
    "(SELECT id FROM message WHERE queue = ? AND owner IS NULL AND due IS NULL AND priority = 0 "
    f"ORDER BY id DESC LIMIT -1 OFFSET {DEAD_KEPT})"
)


def acknowledge(run: sqlite3.Connection, owner: str, tags: Sequence[str]) -> int:
    """Within a transaction: delete the messages; returns how many of them were the owner's."""
    return run.executemany(_ACK, [_mine(tag, owner) for tag in tags]).rowcount if tags else 0


def settle(run: sqlite3.Connection, owner: str, settlement: Settlement) -> list[str]:
    """Within a transaction: end one delivery.

    Returns the queue it went to (for an acknowledgement, was in), alone in a list, or an empty list if it
    was not the owner's any more. A requeued message stands where it stood before it was claimed.
    """
    mine = _mine(str(settlement.tag), owner)
    if settlement.how is Settle.REQUEUE:
        rows = run.execute(_REQUEUE, mine).fetchall()
    elif settlement.how is Settle.DELAY:
        # With a reason it had begun; without one it only waits for its time.
        rows = run.execute(_DELAY, (settlement.due, bool(settlement.reason), *mine)).fetchall()
    elif settlement.how is Settle.DEAD:
        rows = run.execute(_BURY, (settlement.reason, *mine)).fetchall()
        run.execute(_ACK, mine)
        run.executemany(_TRIM, rows)
    else:
        rows = run.execute(_ACK + " RETURNING queue", mine).fetchall()
    return [row[0] for row in rows]


def _mine(tag: str, owner: str) -> tuple[str, str, str]:
    number, _, claim = tag.partition("-")
    return number, claim, owner
