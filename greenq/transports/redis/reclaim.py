"""Giving back what dead workers held: greenq's by their lease, kombu's by the visibility timeout."""

from __future__ import annotations

import time
from typing import Any

from greenq.transports.redis.connection import Arg, Wire
from greenq.transports.redis.envelopes import Entry, bound_queues, mark_redelivered, parse_entry, priority_of
from greenq.transports.redis.keys import Keys
from greenq.transports.redis.scripts import BURY, RESTORE, SCAN

PAGE = 50  # entries a script: it blocks Redis for about a millisecond


class Reclaimer:
    """Finds entries of the `unacked` hash nobody holds any more and puts them at the head of their queues.

    Several may run at once: each entry is taken out under the condition that nothing about it has changed.
    """

    def __init__(self, wire: Wire, keys: Keys, lease: float, timeout: float) -> None:
        self._wire = wire
        self._keys = keys
        self._lease = lease
        self._timeout = timeout
        self._not_before = 0.0

    def trouble(self) -> None:
        """Note that the broker could not be used: other owners could not renew either."""
        self._not_before = time.monotonic() + self._lease / 2

    def run(self) -> int:
        """One pass; returns how many messages were given back. See `RedisStore.reclaim`."""
        if time.monotonic() < self._not_before:
            return 0
        keys, run = self._keys, self._wire.run
        run(BURY, (keys.owners, keys.closed, keys.delayed), ())
        limits = (self._lease, self._timeout)
        held = (keys.unacked, keys.index, keys.owners)
        total = skipped = 0
        while True:
            seen, alive, *rows = run(SCAN, held, (*limits, skipped, PAGE))
            skipped += alive
            if rows:
                restored, refused = run(RESTORE, held, [*limits, *self._items(rows)])
                total += restored
                skipped += refused
            if seen < PAGE:
                return total

    def _items(self, rows: list[Any]) -> list[Arg]:
        items: list[Arg] = []
        for tag, score, value in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            if not value:
                items += [tag, score, b"", 0]  # an index entry without a message: only to be removed
                continue
            entry = parse_entry(value)
            if entry is None:
                items += [tag, score, value, 1, self._keys.dead("greenq")]
                continue
            lists = self._lists(entry)
            items += [tag, score, mark_redelivered(entry.raw), len(lists), *lists]
        return items

    def _lists(self, entry: Entry) -> list[str]:
        """Where kombu would put it: by exchange and routing key as it was delivered.

        Kombu drops what no binding leads anywhere; here it goes to the dead list of its routing key.
        """
        queues = [entry.routing_key]
        if entry.exchange:
            table = self._wire.call("SMEMBERS", self._keys.binding(entry.exchange))
            queues = bound_queues(table, self._keys.separator, entry.routing_key)
        if not all(queues) or not queues:
            return [self._keys.dead(entry.routing_key or "greenq")]
        priority = priority_of(entry.raw)
        return [self._keys.ready(queue, priority) for queue in queues]
