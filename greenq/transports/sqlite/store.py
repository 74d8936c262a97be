"""The embedded broker as a `Store`: messages claimed, settled and posted in batches, one transaction each."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from greenq.exceptions import BrokerError
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery, Post
from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.doorbell import Bell, Doorbell
from greenq.transports.sqlite.location import Location, parse_url
from greenq.transports.sqlite.ownership import OWNERS, lock_file, owner_stem
from greenq.transports.sqlite.topology import (
    INSERT,
    Topology,
    drop_abandoned,
    drop_queue,
    expired_queues,
    forget_owner,
)

logger = logging.getLogger(__name__)

DEAD_KEPT = 10_000  # the newest of a dead queue
_POLL = 0.05  # seconds between looks at `data_version`, the net under the doorbell
_GATHER = 0.001  # seconds to wait for more, after more than
_STORM = 3  # waits in a row that were over within
_SOON = 0.0003  # seconds

_READY = "queue = ? AND owner IS NULL AND due IS NULL"
_PROBE = f"SELECT 1 FROM message WHERE {_READY} LIMIT 1"
_PRIORITIES = f"SELECT priority FROM message WHERE {_READY} ORDER BY priority, id LIMIT ?"
_TIMES = (
    "SELECT (SELECT min(due) FROM message WHERE due IS NOT NULL), "
    "(SELECT min(expires) FROM message WHERE expires IS NOT NULL AND owner IS NULL)"
)
_CLAIM = (
    "UPDATE message SET owner = ?, claim = ?, deliveries = deliveries + 1 WHERE id IN "
    f"(SELECT id FROM message WHERE {_READY} ORDER BY priority, id LIMIT ?) "
    "RETURNING priority, id, redelivered, body"
)
# A tag is "<id>-<claim>", so that one of an earlier delivery, even by this owner, settles nothing.
_MINE = "id = ? AND claim = ? AND owner = ?"
_ACK = f"DELETE FROM message WHERE {_MINE}"
_REQUEUE = f"UPDATE message SET owner = NULL, redelivered = 1 WHERE {_MINE} RETURNING queue"
_DELAY = f"UPDATE message SET owner = NULL, due = ? WHERE {_MINE} RETURNING queue"
_BURY = (
    "INSERT INTO message (queue, priority, redelivered, reason, body) "
    f"SELECT queue || '.dead', 0, redelivered, ?, body FROM message WHERE {_MINE} RETURNING queue"
)
_TRIM = (
    "DELETE FROM message WHERE id IN "
    "(SELECT id FROM message WHERE queue = ? AND owner IS NULL AND due IS NULL AND priority = 0 "
    f"ORDER BY priority DESC, id DESC LIMIT -1 OFFSET {DEAD_KEPT})"
)
# One step an owner, not one a message.
_OWNERS = (
    "WITH RECURSIVE o (name) AS (SELECT min(owner) FROM message WHERE owner IS NOT NULL UNION ALL "
    "SELECT (SELECT min(owner) FROM message WHERE owner > o.name) FROM o WHERE o.name IS NOT NULL) "
    "SELECT name FROM o WHERE name IS NOT NULL UNION SELECT owner FROM queue WHERE owner IS NOT NULL "
    "UNION SELECT owner FROM listener"
)
_OWNS = "SELECT 1 FROM message WHERE owner = ?1 UNION ALL SELECT 1 FROM queue WHERE owner = ?1 LIMIT 1"


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
        self._pid = os.getpid()
        self._holds = False
        self._bell: Bell | None = None
        self._listening: tuple[str, ...] = ()
        self._version: int | None = None  # `data_version` at the first claim since the last `wait`
        self._next_due: float | None = None
        self._storm = 0  # how many `wait`s in a row ended soon
        self._rotation = 0
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
            self._next_due, expires = run.execute(_TIMES).fetchone()
            ready = limit > 0 and any(run.execute(_PROBE, (queue,)).fetchone() for queue in queues)
        due = self._next_due is not None and self._next_due <= now
        expired = expires is not None and expires <= now
        if not (acks or ready or due or expired):
            return []
        with self.database.writing as run:
            if acks:
                run.executemany(_ACK, self._mine(acks))
            if due:
                run.execute("UPDATE message SET due = NULL WHERE due <= ?", (now,))
            if expired:
                run.execute("DELETE FROM message WHERE expires <= ? AND owner IS NULL", (now,))
            return self._take(run, queues, limit) if limit > 0 else []

    def _take(self, run: sqlite3.Connection, queues: Sequence[str], limit: int) -> list[Delivery]:
        order, plan = self._plan(run, queues, limit)
        claim = self._claim = self._claim + 1
        taken: list[Any] = []
        for place, queue in enumerate(order):
            share = limit if plan is None else plan.count(place)
            rows = run.execute(_CLAIM, (self.owner, claim, queue, share)).fetchall() if share else []
            # RETURNING promises no order.
            taken.append(iter([self._delivery(queue, claim, row) for row in sorted(rows)]))
        return list(taken[0]) if plan is None else [next(taken[place]) for place in plan]

    def _plan(
        self, run: sqlite3.Connection, queues: Sequence[str], limit: int
    ) -> tuple[Sequence[str], list[int] | None]:
        """The queues in this turn's order, and from which of them (its place) to take, message by message.

        Priority by priority, and within one in turn from each queue, beginning with another one each time.
        """
        if len(queues) == 1:
            return queues, None
        start = self._rotation % len(queues)
        self._rotation += 1
        order = [*queues[start:], *queues[:start]]
        candidates: list[tuple[int, int, int]] = []
        for place, queue in enumerate(order):
            rank, level = 0, -1
            for (priority,) in run.execute(_PRIORITIES, (queue, limit)):
                rank, level = (rank + 1 if priority == level else 0), priority
                candidates.append((priority, rank, place))
        candidates.sort()
        return order, [place for _, _, place in candidates[:limit]]

    @staticmethod
    def _delivery(queue: str, claim: int, row: tuple[int, int, int, bytes]) -> Delivery:
        _, number, redelivered, body = row
        return Delivery(f"{number}-{claim}", mark_redelivered(body) if redelivered else body, queue)

    # -- waiting ------------------------------------------------------------------------------------------

    def listen(self, queues: Sequence[str]) -> None:
        """Be woken for these queues from now on, and no others. Called by `claim` and `wait`."""
        if self._pid != os.getpid():
            self._become_another()
        if self._bell is not None and self._listening == tuple(queues):
            return
        self.own()
        if self._bell is None:
            self._bell = Bell(self.doorbell.addresses, f"{owner_stem(self.owner)}.{uuid4().hex[:12]}.bell")
        bell, wanted = self._bell.name, tuple(queues)
        gone = sorted(set(self._listening) - set(wanted))
        with self.database.writing as run:
            run.execute("DELETE FROM listener WHERE bell = ?", (bell,))
            rows = [(bell, queue, self.owner) for queue in wanted]
            run.executemany("INSERT OR REPLACE INTO listener (bell, queue, owner) VALUES (?, ?, ?)", rows)
            drop_abandoned(run, gone)
        self._listening = wanted
        self.doorbell.changed()

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
            self._gather(time.monotonic() - begun)
            rung = True
        self._version = None
        return rung

    def _gather(self, waited: float) -> None:
        """Where messages come faster than they are claimed, let a millisecond's worth come together.

        Else publisher and consumer wake and lock out each other for every single message: half the throughput.
        """
        self._storm = self._storm + 1 if waited < _SOON else 0
        if self._storm > _STORM:
            time.sleep(_GATHER)

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
            done = run.executemany(_ACK, self._mine(acks)).rowcount if acks else 0
            for settlement in others:
                touched += self._settle_one(run, settlement)
        if touched:
            self.doorbell.ring(set(touched), own=self._bell.name if self._bell else "")
        return len(acks) - done + len(others) - len(touched)

    def _settle_one(self, run: sqlite3.Connection, settlement: Settlement) -> list[str]:
        """The queue the message went to, in a list; an empty list if it was not ours any more."""
        mine = self._mine((str(settlement.tag),))[0]
        if settlement.how is Settle.REQUEUE:
            rows = run.execute(_REQUEUE, mine).fetchall()
        elif settlement.how is Settle.DELAY:
            rows = run.execute(_DELAY, (settlement.due, *mine)).fetchall()
        elif settlement.how is Settle.DEAD:
            rows = run.execute(_BURY, (settlement.reason, *mine)).fetchall()
            run.execute(_ACK, mine)
            run.executemany(_TRIM, rows)
        else:
            rows = run.execute(_ACK + " RETURNING queue", mine).fetchall()
        return [row[0] for row in rows]

    def _mine(self, tags: Sequence[str]) -> list[tuple[str, str, str]]:
        owner = self.owner
        parts = (tag.partition("-") for tag in tags)
        return [(number, claim, owner) for number, _, claim in parts]

    def post(self, messages: Sequence[Post]) -> None:
        if self._pid != os.getpid():
            self._become_another()
        now = time.time()
        own = self._bell.name if self._bell else ""
        if len(messages) == 1:
            queue, raw, priority = messages[0]
            self.database.insert(INSERT, (queue, priority, raw, now))
            self.doorbell.ring((queue,), own)
            return
        with self.database.writing as run:
            run.executemany(INSERT, [(queue, priority, raw, now) for queue, raw, priority in messages])
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
            self._forget(self.owner)

    def renew(self, tags: Sequence[str]) -> bool:
        if not self._holds or not OWNERS.given_up(lock_file(self.database.directory, self.owner)):
            return True
        self._holds = False
        self._drop_bell()
        self.own()
        return False

    def reclaim(self) -> int:
        self.database.connect()
        directory = self.database.directory
        count = 0
        with self.database.reading as run:
            owners = [row[0] for row in run.execute(_OWNERS).fetchall() if row[0] != self.owner]
            expired = expired_queues(run)
        for owner in owners:
            with OWNERS.seize(lock_file(directory, owner)) as dead:
                if dead:
                    count += self._forget(owner)
        if expired:
            with self.database.writing as run:
                for name in expired_queues(run):
                    drop_queue(run, name)
        self._sweep({owner_stem(owner) for owner in (*owners, self.owner)})
        return count

    def _forget(self, owner: str) -> int:
        with self.database.writing as run:
            count, queues = forget_owner(run, owner)
        for bell in self.database.directory.glob(f"{owner_stem(owner)}.*.bell"):
            bell.unlink(missing_ok=True)
        self.doorbell.changed()
        self.doorbell.ring(queues)
        return count

    def _sweep(self, known: set[str]) -> None:
        """Remove the lock files of dead owners that left nothing behind."""
        for file in self.database.directory.glob("*.lock"):
            if file.stem not in known:
                with OWNERS.seize(file) as dead:
                    if dead:
                        for bell in file.parent.glob(f"{file.stem}.*.bell"):
                            bell.unlink(missing_ok=True)

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
            return int(run.execute(f"SELECT count(*) FROM message WHERE {_READY}", (queue,)).fetchone()[0])

    def purge(self, queue: str) -> int:
        with self.database.writing as run:
            return run.execute(f"DELETE FROM message WHERE {_READY}", (queue,)).rowcount

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
                keep = run.execute(_OWNS, (self.owner,)).fetchone() is not None
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
