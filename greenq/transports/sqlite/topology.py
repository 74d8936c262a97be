"""Exchanges, queues and bindings of the embedded broker, shared by all processes through its file."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.doorbell import Doorbell

INSERT = (
    "INSERT INTO message (queue, priority, body, expires) "
    "VALUES (?, ?, ?, (SELECT ? + message_ttl FROM queue WHERE name = ?))"
)
_INSERT_BOUND = (
    "INSERT INTO message (queue, priority, body, expires) "
    "SELECT b.queue, ?, ?, ? + q.message_ttl FROM binding b LEFT JOIN queue q ON q.name = b.queue "
    "WHERE b.exchange = ? {condition} GROUP BY b.queue RETURNING queue"
)
_INSERT_DIRECT = _INSERT_BOUND.format(condition="AND b.routing_key = ?")
_INSERT_FANOUT = _INSERT_BOUND.format(condition="")


class Exchange(NamedTuple):
    """What was declared of an exchange; the arguments as JSON text."""

    type: str
    durable: bool
    auto_delete: bool
    arguments: str


class Topology:
    """The AMQP part of the broker. Uses its owner's connection, so it has the same one user at a time."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell

    def declare_exchange(self, name: str, exchange: Exchange) -> Exchange:
        """Make the exchange unless it exists; returns it as it stands."""
        found = self.exchange(name)
        if found is not None:
            return found
        with self._database.writing as run:
            run.execute("INSERT OR IGNORE INTO exchange VALUES (?, ?, ?, ?, ?)", (name, *exchange))
        return self.exchange(name) or exchange

    def exchange(self, name: str) -> Exchange | None:
        with self._database.reading as run:
            row = run.execute(
                "SELECT type, durable, auto_delete, arguments FROM exchange WHERE name = ?", (name,)
            ).fetchone()
        return Exchange(row[0], bool(row[1]), bool(row[2]), row[3]) if row else None

    def delete_exchange(self, name: str) -> None:
        with self._database.writing as run:
            run.execute("DELETE FROM exchange WHERE name = ?", (name,))
            run.execute("DELETE FROM binding WHERE exchange = ?", (name,))

    def declare_queue(
        self, name: str, *, owner: str | None, auto_delete: bool, expires: float | None, message_ttl: float | None
    ) -> None:
        """Make the queue, or renew its lifetime. An `owner` takes it along when it dies. Times in seconds."""
        row = (name, owner, int(auto_delete), expires, message_ttl)
        if owner is None and expires is None and self._is_declared(name):
            return  # the usual case, at every start of every producer: no write lock
        with self._database.writing as run:
            run.execute(
                "INSERT INTO queue (name, owner, auto_delete, expires, message_ttl, touched) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "owner = coalesce(excluded.owner, queue.owner), touched = excluded.touched",
                (*row, time.time()),
            )

    def _is_declared(self, name: str) -> bool:
        with self._database.reading as run:
            return run.execute("SELECT 1 FROM queue WHERE name = ?", (name,)).fetchone() is not None

    def has_queue(self, name: str) -> bool:
        """Whether it was declared, or holds messages posted to it without a declaration."""
        with self._database.reading as run:
            return bool(
                run.execute(
                    "SELECT 1 FROM queue WHERE name = ? UNION ALL SELECT 1 FROM message WHERE queue = ? LIMIT 1",
                    (name, name),
                ).fetchone()
            )

    def listeners(self, queue: str) -> int:
        """How many consumers it has, in all processes."""
        with self._database.reading as run:
            return int(run.execute("SELECT count(*) FROM listener WHERE queue = ?", (queue,)).fetchone()[0])

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Drop the queue, its bindings and all its messages; returns how many messages that were."""
        with self._database.writing as run:
            if if_unused and run.execute("SELECT 1 FROM listener WHERE queue = ?", (name,)).fetchone():
                return 0
            if if_empty and run.execute("SELECT 1 FROM message WHERE queue = ?", (name,)).fetchone():
                return 0
            return drop_queue(run, name)

    def delete_owned(self, owner: str) -> None:
        """Drop the queues that belong to the owner."""
        with self._database.reading as run:
            names = [row[0] for row in run.execute("SELECT name FROM queue WHERE owner = ?", (owner,)).fetchall()]
        if names:
            with self._database.writing as run:
                for name in names:
                    drop_queue(run, name)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        key = (exchange, routing_key, queue)
        with self._database.reading as run:
            if run.execute(
                "SELECT 1 FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?", key
            ).fetchone():
                return
        with self._database.writing as run:
            run.execute("INSERT OR IGNORE INTO binding VALUES (?, ?, ?)", key)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self._database.writing as run:
            run.execute(
                "DELETE FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?",
                (exchange, routing_key, queue),
            )

    def bindings(self) -> list[tuple[str, str, str]]:
        """All of them, as (queue, exchange, routing key)."""
        with self._database.reading as run:
            return [tuple(row) for row in run.execute("SELECT queue, exchange, routing_key FROM binding")]

    def publish(self, kind: str, exchange: str, routing_key: str, raw: bytes, priority: int) -> list[str]:
        """Put the envelope into every queue the exchange leads to, in one transaction; returns those queues."""
        if kind == "topic":
            queues = self._publish_topic(exchange, routing_key, raw, priority)
        else:
            queues = self._publish_bound(kind, exchange, routing_key, raw, priority)
        if queues:
            self._doorbell.ring(queues)
        return queues

    def _publish_bound(self, kind: str, exchange: str, routing_key: str, raw: bytes, priority: int) -> list[str]:
        parameters: tuple[Any, ...] = (priority, raw, time.time(), exchange)
        with self._database.writing as run:
            if kind == "fanout":
                rows = run.execute(_INSERT_FANOUT, parameters).fetchall()
            else:
                rows = run.execute(_INSERT_DIRECT, (*parameters, routing_key)).fetchall()
        return [row[0] for row in rows]

    def _publish_topic(self, exchange: str, routing_key: str, raw: bytes, priority: int) -> list[str]:
        statement = "SELECT routing_key, queue FROM binding WHERE exchange = ?"
        with self._database.reading as run:  # events nobody watches must not take the write lock
            if not _matching(run.execute(statement, (exchange,)).fetchall(), routing_key):
                return []
        now = time.time()
        with self._database.writing as run:
            queues = _matching(run.execute(statement, (exchange,)).fetchall(), routing_key)
            run.executemany(INSERT, [(queue, priority, raw, now, queue) for queue in queues])
        return queues


def _matching(bindings: Sequence[tuple[str, str]], routing_key: str) -> list[str]:
    return sorted({queue for pattern, queue in bindings if _pattern(pattern).fullmatch(routing_key + ".")})


@lru_cache(maxsize=1024)
def _pattern(binding_key: str) -> re.Pattern[str]:
    """AMQP's topic rule over words that each end in a dot: `*` is one word, `#` any number, none included."""
    wild = {"*": r"[^.]+\.", "#": r"(?:[^.]*\.)*"}
    return re.compile("".join(wild.get(word) or re.escape(word + ".") for word in binding_key.split(".")))


