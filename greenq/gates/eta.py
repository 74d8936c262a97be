"""Is it time?"""

from __future__ import annotations

from greenq.model import Request, Verdict, VerdictKind


def eta_gate(request: Request, now: float) -> Verdict | None:
    """Hold what may not start yet."""
    if request.eta is not None and request.eta > now:
        return Verdict(VerdictKind.HOLD, "eta", request.eta)
    return None
