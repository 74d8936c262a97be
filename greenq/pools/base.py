"""The interface and the capabilities of every pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from greenq.exceptions import ConfigError, Interrupt, SoftTimeLimitExceeded, WorkerLostError
from greenq.model import Outcome, Record, Request, Settle, State
from greenq.wire.serializers import Accept

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


class ChildSide(Protocol):
    """What runs beside user code in a child process. Made once where the app is loaded, used after the fork."""

    accept: Accept  # what a message's body may be

    def start(self, index: int, store: Callable[[Record], object]) -> None:
        """In the child, first of all; what it raises makes the child unfit. `index` counts slots from 1.

        `store` hands over a record that is not an outcome (STARTED).
        """

    def run(self, request: Request) -> Outcome:
        """Run to the one outcome."""

    def epitaph(self, request: Request, error: BaseException) -> Outcome:
        """The outcome of a run that `error` ended from outside, in a process that is no more."""

    def stop(self) -> None:
        """In the child, last of all."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the process from which children are forked makes its ChildSide: by name, since it shares nothing."""

    target: str  # "module:function", called with the arguments
    arguments: Mapping[str, Any]  # plain values


Lost = Callable[[Request, str], Outcome | BaseException]


def _nothing(told: object) -> None:
    """Nobody asked."""


def _unwritten(request: Request, error: BaseException) -> Outcome:  # noqa: ARG001  (what the callable is given)
    """Without a result, where nobody keeps any."""
    return Outcome(request, State.FAILURE, Settle.DEAD, reason="worker_error")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What a worker wants of its pool. `make_pool` refuses what the pool cannot keep.

    The rest is for pools of processes: `begun(request)` hears that a child is on that request now; `store` gets
    records that are not outcomes; `lost(request, why)` decides what becomes of one whose child died, an outcome
    to settle at once or the error that its epitaph is made of; `unwritten(request, error)` makes the outcome where
    children died over that too; `tells()` says whether outcomes are to have the text of the task's value.
    """

    size: int
    max_tasks: int | None = None  # tasks of a child before it is replaced
    max_memory: int | None = None  # KiB of a child's peak resident memory before it is replaced
    ahead: int = 0  # requests handed to a busy child, each
    recipe: Recipe | None = None
    zygote: Any = None  # `_prefork.zygote.Zygote`
    alive_timeout: float = 4.0  # seconds a child may take to be ready
    begun: Callable[[Request], object] = _nothing
    store: Callable[[Record], object] = _nothing
    lost: Lost = lambda request, why: WorkerLostError(why)
    unwritten: Callable[[Request, BaseException], Outcome] = _unwritten
    tells: Callable[[], bool] = lambda: False


def refuse_recycling(name: str, options: PoolOptions) -> None:
    """Refuse what needs child processes.

    Raises:
        ConfigError: naming the option, and what to use instead.
    """
    for given, option in ((options.max_tasks, "max_tasks_per_child"), (options.max_memory, "max_memory_per_child")):
        if given:
            raise ConfigError(
                f"worker_{option} (--{option.replace('_', '-')}) needs child processes, which the {name} pool has "
                "not: use -P prefork, or let your supervisor limit the worker (MemoryMax= of systemd, a memory limit "
                "of the container): a worker that is restarted loses nothing"
            )


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

    def nudge(self) -> bool:
        """Service thread, several times a second: chase endings that have not reached their task.

        True if there are such, and it is to be called again soon.
        """

    def pid(self, request: Request) -> int | None:
        """The process that runs the request; None while none does."""

    def resize(self, size: int) -> None:
        """Change the number of slots; never interrupts what runs. Floor 1."""

    def restart(self, renewed: Callable[[], object] = lambda: None) -> None:
        """Replace the child processes by new ones with freshly imported code, each after its task.

        `renewed` is called on the main hub when the old ones take nothing more; never, if the new code cannot
        be loaded.

        Raises:
            PoolCannot: on pools without child processes.
        """

    def drain(self, timeout: float | None) -> bool:
        """Start nothing more and wait for what runs; True if all ended within `timeout` seconds."""

    def stop(self) -> None:
        """Let go, and let `serve` return. Stop twice and before start are legal."""

    def stats(self) -> dict[str, Any]:
        """The pool object of `inspect stats` (wire.md 3.5)."""
