"""The panel: the only thing a command sees of the worker it runs in, and how a verb reaches the main hub."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from greenq.exceptions import ControlError
from greenq.model import Request
from greenq.runtime.base import Runtime
from greenq.wire.control import LogicalClock

if TYPE_CHECKING:
    from greenq.control.state import ConsumerState, MemoryLog

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Accepted(ControlError):
    """Ends a command whose verb waits for the main hub: the verb takes effect as soon as the hub turns.

    The listener makes it the reply; a command that has more to say may catch it. `blocker` names the task in
    the way, "" if none is known.
    """

    def __init__(self, blocker: str = "") -> None:
        super().__init__(blocker)
        self.blocker = blocker

    def __str__(self) -> str:
        return f"accepted: takes effect when {self.blocker or 'the main hub'} yields"


@dataclass(slots=True)
class Hearing:
    """What became of the commands so far. Written by the listener, in the service thread; read from any."""

    profile: str = "off"
    signed: bool = False  # only signed commands are obeyed
    handled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # kind of fault -> how many

    def info(self) -> dict[str, Any]:
        """As `inspect stats` shows it."""
        return {
            "profile": self.profile,
            "signed": self.signed,
            "handled": self.handled,
            "rejected": dict(self.rejected),
        }


class Scheduled(NamedTuple):
    """One request that waits for its ETA."""

    eta: float  # unix seconds
    request: Request


class Slots(Protocol):
    """What a command may do to the pool. All but `autoscaler` are verbs; see Panel."""

    def autoscaler(self) -> dict[str, int] | None:
        """The autoscaler's object of `stats` (wire.md 3.5); None without --autoscale."""

    def sizes(self) -> tuple[int, int]:
        """How many slots the pool was started with, and has now."""

    def resize(self, by: int) -> None:
        """Add slots to the pool, or take some away, whole or not at all; what runs goes on.

        Raises:
            BadArgument: there would be less than one, or more than is sane.
            PoolCannot: the pool's size is fixed.
        """

    def autoscale(self, most: int | None, least: int | None) -> tuple[int, int]:
        """Set the autoscaler's bounds and return (maximum, minimum); None leaves one as it is.

        Raises:
            BadArgument: for bounds that cannot be.
        """

    def restart(self, modules: Sequence[str] | None, *, reload: bool) -> None:
        """Import modules (anew if `reload`; None means the app's own), and replace the child processes.

        Raises:
            ConfigError: a module cannot be imported; nothing has changed then.
            PoolCannot: there are no child processes.
        """


class Watchers(Protocol):
    """What a command may do about events; all take effect at once, from the service thread."""

    def enable(self) -> bool:
        """Send task events; False if they were sent already."""

    def disable(self) -> bool:
        """Send task events no longer; False if they were not sent."""

    def beat(self) -> None:
        """Send a heartbeat now."""


class Electing(Protocol):
    """Elections: of all nodes that are asked to, one does something."""

    def hold(self, election: str, topic: str, action: Any) -> None:
        """Stand for an election, and do the action if this node wins; returns at once, the rest takes a second.

        Raises:
            BadArgument: this node could not do it, or the id is no id; it does not stand then.
            CommandRefused: this node takes no part in elections, or cannot now.
        """

    def info(self) -> dict[str, Any]:
        """As `inspect stats` shows it; any thread."""


