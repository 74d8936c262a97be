"""The interface and the capabilities of every pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from greenq.exceptions import Interrupt, SoftTimeLimitExceeded
from greenq.model import Outcome, Request

Run = Callable[[Request], Outcome]
Done = Callable[[Request, Outcome], None]
Ending = Interrupt | SoftTimeLimitExceeded


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

    def as_dict(self) -> dict[str, bool]:
        """For `inspect stats`."""
        return asdict(self)


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

    def serve(self) -> None:
        """Keep the main thread until `stop`; a pool that runs tasks in the main thread runs them here."""

    def submit(self, request: Request) -> None:
        """Give a request a free slot; never blocks. Raises PoolFull or PoolClosed."""

    def free(self) -> int:
        """Slots without a request."""

    def kill(self, request: Request, ending: Ending) -> None:
        """Raise `ending` in the task that runs this request, wherever it is; callable from any thread.

        Does nothing if the request does not run (any more). A task that waits gets it at once; one that
        computes gets it from a signal whose handler looks at what it interrupted. Nobody else is ever hit.
        """

    def nudge(self) -> None:
        """Service thread, several times a second: chase endings that have not reached their task."""

    def resize(self, size: int) -> None:
        """Change the number of slots; never interrupts what runs. Floor 1."""

    def drain(self, timeout: float | None) -> bool:
        """Start nothing more and wait for what runs; True if all ended within `timeout` seconds."""

    def stop(self) -> None:
        """Let go, and let `serve` return. Stop twice and before start are legal."""

    def stats(self) -> dict[str, Any]:
        """The pool object of `inspect stats` (wire.md 3.5)."""
