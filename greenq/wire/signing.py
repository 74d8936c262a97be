"""Signatures of commands: who may ask is who knows a secret.

A signed command carries one more key in its body, `signature`, which workers that know nothing of it ignore:
`{"key": id, "issued": t, "expires": t, "nonce": text, "mac": hex}`, times in unix seconds. The MAC is
HMAC-SHA256 over the canonical form of everything else in the body and in the signature, and of the namespace
(`control_exchange`) the command is for: the same command under another name is another command.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any, TypeGuard

from kombu.utils.json import dumps

from greenq.wire.control import BadFrame

FIELD = "signature"
WINDOW = 60.0  # seconds between the clock of the sender and that of the node
NONCES = 10_000  # remembered, so that no command is obeyed twice
_VERSION = "greenq-control-1"
_NONCE_MAX = 64  # characters


@dataclass(frozen=True, slots=True)
class Claim:
    """What a signature says of itself: which key, when, until when, and a number used once."""

    key: str
    issued: float
    expires: float
    nonce: str


def canonical(body: Mapping[str, Any], claim: Claim, namespace: str) -> bytes:
    """The bytes that are signed: the same from what the sender has in hand as from what came over the wire.

    Everything is written as the wire's JSON first, which makes lists of tuples and text of the keys of objects.

    Raises:
        ValueError: for what JSON cannot carry.
    """
    rest = {name: value for name, value in body.items() if name != FIELD}
    parts = [_VERSION, namespace, claim.key, claim.issued, claim.expires, claim.nonce, rest]
    try:
        plain = json.loads(dumps(parts))
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, RecursionError) as exc:
        raise ValueError(f"what JSON cannot carry cannot be signed: {exc}") from exc


def mac_of(body: Mapping[str, Any], claim: Claim, namespace: str, secret: str) -> str:
    """The MAC, as 64 hexadecimal digits."""
    return hmac.new(secret.encode(), canonical(body, claim, namespace), sha256).hexdigest()


def signed(body: Mapping[str, Any], claim: Claim, namespace: str, secret: str) -> dict[str, Any]:
    """The same body with its signature.

    Raises:
        ValueError: for arguments that JSON cannot carry.
    """
    signature = {
        "key": claim.key,
        "issued": claim.issued,
        "expires": claim.expires,
        "nonce": claim.nonce,
        "mac": mac_of(body, claim, namespace, secret),
    }
    return {**body, FIELD: signature}


def verify(body: Mapping[str, Any], namespace: str, keys: Mapping[str, str], now: float) -> Claim:
    """Check a command's signature at the moment `now` (unix seconds); the nonce is for `Nonces` to judge.

    Raises:
        BadFrame: of kind unsigned, signature_shape, signature_key, signature_wrong or signature_time.
    """
    claim, mac = _read(body.get(FIELD))
    secret = keys.get(claim.key)
    if secret is None:
        raise BadFrame("signature_key", f"no key {claim.key!r} here")
    try:
        expected = mac_of(body, claim, namespace, secret)
    except ValueError as exc:
        raise BadFrame("signature_shape", str(exc)) from exc
    if not hmac.compare_digest(expected.encode(), mac.encode()):
        raise BadFrame("signature_wrong", f"made with another secret than that of key {claim.key!r}, or altered")
    # After the MAC: whoever has no secret does not learn what the clock here says.
    if not abs(now - claim.issued) <= WINDOW:
        raise BadFrame("signature_time", f"issued {now - claim.issued:+.0f} s ago, and the window is {WINDOW:.0f} s")
    if not now <= claim.expires:
        raise BadFrame("signature_time", f"expired {now - claim.expires:.0f} s ago")
    return claim


def _read(value: object) -> tuple[Claim, str]:
    if value is None:
        raise BadFrame("unsigned", "only signed commands are obeyed")
    if not isinstance(value, Mapping):
        raise BadFrame("signature_shape", type(value).__name__)
    key, nonce, mac = value.get("key"), value.get("nonce"), value.get("mac")
    issued, expires = value.get("issued"), value.get("expires")
    if not (isinstance(key, str) and isinstance(mac, str) and isinstance(nonce, str)):
        raise BadFrame("signature_shape", "key, nonce and mac are text")
    if not 0 < len(nonce) <= _NONCE_MAX:
        raise BadFrame("signature_shape", f"a nonce has 1 to {_NONCE_MAX} characters")
    if not (_is_time(issued) and _is_time(expires)):
        raise BadFrame("signature_shape", "issued and expires are numbers")
    return Claim(key, issued, expires, nonce), mac


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53


class Nonces:
    """What has been obeyed, for as long as its time is good; one owner.

    It forgets the oldest when it is full, and from then on takes nothing that is as old: what is forgotten
    cannot be replayed, and a flood locks nobody out whose clock is right. What was issued before `since`, when
    nobody remembered anything, is refused too.
    """

    def __init__(self, since: float, most: int = NONCES) -> None:
        self._since = since
        self._most = most
        self._seen: set[str] = set()
        self._by_age: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._seen)

    def take(self, claim: Claim, now: float) -> None:
        """Note a verified claim.

        Raises:
            BadFrame: of kind replayed.
        """
        while self._by_age and self._by_age[0][0] < now - WINDOW:
            self._forget()
        if claim.nonce in self._seen:
            raise BadFrame("replayed", "this command has come before")
        if claim.issued <= self._since:
            raise BadFrame("replayed", "it is older than what is remembered here, so it may have come before")
        if len(self._seen) >= self._most:
            self._since = max(self._since, self._forget())
        self._seen.add(claim.nonce)
        heappush(self._by_age, (claim.issued, claim.nonce))

    def _forget(self) -> float:
        issued, nonce = heappop(self._by_age)
        self._seen.discard(nonce)
        return issued