class Revokes(Protocol):
    """What may never start. All takes effect at once, from the service thread, however busy the main hub is.

    What waits here leaves memory and the broker when that hub turns. Stamps are pairs of a header's name and a
    value's text.
    """

    def ids(self) -> list[str]:
        """The revoked ids, oldest first."""

    def stamps(self) -> dict[str, list[str]]:
        """The revoked stamps: header -> values."""

    def add(self, task_ids: Sequence[str]) -> None:
        """Never start these. Waits for the disk where the node has a state file."""

    def add_stamps(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Never start what carries one of these stamps. Waits for the disk as `add`."""

    def learn(self, task_ids: Iterable[Any], stamps: Mapping[str, Sequence[str]]) -> None:
        """Take over what a neighbour says, oldest first, as far as there is room; what is no id is passed over."""

    def terminate_stamped(self, pairs: Sequence[tuple[str, str]], signal: int) -> list[tuple[str, str]]:
        """End what runs here with one of these stamps; returns the stamps that were found."""


class Vitals(Protocol):
    """What helps when a node misbehaves; snapshots, read from any thread."""

    def messages(self) -> dict[str, int]:
        """How many are where: unsettled, held, limited, ready, running, outbox, and what happened so far."""

    def connections(self) -> dict[str, Any]:
        """Whether the node reaches its broker to consume, and to be asked."""


class Consuming(Protocol):
    """What a command may do about queues. All but `queues` are verbs; see Panel."""

    def queues(self) -> list[dict[str, Any]]:
        """What is consumed, as QUEUE_INFO objects (wire.md 3.4); [] when not consuming."""

    def add(self, name: str, options: dict[str, Any]) -> None:
        """Consume from one more queue; options are the keywords of kombu's Queue.from_dict.

        Raises:
            BadArgument: it cannot be had so; nothing has changed then.
            BrokerError: it could not be declared; nothing has changed either.
        """

    def cancel(self, name: str) -> None:
        """Consume from a queue no longer; one that is not consumed is no error."""


class Panel(Protocol):
    """What a command may see and do.

    Everything is called from the service thread, several commands at a time. All but the verbs at the end
    return snapshots and never wait for the main hub. Verbs may raise `Accepted`; what else they raise is an
    error reply.
    """

    hostname: str  # the node's full name
    app: Any  # the application: `.main`, `.conf` (Settings), `.tasks` (name -> task)
    clock: LogicalClock
    consuming: Consuming  # what may be done about queues
    hearing: Hearing
    consumer: ConsumerState  # what commands written for Celery ask of `state.consumer`
    tset: type[set[Any]]  # and how they call the type of sets
    memory: MemoryLog  # what `memsample` has seen

    @property
    def slots(self) -> Slots:
        """What may be done to the pool."""

    @property
    def revokes(self) -> Revokes:
        """What may never start."""

    @property
    def vitals(self) -> Vitals:
        """What helps when a node misbehaves."""

    @property
    def watchers(self) -> Watchers:
        """What may be done about events."""

    @property
    def elections(self) -> Electing:
        """What may be done about elections."""

    def active(self) -> Sequence[Request]:
        """What runs now."""

    def reserved(self) -> Sequence[Request]:
        """Received and not running: ready, or waiting for a rate limit; without what waits for its ETA."""

    def scheduled(self) -> Sequence[Scheduled]:
        """What waits for its ETA."""

    def find(self, task_ids: Sequence[str]) -> Mapping[str, tuple[str, Request]]:
        """Those of the ids that are here: id -> ("active", "reserved", "scheduled" or "ready", request).

        "ready" has ended, and the broker has yet to hear of it.
        """

    def arguments(self, request: Request) -> tuple[list[Any], dict[str, Any]]:
        """Decode the body of a request: (args, kwargs). Raises MessageError when it cannot be read."""

    def acknowledged(self, request: Request) -> bool:
        """Has the broker been told that the request is done or taken (early ack)?"""

    def worker_pid(self, request: Request) -> int | None:
        """The process it runs in; None while it waits."""

    def totals(self) -> Mapping[str, int]:
        """Tasks started so far, by the name people see."""

    def uptime(self) -> float:
        """Seconds since the worker started."""

    def pool(self) -> dict[str, Any]:
        """The pool object of `stats` (wire.md 3.5)."""

    def hub(self) -> dict[str, Any]:
        """Whether the main hub turns: "stalls" so far, the "longest", and "stalled_for" now (seconds)."""

    def broker(self) -> dict[str, Any]:
        """The broker object of `stats`: `broker.connections.describe(url, conf)`."""

    def prefetch_count(self) -> int:
        """How many deliveries may be unsettled now."""

    def post(self, verb: Callable[..., T], *args: object) -> T:
        """Run `verb(*args)` on the main hub and return what it returns; see `MainHub`."""

    def terminate(self, task_ids: Sequence[str], signal: int) -> list[str]:
        """End those that run here; returns their ids."""

    def rate_limit(self, task_name: str, limit: str | float | None) -> None:
        """Set a task's rate limit (any value that `greenq.rates.parse_rate` reads); None lifts it."""

    def time_limit(self, task_name: str, soft: float | None, hard: float | None) -> None:
        """Set a task's time limits (seconds); None lifts one."""

    def shutdown(self, reason: str) -> None:
        """Begin a warm stop; returns at once."""


class MainHub:
    """Posts verbs to the main hub from the service thread.

    Only a deque and the loop's own bell cross between hubs: green events and queues lose wake-ups there. The
    caller looks for its answer, more and more rarely, and lets the other fibers of its hub run meanwhile.
    """

    def __init__(self, runtime: Runtime, blocker: Callable[[], str], patience: float = 0.5) -> None:
        """`blocker` names the task that computes on the main hub now.

        `patience` (seconds) is half of what clients wait by default, so that their answer is in time.
        """
        self._runtime = runtime
        self._blocker = blocker
        self._patience = patience

    def post(self, verb: Callable[..., T], *args: object) -> T:
        """Run `verb(*args)` on the main hub and return what it returns or raise what it raises.

        Raises:
            Accepted: when the hub has not turned in time; the verb runs when it does, its result is dropped.
        """
        return self._sent(self._runtime.call_soon, verb, *args)

    def run(self, verb: Callable[..., T], *args: object) -> T:
        """As `post`, for a verb that may wait: it runs in a fiber of the main hub."""

        def begin(call: Callable[[], object]) -> None:
            self._runtime.call_soon(partial(self._runtime.spawn, call, name="command"))

        return self._sent(begin, verb, *args)

    def _sent(self, begin: Callable[[Callable[[], object]], object], verb: Callable[..., T], *args: object) -> T:
        answer: list[T] = []
        failure: list[Exception] = []
        waiting = [True]

        def apply() -> None:
            try:
                answer.append(verb(*args))
            except Exception as exc:
                failure.append(exc)
                if not waiting:
                    logger.exception("A command that had been accepted failed.")

        begin(apply)
        deadline = time.monotonic() + self._patience
        pause = 0.0005
        while not answer and not failure:
            if time.monotonic() >= deadline:
                waiting.clear()
                raise Accepted(self._blocker())
            self._runtime.sleep(pause)
            pause = min(pause * 2, 0.02)
        if failure:
            raise failure[0]
        return answer[0]
