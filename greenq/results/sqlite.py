"""Results kept in the embedded broker's kind of file, the same one or another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from greenq.exceptions import BrokerError, ResultError, ResultTimeout
from greenq.model import Record, State
from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.doorbell import RESULTS, Bell, Doorbell
from greenq.transports.sqlite.location import parse_url
from greenq.transports.sqlite.mutex import NativeMutex
from greenq.transports.sqlite.ownership import OWNERS, lock_file, owner_stem

_POLL = 0.1  # seconds between looks of a waiting reader, the net under the doorbell
_POLL_WITHOUT_BELL = 0.02
_BELLS = 64  # readers of one process that may wait with a doorbell of their own
_PURGE = 200  # expired results deleted by one `store`, at the least

_STORE = (
    "INSERT INTO result (id, state, expires, payload) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
    "SET state = excluded.state, expires = excluded.expires, payload = excluded.payload "
    "WHERE result.state <> ? OR result.expires <= ?"
)
_READ = "SELECT payload FROM result WHERE id = ? AND (expires IS NULL OR expires > ?)"
_PURGE_SOME = (
    "DELETE FROM result WHERE id IN "
    "(SELECT id FROM result WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?)"
)


class SqliteResults:
    """`ResultStore` over a `sqlite:///` URL (see `transports.sqlite.location.parse_url` for its forms).

    One connection, used by one native thread at a time; only `wait` yields to the hub, between its looks.
    """

    name = "sqlite"
    persistent = True

    def __init__(self, url: str, *, options: Mapping[str, Any] = {}) -> None:
        self._database = Database(parse_url(url, options))
        self._doorbell = Doorbell(self._database)
        self._mutex = NativeMutex()
        self._bells: list[Bell] = []  # those not in use
        self._made = 0
        self._owner = ""
        self._pid = os.getpid()
        self._generation = 0

    def store(self, records: Sequence[Record]) -> None:
        if not records:
            return
        now = time.time()
        rows = [
            (
                _key(record.task_id),
                record.state,
                None if record.expires is None else now + record.expires,
                record.payload,
                State.SUCCESS,
                now,
            )
            for record in records
        ]
        with self._exclusive() as database, database.writing as run:
            run.executemany(_STORE, rows)
            # Bounded, so that a million results expiring at once do not hold up this one.
            run.execute(_PURGE_SOME, (now, max(_PURGE, 2 * len(rows))))
        with self._mutex:
            self._doorbell.ring((RESULTS,))

    def read(self, task_ids: Sequence[str]) -> list[bytes | None]:
        now = time.time()
        with self._exclusive() as database, database.reading as run:
            rows = [run.execute(_READ, (_key(task_id), now)).fetchone() for task_id in task_ids]
        return [None if row is None else row[0] for row in rows]

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        """As `ResultStore.wait`; woken by the writer's doorbell, within about a millisecond of the commit."""
        end = None if timeout is None else time.monotonic() + timeout
        bell: Bell | None = None
        try:
            while True:
                payload = self.read((task_id,))[0]
                if payload is not None and ready(payload):
                    return payload
                if bell is None and (bell := self._borrow()) is not None:
                    continue  # what was stored before the bell was known rang nobody
                left = _POLL if end is None else end - time.monotonic()
                if left <= 0:
                    raise ResultTimeout(f"no result of task {task_id} within {timeout} s; it may still be running")
                if bell is not None:
                    bell.wait(min(left, _POLL))
                else:
                    time.sleep(min(left, _POLL_WITHOUT_BELL))
        finally:
            if bell is not None:
                self._give_back(bell)

    def expect(self, task_ids: Sequence[str]) -> None:
        """Nothing to prepare: whoever waits later finds the row."""

    def forget(self, task_id: str) -> None:
        with self._exclusive() as database, database.writing as run:
            run.execute("DELETE FROM result WHERE id = ?", (_key(task_id),))

    def close(self) -> None:
        with self._mutex:
            if self._pid == os.getpid():
                self._leave()
            self._database.close()
            self._doorbell.close()

    @contextmanager
    def _exclusive(self) -> Iterator[Database]:
        if self._pid != os.getpid():
            self._after_fork()
        with self._mutex:
            try:
                yield self._database
            except BrokerError as exc:
                raise ResultError(str(exc)) from exc

    def _after_fork(self) -> None:
        # The parent's bells and its owner's lock are the parent's; and another thread of it may have held the mutex.
        self._mutex = NativeMutex()
        self._bells, self._made, self._owner = [], 0, ""
        self._pid = os.getpid()

    def _borrow(self) -> Bell | None:
        """A bell that is rung for every stored result; None if too many readers wait with one already."""
        with self._exclusive() as database:
            database.connect()
            if self._generation != database.generation:  # perhaps to a new file, in which nobody knows our bells
                self._leave()
                self._generation = database.generation
            if self._bells:
                return self._bells.pop()
            if self._made >= _BELLS:
                return None
            if not self._owner:
                owner = f"results-{os.getpid()}-{uuid4().hex[:12]}"
                OWNERS.acquire(lock_file(database.directory, owner), id(self))
                self._owner = owner
            bell = Bell(self._doorbell.addresses, f"{owner_stem(self._owner)}.{uuid4().hex[:12]}.bell")
            with database.writing as run:
                run.execute("INSERT INTO listener VALUES (?, ?, ?)", (bell.name, RESULTS, self._owner))
            self._doorbell.changed()
            self._made += 1
            return bell

    def _give_back(self, bell: Bell) -> None:
        with self._mutex:
            if self._owner and bell.name.startswith(owner_stem(self._owner)):
                self._bells.append(bell)
            else:  # closed meanwhile: nobody rings it any more
                bell.close()

    def _leave(self) -> None:
        """Have no bells and no owner any more; the next reader that waits makes them again."""
        bells, owner = self._bells, self._owner
        self._bells, self._made, self._owner = [], 0, ""
        for bell in bells:
            bell.close()
        if not owner:
            return
        try:
            with self._database.writing as run:
                run.execute("DELETE FROM listener WHERE owner = ?", (owner,))
        except BrokerError as exc:
            raise ResultError(str(exc)) from exc
        finally:
            OWNERS.release(lock_file(self._database.directory, owner), id(self), keep=False)


def _key(task_id: str) -> str:
    """The id as SQLite can hold it: an id from the wire may have half a surrogate pair in it."""
    return task_id if task_id.isascii() else task_id.encode("utf-8", "backslashreplace").decode()
