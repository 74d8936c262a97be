"""The interface and the capabilities of every pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from greenq.model import Outcome, Request

Run = Callable[[Request], Outcome]
Done = Callable[[Request, Outcome], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a pool can keep; what it cannot is refused at start."""

    soft_limit: bool = False
    hard_limit: bool = False
    kill: bool = False
    resize: bool = False
    restart: bool = False
    recycle: bool = False
    survives_crash: bool = False


class Pool(Protocol):
    """Slots in which requests run, and nothing else: no queue, no broker, no result.

    Every accepted request yields exactly one `done(request, outcome)`, whatever user code does.
    `free() + running == size` at any time. After `drain` nothing starts.
    """

    name: str
    size: int
    can: Capabilities

    def start(self, run: Run, done: Done) -> None:
        """Get ready. `run` is called beside user code, `done` once for each accepted request."""

    def submit(self, request: Request) -> None:
        """Give a request a free slot; never blocks. Raises PoolFull or PoolClosed."""

    def free(self) -> int:
        """Slots without a request."""

    def kill(self, request_id: str) -> bool:
        """End that request as CANCELLED or REVOKED; False if it does not run here."""

    def resize(self, size: int) -> None:
        """Change the number of slots; never interrupts what runs. Floor 1."""

    def drain(self, deadline: float | None) -> bool:
        """Start nothing more and wait for what runs; True if all ended before `deadline` (monotonic)."""

    def stop(self) -> None:
        """Cancel what still runs, each with its `done`, and let go. Stop twice and before start are legal."""

    def stats(self) -> dict[str, Any]:
        """The pool object of `inspect stats` (wire.md 3.5)."""
