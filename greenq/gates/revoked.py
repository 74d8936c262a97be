"""Was it revoked?"""

from __future__ import annotations

import time

from greenq._speedups import RevokedSet
from greenq.model import Request, Verdict, VerdictKind

_REVOKED = Verdict(VerdictKind.DROP, "revoked")


class RevokedGate:
    """Drops what is in the revoked set; the service thread adds to the set, this hub only reads it."""

    def __init__(self, revoked: RevokedSet) -> None:
        self._revoked = revoked

    def __call__(self, request: Request, now: float) -> Verdict | None:
        """`now` is unix time, as for every gate."""
        revoked = self._revoked
        if len(revoked) and revoked.contains(request.id, time.monotonic()):
            return _REVOKED
        return None
