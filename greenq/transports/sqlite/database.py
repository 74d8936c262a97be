"""One SQLite connection: opened safely, reopened after a fork, its errors given greenq's names."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable
from greenq.transports.sqlite.location import Location, prepare_files
from greenq.transports.sqlite.mutex import native_pause
from greenq.transports.sqlite.schema import ensure_schema

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.00003  # seconds to wait for another writer at first,
_LONGEST_PAUSE = 0.005  # and in the end
_LOOK = 0.1  # seconds between looks whether the file is still there: one costs a tenth of a publish

# What SQLite says, and whether the connection is worth keeping. The text, since error codes came with 3.11.
_PAUSES = (
    ("locked", "is held by another writer for longer than the busy timeout"),
    ("busy", "is held by another writer for longer than the busy timeout"),
    ("full", "cannot grow: the disk is full"),
    ("readonly", "cannot be written: the file or its file system is read-only"),
)


def as_broker_error(exc: sqlite3.Error, path: object) -> BrokerError:
    """The broker error that says what SQLite's error means for the file."""
    text = str(exc)
    for word, meaning in _PAUSES:
        if word in text:
            return BrokerPaused(f"{path} {meaning} ({text})")
    if "malformed" in text or "not a database" in text:
        return BrokerUnreachable(f"{path} is damaged or not a database ({text}); move it away to start afresh")
    return BrokerUnreachable(f"{path} cannot be used ({text})")


class Abandoned:
    """Keeps alive the connections a forked child inherited: neither using nor closing them there is safe."""

    def __init__(self) -> None:
        self._kept: list[sqlite3.Connection] = []

    def keep(self, connection: sqlite3.Connection) -> None:
        self._kept.append(connection)


ABANDONED = Abandoned()


class Database:
    """A connection made on demand. One user at a time; any thread.

    `with database.writing as run:` is one immediate transaction, `with database.reading as run:` plain
    statements; in both, SQLite's errors come out as `BrokerPaused` or `BrokerUnreachable`.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.path = location.path
        self.directory = location.path.with_name(location.path.name + ".d")
        self.reading = _Reading(self)
        self.writing = _Writing(self)
        self.generation = 0  # of the connection; a new one may be to a new file
        self._name = str(location.path)
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._inode = 0
        self._look_again = 0.0

    def connect(self) -> sqlite3.Connection:
        """The open connection of this process to the file as it is now.

        Raises:
            BrokerPaused, BrokerUnreachable, ConfigError: it cannot be opened, or must not be.
        """
        connection = self._connection
        if connection is not None:
            if self._pid != os.getpid():
                ABANDONED.keep(connection)
            elif self._in_place():
                return connection
            else:
                # SQLite would go on writing into the removed file, and every commit would be lost.
                logger.warning("%s was removed or replaced while in use; opening what is there now", self.path)
                connection.close()
            self._connection = None
        prepare_files(self.path)
        self._connection = connection = self._open()
        self.generation += 1
        self._pid = os.getpid()
        self._inode = os.stat(self._name).st_ino
        return connection

    def _in_place(self) -> bool:
        now = time.monotonic()
        if now < self._look_again:
            return True
        self._look_again = now + _LOOK
        try:
            return os.stat(self._name).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> sqlite3.Connection:
        location = self.location
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                self._name,
                timeout=location.busy,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=64,
            )
            connection.execute("PRAGMA trusted_schema = OFF")
            ensure_schema(connection, self.path)
            self._use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {'FULL' if location.full else 'NORMAL'}")
            # Half as many checkpoints, each of which costs a sync of the disk, for 8 MB of log.
            connection.execute("PRAGMA wal_autocheckpoint = 2000")
            # After a reader or a long transaction let the log grow, give the disk back at the next checkpoint.
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA busy_timeout = 0")  # from here on `execute` does the waiting
        except BaseException as exc:
            if connection is not None:
                connection.close()
            if isinstance(exc, sqlite3.Error):
                raise as_broker_error(exc, self.path) from exc
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch a new file over. SQLite's busy handler does not cover this step when two processes race."""
        deadline = time.monotonic() + self.location.busy
        while True:
            try:
                if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                    return
                raise BrokerUnreachable(f"{self.path}: its file system does not support SQLite's WAL mode")
            except sqlite3.OperationalError as exc:
                if "locked" not in str(exc) or time.monotonic() > deadline:
                    raise
            native_pause(0.005)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute outside a transaction, waiting for other processes' locks up to the busy timeout."""
        return self._in_turn(self.connect(), statement, parameters)

    def begin(self) -> sqlite3.Connection:
        """Begin a writing transaction, after those of other processes."""
        connection = self.connect()
        if connection.in_transaction:  # an interrupt struck between BEGIN and the block
            connection.execute("ROLLBACK")
        # IMMEDIATE: a transaction that turns into a writer half-way fails without waiting for its turn.
        self._in_turn(connection, "BEGIN IMMEDIATE")
        return connection

    def _in_turn(
        self, connection: sqlite3.Connection, statement: str, parameters: Sequence[Any] = ()
    ) -> sqlite3.Cursor:
        # Other writers hold the lock for some 50 us. SQLite's own busy handler sleeps a millisecond at the
        # least: as long as some thirty transactions take.
        pause, deadline = _FIRST_PAUSE, 0.0
        while True:
            try:
                return connection.execute(statement, parameters)
            except sqlite3.OperationalError as exc:
                now = time.monotonic()
                deadline = deadline or now + self.location.busy
                if "locked" not in str(exc) or now >= deadline:
                    raise
            native_pause(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def insert(self, statement: str, parameters: Sequence[Any]) -> None:
        """Run one writing statement as a transaction of its own, cheaper than `writing` by two statements."""
        try:
            self.execute(statement, parameters)
        except sqlite3.Error as exc:
            raise self.failed(exc) from exc

    def failed(self, exc: sqlite3.Error) -> BrokerError:
        """Translate an error, and drop the connection unless it is only the broker that pauses."""
        error = as_broker_error(exc, self.path)
        if not isinstance(error, BrokerPaused):
            self.close()
        return error

    def close(self) -> None:
        """Close the connection; the next use opens another. In a forked child it is only let go of."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid != os.getpid():
            ABANDONED.keep(connection)
            return
        try:
            connection.close()
        except sqlite3.Error as exc:
            logger.warning("closing %s failed: %s", self.path, exc)


class _Reading:
    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Database:
        return self._database

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, sqlite3.Error):
            raise self._database.failed(exc) from exc


class _Writing:
    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection:
        try:
            connection = self._connection = self._database.begin()
        except sqlite3.Error as exc:
            raise self._database.failed(exc) from exc
        return connection

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        try:
            if exc is None:
                connection.execute("COMMIT")
                return
        except sqlite3.Error as failure:
            self._roll_back(connection)
            raise self._database.failed(failure) from failure
        self._roll_back(connection)
        if isinstance(exc, sqlite3.Error):
            raise self._database.failed(exc) from exc

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        if not connection.in_transaction:  # SQLite has done it itself (disk full, I/O error)
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            logger.warning("rolling back in %s failed, connecting anew: %s", self._database.path, exc)
            self._database.close()
