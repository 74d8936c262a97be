"""The log of revokes in the embedded broker: a table, in which times are this host's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from greenq.transports.base import KeptEntry
from greenq.transports.sqlite.database import Database
from greenq.transports.sqlite.location import Location, parse_url

SPARE = 1000  # entries that may be too many: to find the oldest of 50,000 takes milliseconds
_ADD = "INSERT INTO revoked (log, entry, at) VALUES (?, ?, ?) ON CONFLICT (log, entry) DO UPDATE SET at = excluded.at"
_NEWEST = "SELECT coalesce(max(id), 0) FROM revoked WHERE log = ?"
# A time of the future is of a clock that has been set back, and would never come to its end.
_EXPIRE = (
    "DELETE FROM revoked WHERE log = ?1 AND at <= ?2 - ?3",
    "DELETE FROM revoked WHERE log = ?1 AND at > ?2 + ?3",
)
_TRIM = (
    "DELETE FROM revoked WHERE log = ?1 AND id IN "
    "(SELECT id FROM revoked WHERE log = ?1 ORDER BY at DESC LIMIT -1 OFFSET ?2)"
)
_READ = (
    "SELECT CASE WHEN length(entry) <= ?1 THEN entry END, at FROM revoked "
    "WHERE log = ?2 AND at > ?3 ORDER BY at DESC LIMIT ?4"
)


class SqliteRevokedLog:
    """`transports.base.RevokedLog` over one connection of its own; opens the file when it is used."""

    def __init__(self, location: Location, namespace: str) -> None:
        self._database = Database(location)
        self._namespace = namespace

    def append(self, kind: str, entries: Sequence[str], most: int, ttl: float) -> None:
        now, log = time.time(), f"{self._namespace}.{kind}"
        rows = [(log, entry.encode(), now + number / 1e6) for number, entry in enumerate(entries)]
        with self._database.writing as run:
            before = run.execute(_NEWEST, (log,)).fetchone()[0]
            run.executemany(_ADD, rows)
            for expire in _EXPIRE:
                run.execute(expire, (log, now, ttl))
            if run.execute(_NEWEST, (log,)).fetchone()[0] // SPARE != before // SPARE:
                run.execute(_TRIM, (log, most))

    def read(self, kind: str, most: int, ttl: float, longest: int) -> tuple[list[KeptEntry], int]:
        now, log = time.time(), f"{self._namespace}.{kind}"
        with self._database.reading as run:
            rows = run.execute(_READ, (longest, log, now - ttl, most)).fetchall()
        found = [KeptEntry(raw, max(0.0, now - at)) for raw, at in reversed(rows) if isinstance(raw, bytes)]
        return found, len(rows) - len(found)

    def close(self) -> None:
        self._database.close()


def open_revoked_log(url: str, namespace: str, options: Mapping[str, Any]) -> SqliteRevokedLog:
    """The log of a namespace in the file of a `sqlite:///` URL; options as for `open_store`.

    Raises:
        ConfigError: the URL is not one to be used.
    """
    return SqliteRevokedLog(parse_url(url, options), namespace)
