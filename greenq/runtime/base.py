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

    def patch(self) -> None:
        """Make the standard library cooperative. Before any other import; at most once."""

    def spawn(self, fn: Callable[..., object], *args: object, name: str = "") -> Fiber:
        """Run `fn` beside the caller, on the caller's hub. An exception in it is logged, never lost."""

    def isolated(self, fn: Callable[[], object], *, name: str) -> Fiber:
        """Run `fn` in a native thread with a hub of its own: it goes on while the caller's hub computes."""

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        """Run `fn` on the main hub, soon; callable from any thread and from signal handlers."""

    def offload(self, fn: Callable[..., T], *args: object) -> T:
        """Run a call that blocks in C (SQL, files) without blocking the hub; returns its value."""

    def sleep(self, seconds: float) -> None: ...
    def event(self) -> Event: ...
    def lock(self) -> AbstractContextManager[Any]: ...
    def ident(self) -> int:
        """A number for the running fiber, unique while it lives."""

    def stacks(self) -> list[tuple[str, str]]:
        """(title, stack text) of every fiber and native thread."""
