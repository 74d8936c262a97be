"""The interface behind which gevent, eventlet and native threads differ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Event(Protocol):
    """A flag one fiber waits for. `set` may be called from any fiber of the same hub."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Fiber(Protocol):
    """Something running beside the caller: a greenlet, or a native thread."""

    def join(self, timeout: float | None = None) -> None: ...
    def alive(self) -> bool: ...


class Runtime(Protocol):
    """How a process runs things side by side. One per process, chosen by the pool."""

    name: str  # "gevent", "eventlet", "threads"
    green: bool  # fibers of one hub switch only when they wait
    failed: Callable[[str], object]  # told the name of a fiber that ended by an error; any thread

    def attach(self) -> None:
        """Make the calling thread the main one: `call_soon` runs on its hub from now on."""

    def spawn(self, fn: Callable[..., object], *args: object, name: str) -> Fiber:
        """Run `fn` beside the caller, on the caller's hub. An exception in it is logged, and `failed` told."""

    def isolated(self, fn: Callable[[], object], *, name: str) -> Fiber:
        """Run `fn` in a native thread with a hub of its own: it goes on while the main hub computes."""

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        """Run `fn` on the main hub, soon; callable from any thread. `fn` may not wait."""

    def offload(self, fn: Callable[..., T], *args: object) -> T:
        """Run a call that blocks in C (SQL, files) without blocking the main hub; returns its value."""

    def sleep(self, seconds: float) -> None:
        """Wait, letting others run; 0 only lets others run."""

    def event(self) -> Event:
        """Make an event for fibers of the calling thread's hub."""

    def lock(self) -> AbstractContextManager[Any]:
        """Make a lock that fibers and threads may share."""

    def thread(self) -> int:
        """The native identity of the calling thread; patching hides it behind the greenlet's."""

    def alone(self) -> None:
        """After a fork, in the child: end the fibers, so that none uses the parent's connections."""


class GreenRuntime(Runtime, Protocol):
    """What a green pool needs besides: bare greenlets, parked and woken through the hub."""

    def greenlet(self, fn: Callable[..., object], *args: object) -> Any:
        """Make a bare greenlet below the main hub; it starts at its first `wake`."""

    def current(self) -> Any:
        """The running greenlet."""

    def park(self) -> None:
        """Wait until somebody calls `wake` with the calling greenlet."""

    def wake(self, greenlet: Any) -> None:
        """Let a parked or new greenlet run at the hub's next turn. Main hub only."""

    def turns(self) -> int:
        """How often the main hub's loop has turned: two equal answers say that it has not between them."""

    def pause(self) -> None:
        """Let the hub turn once and go on; for fairness between tasks that never wait."""


class Watch(Protocol):
    """Looks at one descriptor for the main hub."""

    def start(self) -> None:
        """Look, until `stop`."""

    def stop(self) -> None:
        """Do not look; may be started again."""

    def close(self) -> None:
        """Never look again. Before the descriptor is closed."""


class WatchingRuntime(GreenRuntime, Protocol):
    """What a pool of child processes needs besides: to hear of its pipes without a greenlet for each."""

    def watch(self, fd: int, call: Callable[[], object], *, writing: bool = False) -> Watch:
        """Make a watch, stopped: `call` runs on the main hub at each turn in which `fd` is ready; it may not wait."""
