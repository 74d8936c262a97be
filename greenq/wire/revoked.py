"""Entries of the log of revokes: what a broker keeps for nodes that do not hear a revoke at its moment.

An entry is a JSON array: the values, `["<task id>"]` or `["<header>", "<value>"]`, and where it is signed one more
array, `[issued, key, mac]`: unix seconds, the name of the key, and the HMAC-SHA256 of all the rest in hexadecimal.
It is not a command's signature (wire.signing): that is good for a minute and once, an entry for as long as a revoke.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from greenq.wire.control import CLOCK_MAX, BadFrame

IDS, STAMPS = "ids", "stamps"  # kinds of entries: each has a log of its own
LONGEST = 512  # characters of an id or of a part of a stamp; nobody's are longer, and what is kept has to be bounded
MOST_STAMPS = 10_000  # that are remembered, by a worker as by the log
LOGGED = "logged"  # true in the body of a command that its sender has kept in the log; Celery's nodes pass over it
MOST_BYTES = 16_384  # of an entry: the longest stamp there is, each character written as two escapes, and a signature
_VERSION = "greenq-revoked-1"
_PARTS = {IDS: 1, STAMPS: 2}
_AHEAD = 60.0  # seconds that the clock of who signed may be ahead


class Revoked(NamedTuple):
    """What one command revokes."""

    ids: Sequence[str] = ()
    stamps: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Seal:
    """What entries of a kind are signed with, and for which namespace (`control_exchange`) they are good."""

    namespace: str
    kind: str
    keys: Mapping[str, str]  # name -> secret; the first signs, all are believed; none: nothing is signed

    def write(self, values: Sequence[str], now: float) -> str:
        """One entry, signed if there is a key; `now` is unix seconds."""
        parts: list[Any] = [*values]
        if self.keys:
            name, issued = next(iter(self.keys)), int(now)
            parts.append([issued, name, self._mac(values, issued, name)])
        return json.dumps(parts)

    def read(self, raw: bytes, now: float, ttl: float) -> tuple[tuple[str, ...], float]:
        """The values of an entry, and how long ago they were revoked according to its signature; 0 without one.

        Raises:
            BadFrame: of kind log_shape, and where there are keys log_unsigned, log_signature or log_time.
        """
        try:
            parts = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise BadFrame("log_shape", "not JSON") from exc
        most = _PARTS[self.kind]
        if not isinstance(parts, list) or not all(isinstance(each, list) for each in parts[most:]):
            raise BadFrame("log_shape", f"a list of {most} texts is expected")
        values = tuple(parts[:most])
        if len(values) < most or not all(isinstance(value, str) and len(value) <= LONGEST for value in values):
            raise BadFrame("log_shape", f"{most} texts of at most {LONGEST} characters are expected")
        if not self.keys:
            return values, 0.0
        if len(parts) == most:
            raise BadFrame("log_unsigned", "only signed entries are obeyed")
        if len(parts) > most + 1:
            raise BadFrame("log_signature", "more than one")
        return values, self._age(values, parts[most], now, ttl)

    def _age(self, values: tuple[str, ...], signature: list[Any], now: float, ttl: float) -> float:
        if [type(part) for part in signature] != [int, str, str] or abs(signature[0]) > CLOCK_MAX:
            raise BadFrame("log_signature", "not a signature")
        issued, name, mac = signature
        if name not in self.keys:
            raise BadFrame("log_signature", f"no key {name!r} here")
        if not hmac.compare_digest(self._mac(values, issued, name).encode(), mac.encode("utf-8", "replace")):
            raise BadFrame("log_signature", f"made with another secret than that of key {name!r}, or altered")
        if not -_AHEAD <= now - issued < ttl:
            raise BadFrame("log_time", f"issued {now - issued:.0f} s ago")
        return max(0.0, now - float(issued))

    def _mac(self, values: Sequence[str], issued: int, name: str) -> str:
        text = json.dumps([_VERSION, self.namespace, self.kind, name, issued, *values])
        return hmac.digest(self.keys[name].encode(), text.encode(), sha256).hex()
