"""Was it revoked, by its id or by a stamp it carries?"""

from __future__ import annotations

import time

from greenq._speedups import RevokedSet
from greenq.model import Request, Verdict, VerdictKind
from greenq.wire.revoked import MOST_STAMPS
from greenq.wire.stamps import stamps_of

_REVOKED = Verdict(VerdictKind.DROP, "revoked")


class RevokedStamps:
    """A bounded set of stamps, as pairs of a header's name and a value, that forgets after `ttl` seconds.

    The service thread adds, one call at a time; any thread may look. Values are compared by their text, since
    the command line has no other.
    """

    def __init__(self, maxlen: int = MOST_STAMPS, ttl: float = 10_800.0) -> None:
        self.maxlen = maxlen
        self.ttl = ttl
        self._added: dict[tuple[str, str], float] = {}  # -> monotonic time, oldest first

    def add(self, header: str, value: str, now: float) -> None:
        """Add the stamp as the newest; beyond `maxlen` the oldest one goes."""
        self._added.pop((header, value), None)
        self._added[header, value] = now
        if len(self._added) > self.maxlen:
            del self._added[next(iter(self._added))]

    def contains(self, header: str, value: str, now: float) -> bool:
        """Whether the stamp was added less than `ttl` seconds before `now`."""
        added = self._added.get((header, value))
        return added is not None and now - added < self.ttl

    def purge(self, now: float) -> None:
        """Forget what has expired."""
        for pair, added in self.items():
            if now - added >= self.ttl:
                self._added.pop(pair, None)

    def items(self) -> list[tuple[tuple[str, str], float]]:
        """Each (header, value) with the time it was added at, oldest first."""
        return list(self._added.items())

    def carried_by(self, request: Request, now: float) -> bool:
        """Does the request carry one of them? For requests with `stamped` set; reads the headers again."""
        return any(self.contains(header, value, now) for header, value in stamps_of(request))

    def __len__(self) -> int:
        return len(self._added)


class RevokedGate:
    """Drops what is revoked; the service thread adds to both sets, this hub only reads them.

    `idle` says that nothing has been revoked yet; whoever adds to the sets takes it back, afterwards.
    """

    def __init__(self, revoked: RevokedSet, stamps: RevokedStamps) -> None:
        self._revoked = revoked
        self._stamps = stamps
        self.idle = not len(revoked) and not len(stamps)

    def __call__(self, request: Request, now: float) -> Verdict | None:
        """`now` is unix time, as for every gate."""
        if self.idle:
            return None
        revoked = self._revoked
        if len(revoked) and revoked.contains(request.id, time.monotonic()):
            return _REVOKED
        if request.stamped and len(self._stamps) and self._stamps.carried_by(request, time.monotonic()):
            return _REVOKED
        return None

