"""Has it expired?"""

from __future__ import annotations

from greenq.model import Request, Verdict, VerdictKind

_EXPIRED = Verdict(VerdictKind.DROP, "expired")


def expiry_gate(request: Request, now: float) -> Verdict | None:
    """Drop what may not start any more."""
    if request.expires is not None and request.expires <= now:
        return _EXPIRED
    return None
