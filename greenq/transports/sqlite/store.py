"""The embedded broker as a `Store`: messages claimed, settled and posted in batches, one transaction each."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from greenq.exceptions import BrokerError
from greenq.model import Settlement
from greenq.transports.base import Delivery, Post
from greenq.transports.sqlite.claiming import PROBE, READY, TIMES, bring_up_to_date, take
from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.doorbell import Bell, Doorbell
from greenq.transports.sqlite.location import Location, parse_url
from greenq.transports.sqlite.ownership import OWNERS, lock_file, owner_stem
from greenq.transports.sqlite.pace import Pace
from greenq.transports.sqlite.recovery import give_back, reclaim
from greenq.transports.sqlite.settling import acknowledge, settle
from greenq.transports.sqlite.topology import INSERT, Topology, drop_abandoned

logger = logging.getLogger(__name__)

_POLL = 0.1  # seconds between looks at `data_version`, the net under the doorbell
_OWNS = "SELECT 1 FROM message WHERE owner = ? UNION ALL SELECT 1 FROM queue WHERE owner = ? LIMIT 1"


def open_store(url: str, owner: str, options: Mapping[str, Any] | None = None) -> SqliteStore:
    """Open the embedded broker of a `sqlite:///` URL (see `location.parse_url`), making its file if missing.

    Raises:
        ConfigError: the URL or the file is not one to be used.
        BrokerUnreachable, BrokerPaused: it cannot be opened now.
    """
    store = SqliteStore(parse_url(url, options), owner)
    store.database.connect()
    return store


class SqliteStore:
    """`Store` over one connection to the file. See `transports.base.Store` for what each method promises.

    A consumer is alive while its process holds the lock of its owner; nothing here depends on a clock, so a
    task may run for days. The lock is taken by the first claim: who only posts holds none.
    """

    def __init__(self, location: Location, owner: str) -> None:
        self.owner = owner
        self.path = str(location.path)
        self.database = Database(location)
        self.doorbell = Doorbell(self.database)
        self.topology = Topology(self.database, self.doorbell)
        self._name = uuid4().hex[:12]  # tells the bells of an owner's stores apart
        self._pid = os.getpid()
        self._holds = False
        self._bell: Bell | None = None
        self._listening: tuple[str, ...] = ()
        self._generation = 0
        self._version: int | None = None  # `data_version` at the first claim since the last `wait`
        self._next_due: float | None = None
        self._pace = Pace()
        self._claim = time.time_ns()  # other stores of this owner count from another start

    # -- claiming -----------------------------------------------------------------------------------------

    def claim(self, queues: Sequence[str], limit: int) -> list[Delivery]:
        self.listen(queues)
        return self.turn((), queues, limit)

    def turn(self, acks: Sequence[str], queues: Sequence[str], limit: int) -> list[Delivery]:
        """Acknowledge `acks` and claim, in one transaction; without either there is none.

        For a caller that has called `listen` for these queues, and perhaps for others.
        """
        now = time.time()
        with self.database.reading as run:
            if self._version is None:  # before looking, so that what is committed after ends the next `wait`
                self._version = run.execute("PRAGMA data_version").fetchone()[0]
            self._next_due, expires = run.execute(TIMES).fetchone()
            ready = limit > 0 and any(run.execute(PROBE, (queue,)).fetchone() for queue in queues)
        stale = any(moment is not None and moment <= now for moment in (self._next_due, expires))
        if not (acks or ready or stale):
            return []
        with self.database.writing as run:
            acknowledge(run, self.owner, acks)
            if stale:
                bring_up_to_date(run, now)
            if limit <= 0:
                return []
            self._claim += 1
            deliveries = take(run, self.owner, self._claim, queues, limit, rotation=self._claim)
        self._pace.claimed(len(deliveries))
        return deliveries

    # -- waiting ------------------------------------------------------------------------------------------

    def listen(self, queues: Sequence[str]) -> None:
        """Be woken for these queues from now on, and no others. Called by `claim` and `wait`."""
        if self._pid != os.getpid():
            self._become_another()
        self.database.connect()
        if self._generation != self.database.generation:
            self._meet_database()
        if self._bell is not None and self._listening == tuple(queues):
            return
        self.own()
        if self._bell is None:
            self._bell = Bell(self.doorbell.addresses, f"{owner_stem(self.owner)}.{self._name}.bell")
        bell, wanted = self._bell.name, tuple(queues)
        gone = sorted(set(self._listening) - set(wanted))
        with self.database.writing as run:
            run.execute("DELETE FROM listener WHERE bell = ?", (bell,))
            rows = [(bell, queue, self.owner) for queue in wanted]
            run.executemany("INSERT OR REPLACE INTO listener (bell, queue, owner) VALUES (?, ?, ?)", rows)
            drop_abandoned(run, gone)
        self._listening = wanted
        self.doorbell.changed()

    def _meet_database(self) -> None:
        """After connecting: somebody may have removed the file, and our lock's too; be known in the new one."""
        self._generation = self.database.generation
        self._version = None
        self.renew(())
        self._drop_bell()

    def wait(self, queues: Sequence[str], timeout: float) -> bool:
        self.listen(queues)
        assert self._bell is not None
        begun = time.monotonic()
        end = begun + timeout
        rung = False
        while not (rung or self._news()):
            left = end - time.monotonic()
            if left <= 0:
                break
            step = min(left, _POLL)
            if self._next_due is not None:
                step = min(step, max(self._next_due - time.time(), 0.0))
            rung = self._bell.wait(step)
        else:
            self._pace.woken(time.monotonic() - begun)
            rung = True
        self._version = None
        return rung

    def _news(self) -> bool:
        if self._next_due is not None and self._next_due <= time.time():
            return True
        with self.database.reading as run:
            return bool(run.execute("PRAGMA data_version").fetchone()[0] != self._version)

    def interrupt(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.ring()

    # -- settling and posting -----------------------------------------------------------------------------

    def settle(self, acks: Sequence[str], others: Sequence[Settlement] = ()) -> int:
        if self._pid != os.getpid():
            self._become_another()
        if not acks and not others:
            return 0
        touched: list[str] = []
        with self.database.writing as run:
            done = acknowledge(run, self.owner, acks)
            for settlement in others:
                touched += settle(run, self.owner, settlement)
        if touched:
            self.doorbell.ring(set(touched), own=self._bell.name if self._bell else "")
        return len(acks) - done + len(others) - len(touched)

    def post(self, messages: Sequence[Post]) -> None:
        if self._pid != os.getpid():
            self._become_another()
        now = time.time()
        own = self._bell.name if self._bell else ""
        if len(messages) == 1:
            queue, raw, priority = messages[0]
            self.database.insert(INSERT, (queue, priority, raw, now, queue))
            self.doorbell.ring((queue,), own)
            return
        with self.database.writing as run:
            run.executemany(INSERT, [(queue, priority, raw, now, queue) for queue, raw, priority in messages])
        self.doorbell.ring({message.queue for message in messages}, own)

    # -- ownership ----------------------------------------------------------------------------------------

    def own(self) -> None:
        """Take the lock that says this owner lives, if this store does not hold it yet."""
        if self._holds:
            return
        self.database.connect()
        fresh = OWNERS.acquire(lock_file(self.database.directory, self.owner), id(self))
        self._holds = True
        if fresh:  # what an earlier process of this name left is nobody's now
            give_back(self.database, self.doorbell, self.owner)

    def renew(self, tags: Sequence[str]) -> bool:
        if not self._holds or not OWNERS.given_up(lock_file(self.database.directory, self.owner)):
            return True
        self._holds = False
        self._drop_bell()
        self.own()
        return False

    def reclaim(self) -> int:
        return reclaim(self.database, self.doorbell, self.owner)

    def recover(self) -> list[str]:
        with self.database.reading as run:
            rows = run.execute("SELECT id, claim FROM message WHERE owner = ? ORDER BY id", (self.owner,))
            return [f"{number}-{claim}" for number, claim in rows]

    def _become_another(self) -> None:
        """In a forked child: be an owner of one's own. What the parent claimed stays the parent's."""
        self._pid = os.getpid()
        self.owner = f"{self.owner}+{self._pid}"
        self._holds = False
        if self._bell is not None:
            self._bell.close(remove=False)
        self._bell, self._listening = None, ()

    # -- the rest -----------------------------------------------------------------------------------------

    def length(self, queue: str) -> int:
        with self.database.reading as run:
            return int(run.execute(f"SELECT count(*) FROM message WHERE {READY}", (queue,)).fetchone()[0])

    def purge(self, queue: str) -> int:
        with self.database.writing as run:
            return run.execute(f"DELETE FROM message WHERE {READY}", (queue,)).rowcount

    def close(self) -> None:
        if self._pid != os.getpid():
            self._become_another()
        if self._holds:
            self._leave()
        self.database.close()
        self.doorbell.close()

    def _leave(self) -> None:
        keep = True  # while messages are claimed, this process lives for them
        try:
            with self.database.writing as run:
                if self._bell is not None:
                    run.execute("DELETE FROM listener WHERE bell = ?", (self._bell.name,))
                    drop_abandoned(run, self._listening)
                keep = run.execute(_OWNS, (self.owner, self.owner)).fetchone() is not None
        except BrokerError as exc:
            logger.warning("left %s untidy, as the owner %s until this process ends: %s", self.path, self.owner, exc)
        self._drop_bell()
        self._holds = False
        OWNERS.release(lock_file(self.database.directory, self.owner), id(self), keep=keep)

    def _drop_bell(self) -> None:
        bell, self._bell = self._bell, None
        self._listening = ()
        if bell is not None:
            bell.close()
