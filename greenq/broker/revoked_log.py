"""The log of revokes as clients and workers use it: bounded and signed as the settings say (docs/revoking.md)."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from greenq.broker.stores import open_revoked_log
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.wire.control import BadFrame
from greenq.wire.revoked import IDS, MOST_BYTES, MOST_STAMPS, STAMPS, Revoked, Seal


@dataclass(slots=True)
class Logged:
    """What the log said: values with their age in seconds, oldest first.

    `rejected` is what was passed over, by the kind of its fault.
    """

    ids: list[tuple[str, float]] = field(default_factory=list)
    stamps: list[tuple[tuple[str, str], float]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


class RevokeLog:
    """What was revoked in the last `worker_revoke_expires` seconds, kept in the broker; see `stores.keeps_revoked`.

    Owns one connection, made at first use, and has one owner at a time. Both methods block for their I/O.

    Raises:
        BrokerUnreachable: no connection; of an `append`, whether it is there is not known.
        BrokerPaused: the broker cannot serve now: it is full, or loading.
        BrokerError: it refused, for want of a right or because something else is under that name.
        ConfigError: bounds that make no sense.
    """

    def __init__(self, url: str, conf: Settings) -> None:
        most, self._ttl = bounds_of(conf)
        self._most = {IDS: most, STAMPS: MOST_STAMPS}
        keys = dict(conf.worker_control_keys)
        self._seals = {kind: Seal(conf.control_exchange, kind, keys) for kind in self._most}
        self._log = open_revoked_log(url, conf)

    def append(self, revoked: Revoked) -> None:
        """Keep what was revoked now, signed if the settings have a key."""
        values = {IDS: [(task_id,) for task_id in revoked.ids], STAMPS: revoked.stamps}
        for kind, most in self._most.items():
            # In one command more than is kept may be named; what would leave at once need not be sent.
            if newest := values[kind][-most:]:
                now, seal = time.time(), self._seals[kind]
                self._log.append(kind, [seal.write(value, now) for value in newest], most, self._ttl)

    def read(self, *, ids: bool = True, stamps: bool = True) -> Logged:
        """What is revoked; where the settings have keys, only what is signed with one of them."""
        told = Logged()
        if ids:
            told.ids = [(value[0], age) for value, age in self._read(IDS, told.rejected)]
        if stamps:
            told.stamps = [((value[0], value[1]), age) for value, age in self._read(STAMPS, told.rejected)]
        return told

    def _read(self, kind: str, rejected: Counter[str]) -> list[tuple[tuple[str, ...], float]]:
        entries, oversized = self._log.read(kind, self._most[kind], self._ttl, MOST_BYTES)
        if oversized:
            rejected["log_shape"] += oversized
        now, seal = time.time(), self._seals[kind]
        found: dict[tuple[str, ...], float] = {}
        for raw, age in entries:
            try:
                values, signed_age = seal.read(raw, now, self._ttl)
            except BadFrame as fault:
                rejected[fault.kind] += 1
                continue
            # The broker's time can be written anew by who may write to it; that of a signature cannot.
            found[values] = min(max(age, signed_age), found.pop(values, self._ttl))
        return list(found.items())

    def close(self) -> None:
        """Let go of the connection. Closing twice is legal."""
        self._log.close()


def bounds_of(conf: Settings) -> tuple[int, float]:
    """How many revoked ids are remembered, and for how many seconds.

    Raises:
        ConfigError: for none, or no time.
    """
    most: int = conf.worker_revokes_max
    ttl: float = conf.worker_revoke_expires
    if most < 1 or ttl <= 0:
        raise ConfigError(
            f"worker_revokes_max ({most}) has to be at least 1, and worker_revoke_expires ({ttl:g}) more than 0"
        )
    return most, ttl