def drop_queue(run: sqlite3.Connection, name: str) -> int:
    """Within a transaction: delete the queue, its bindings and its messages, claimed ones too."""
    run.execute("DELETE FROM queue WHERE name = ?", (name,))
    run.execute("DELETE FROM binding WHERE queue = ?", (name,))
    return run.execute("DELETE FROM message WHERE queue = ?", (name,)).rowcount


def drop_abandoned(run: sqlite3.Connection, names: Sequence[str]) -> None:
    """Within a transaction, after consumers have left: delete those of the queues that die with the last one."""
    for name in names:
        if run.execute(
            "SELECT 1 FROM queue WHERE name = ? AND auto_delete = 1 "
            "AND NOT EXISTS (SELECT 1 FROM listener WHERE listener.queue = queue.name)",
            (name,),
        ).fetchone():
            drop_queue(run, name)
        run.execute("UPDATE queue SET touched = ? WHERE name = ? AND expires IS NOT NULL", (time.time(), name))


def expired_queues(run: sqlite3.Connection | Database) -> list[str]:
    """Queues without a consumer whose `x-expires` has passed."""
    rows = run.execute(
        "SELECT name FROM queue WHERE expires IS NOT NULL AND touched + expires < ? "
        "AND NOT EXISTS (SELECT 1 FROM listener WHERE listener.queue = queue.name)",
        (time.time(),),
    ).fetchall()
    return [row[0] for row in rows]


def forget_owner(run: sqlite3.Connection, owner: str) -> tuple[int, list[str]]:
    """Within a transaction: give back what a dead owner held and drop what dies with it.

    Returns how many messages came back, and the queues whose listeners should look.
    """
    for (name,) in run.execute("SELECT name FROM queue WHERE owner = ?", (owner,)).fetchall():
        drop_queue(run, name)
    rows = run.execute(
        "UPDATE message SET owner = NULL, redelivered = 1 WHERE owner = ? RETURNING queue", (owner,)
    ).fetchall()
    left = run.execute("DELETE FROM listener WHERE owner = ? RETURNING queue", (owner,)).fetchall()
    drop_abandoned(run, sorted({row[0] for row in left}))
    return len(rows), sorted({row[0] for row in rows})


def arguments_text(arguments: Mapping[str, Any] | None) -> str:
    """Arguments of a declaration in a form two of them can be compared in."""
    return json.dumps(dict(arguments or {}), sort_keys=True, default=str)
