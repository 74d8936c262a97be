"""Giving back what dead owners held, and clearing away what they left lying about."""

from __future__ import annotations

from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.doorbell import Doorbell
from greenq.transports.sqlite.ownership import OWNERS, lock_file, owner_stem
from greenq.transports.sqlite.topology import drop_queue, expired_queues, forget_owner

# One step an owner, not one a message.
_OWNERS = (
    "WITH RECURSIVE o (name) AS (SELECT min(owner) FROM message WHERE owner IS NOT NULL UNION ALL "
    "SELECT (SELECT min(owner) FROM message WHERE owner > o.name) FROM o WHERE o.name IS NOT NULL) "
    "SELECT name FROM o WHERE name IS NOT NULL UNION SELECT owner FROM queue WHERE owner IS NOT NULL "
    "UNION SELECT owner FROM listener"
)


def reclaim(database: Database, doorbell: Doorbell, own: str) -> int:
    """Give back at once what owners held whose lock is free; returns how many messages that were.

    Also deletes queues that have expired, and the files of owners that died without holding anything.
    """
    with database.reading as run:
        owners = [row[0] for row in run.execute(_OWNERS).fetchall() if row[0] != own]
        expired = bool(expired_queues(run))
    count = 0
    for owner in owners:
        with OWNERS.seize(lock_file(database.directory, owner)) as dead:
            if dead:
                count += give_back(database, doorbell, owner)
    if expired:
        with database.writing as connection:
            for name in expired_queues(connection):
                drop_queue(connection, name)
    _sweep(database, {owner_stem(owner) for owner in (*owners, own)})
    return count


def give_back(database: Database, doorbell: Doorbell, owner: str) -> int:
    """Make the owner's messages ready again, and drop its listeners and its queues."""
    with database.writing as run:
        count, queues = forget_owner(run, owner)
    _remove_bells(database, owner_stem(owner))
    doorbell.changed()
    doorbell.ring(queues)
    return count


def _sweep(database: Database, known: set[str]) -> None:
    for file in database.directory.glob("*.lock"):
        if file.stem not in known:
            with OWNERS.seize(file) as dead:
                if dead:
                    _remove_bells(database, file.stem)


def _remove_bells(database: Database, stem: str) -> None:
    for bell in database.directory.glob(f"{stem}.*.bell"):
        bell.unlink(missing_ok=True)
