"""The log of revokes in Redis: a sorted set a kind, the score being Redis's time of the revoke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from greenq.transports.base import KeptEntry
from greenq.transports.redis.connection import Wire
from greenq.transports.redis.endpoint import Endpoint, parse_endpoint
from greenq.transports.redis.keys import Keys, keys_from
from greenq.transports.redis.scripts import KEEP_REVOKED, READ_REVOKED

CHUNK = 500  # entries a step: it blocks Redis for about half a millisecond


class RedisRevokedLog:
    """`transports.base.RevokedLog` over one connection of its own; connects when it is used."""

    def __init__(self, endpoint: Endpoint, keys: Keys, namespace: str) -> None:
        self._wire = Wire(endpoint)
        self._keys = keys
        self._namespace = namespace

    def append(self, kind: str, entries: Sequence[str], most: int, ttl: float) -> None:
        key = self._keys.revoked(self._namespace, kind)
        for start in range(0, len(entries), CHUNK):
            self._wire.run(KEEP_REVOKED, (key,), (ttl, most, *entries[start : start + CHUNK]))

    def read(self, kind: str, most: int, ttl: float, longest: int) -> tuple[list[KeptEntry], int]:
        key = self._keys.revoked(self._namespace, kind)
        found: list[KeptEntry] = []
        oversized = seen = 0
        # Newest first: what is added meanwhile moves the rest back, so that one may be read twice and none is missed.
        while seen < most:
            wanted = min(CHUNK, most - seen)
            ranks = (seen, seen + wanted - 1)
            now, looked_at, large, *rows = self._wire.run(READ_REVOKED, (key,), (*ranks, longest))
            dated = zip(rows[::2], rows[1::2], strict=True)
            page = [KeptEntry(raw, max(0.0, float(now) - float(score))) for raw, score in dated]
            found += (entry for entry in page if entry.age < ttl)
            oversized += large
            seen += looked_at
            if looked_at < wanted or (page and page[-1].age >= ttl):
                break
        return found[::-1], oversized

    def close(self) -> None:
        self._wire.close()


def open_revoked_log(url: str, namespace: str, options: Mapping[str, Any]) -> RedisRevokedLog:
    """The log of a namespace in the Redis of a broker URL; options as for `open_store`.

    Raises:
        ConfigError: naming the part that cannot be used.
    """
    return RedisRevokedLog(parse_endpoint(url, options), keys_from(options), namespace)
