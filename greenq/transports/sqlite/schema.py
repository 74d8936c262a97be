"""The tables of the embedded broker and its results, and proof that a file holds them and nothing else."""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from pathlib import Path

from greenq.exceptions import ConfigError

APPLICATION_ID = 0x67726E71  # "grnq": tells our files from anybody else's
VERSION = 2

STATEMENTS = (
    # A message is ready while it has no owner and no due time. `claim` numbers the claims of an owner: an id
    # is used again once the newest row is gone, and AUTOINCREMENT would cost every publish another page.
    """CREATE TABLE message (
        id INTEGER PRIMARY KEY,
        queue TEXT NOT NULL,
        priority INTEGER NOT NULL,
        due REAL,
        expires REAL,
        owner TEXT,
        claim INTEGER,
        deliveries INTEGER NOT NULL DEFAULT 0,
        redelivered INTEGER NOT NULL DEFAULT 0,
        reason TEXT,
        body BLOB NOT NULL
    )""",
    "CREATE INDEX message_ready ON message (queue, priority, id) WHERE owner IS NULL AND due IS NULL",
    "CREATE INDEX message_owned ON message (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX message_due ON message (due) WHERE due IS NOT NULL",
    "CREATE INDEX message_expires ON message (expires) WHERE expires IS NOT NULL AND owner IS NULL",
    # `owner` of a queue: the process it dies with; `expires` and `message_ttl` in seconds.
    """CREATE TABLE queue (
        name TEXT PRIMARY KEY,
        owner TEXT,
        auto_delete INTEGER NOT NULL,
        expires REAL,
        message_ttl REAL,
        touched REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE exchange (
        name TEXT PRIMARY KEY,
        type TEXT NOT NULL,
        durable INTEGER NOT NULL,
        auto_delete INTEGER NOT NULL,
        arguments TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE binding (
        exchange TEXT NOT NULL,
        routing_key TEXT NOT NULL,
        queue TEXT NOT NULL,
        PRIMARY KEY (exchange, routing_key, queue)
    ) WITHOUT ROWID""",
    "CREATE INDEX binding_queue ON binding (queue)",
    # Who wants to be woken for a queue, by which doorbell; the queue "" stands for stored results.
    """CREATE TABLE listener (
        bell TEXT NOT NULL,
        queue TEXT NOT NULL,
        owner TEXT NOT NULL,
        PRIMARY KEY (bell, queue)
    ) WITHOUT ROWID""",
    "CREATE TABLE result (id TEXT PRIMARY KEY, state TEXT NOT NULL, expires REAL, payload BLOB NOT NULL)",
    "CREATE INDEX result_expires ON result (expires) WHERE expires IS NOT NULL",
    # What was revoked, for workers that were away: `log` is "<control_exchange>.<kind>", `entry` is wire.revoked's.
    "CREATE TABLE revoked (id INTEGER PRIMARY KEY, log TEXT NOT NULL, entry BLOB NOT NULL, at REAL NOT NULL)",
    "CREATE UNIQUE INDEX revoked_entry ON revoked (log, entry)",
    "CREATE INDEX revoked_at ON revoked (log, at)",
    "CREATE INDEX revoked_log ON revoked (log)",
)

_OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@lru_cache(maxsize=1)
def _expected() -> frozenset[tuple[str, ...]]:
    memory = sqlite3.connect(":memory:")
    try:
        for statement in STATEMENTS:
            memory.execute(statement)
        return frozenset(memory.execute(_OBJECTS))
    finally:
        memory.close()


def _single(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def ensure_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a new file; refuse one that is not ours, before anything in it was run or changed.

    A trigger, a view or a default expression in a file handed to us would run as our own SQL, so the file's
    objects must be exactly those of this module.

    Raises:
        ConfigError: another application's file, another version of ours, or objects that we did not make.
        sqlite3.Error: the file cannot be read or written.
    """
    if _single(connection, "application_id") != APPLICATION_ID:
        _create(connection, path)
    version = _single(connection, "user_version")
    if version != VERSION:
        raise ConfigError(
            f"{path} holds version {version} of the embedded broker, this greenq reads version {VERSION}; "
            "drain it with the greenq that made it, or name another file"
        )
    found = frozenset(connection.execute(_OBJECTS))
    strange = sorted(str(row[1]) for row in found ^ _expected())
    if strange:
        raise ConfigError(
            f"{path} is not the file greenq made: {', '.join(strange[:5])} differ; refused, name another file"
        )


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        application = _single(connection, "application_id")
        if application == APPLICATION_ID:  # another process was first
            connection.execute("ROLLBACK")
            return
        if application or connection.execute(_OBJECTS).fetchone():
            raise ConfigError(
                f"{path} belongs to another application (application id {application:#x}); name another file"
            )
        for statement in STATEMENTS:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
