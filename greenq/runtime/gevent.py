"""gevent: greenlets on libev's loop."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from weakref import WeakSet

import gevent
import gevent.event
from gevent import monkey
from greenlet import GreenletExit, getcurrent, greenlet

from greenq.runtime.base import Event
from greenq.runtime.fibers import Guarding, NativeFiber
from greenq.runtime.gevent_threads import GeventLock

T = TypeVar("T")
logger = logging.getLogger(__name__)

READABLE, WRITABLE = 1, 2  # of libev

_start_new_thread = monkey.get_original("_thread", "start_new_thread")
_get_ident = monkey.get_original("_thread", "get_ident")


class GeventFiber:
    """A spawned greenlet."""

    def __init__(self, spawned: gevent.Greenlet) -> None:
        self._greenlet = spawned

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._greenlet.join(timeout)

    def alive(self) -> bool:
        """Has it not ended?"""
        return not self._greenlet.ready()


class GeventWatch:
    """A watcher of the main loop."""

    def __init__(self, watcher: Any, call: Callable[[], object]) -> None:
        self._watcher = watcher
        self._call = call

    def start(self) -> None:
        """See Watch."""
        self._watcher.start(self._call)

    def stop(self) -> None:
        """See Watch."""
        self._watcher.stop()

    def close(self) -> None:
        """See Watch."""
        self._watcher.stop()
        self._watcher.close()


class GeventRuntime(Guarding):
    """One main hub, owned by the thread that called `attach`; native threads get hubs of their own."""

    name = "gevent"
    green = True

    def __init__(self) -> None:
        super().__init__()
        self._hub: Any = None
        self._main = 0
        # Any thread appends, only the main hub pops; a deque's ends are atomic under the interpreter lock.
        self._soon: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._bell: Any = None
        self._fibers: WeakSet[gevent.Greenlet] = WeakSet()  # of the main hub

    def attach(self) -> None:
        """See Runtime."""
        self._hub = gevent.get_hub()
        self._main = _get_ident()
        self._bell = self._hub.loop.async_()
        self._bell.start(self._run_soon)
        # gevent 26.9 asks to hear of children only once it watches one, after the fork: a first child that has
        # ended by then is never heard of, and who waits for it waits for ever.
        os.register_at_fork(before=self._hub.loop.install_sigchld)

    def _run_soon(self) -> None:
        while self._soon:
            fn, args = self._soon.popleft()
            try:
                fn(*args)
            except Exception:
                logger.exception("A call posted to the main hub failed.")

    def spawn(self, fn: Callable[..., object], *args: object, name: str) -> GeventFiber:
        """See Runtime."""
        spawned = gevent.spawn(self._guarded, name, fn, *args)
        if _get_ident() == self._main:
            self._fibers.add(spawned)
        return GeventFiber(spawned)

    def isolated(self, fn: Callable[[], object], *, name: str) -> NativeFiber:
        """See Runtime."""

        def body() -> None:
            self._guarded(name, fn)
            gevent.get_hub().destroy(destroy_loop=True)

        fiber = NativeFiber(gevent.sleep)
        _start_new_thread(fiber.run, (body,))
        return fiber

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        """See Runtime."""
        self._soon.append((fn, args))
        self._bell.send()

    def offload(self, fn: Callable[..., T], *args: object) -> T:
        """See Runtime. Outside the main thread the call is made where it stands: nothing waits there."""
        if _get_ident() != self._main:
            return fn(*args)
        # Caught over there, because gevent prints the traceback of whatever leaves a function in its threads.
        result, error = self._hub.threadpool.apply(_caught, (fn, args))
        if error is not None:
            raise error
        value: T = result
        return value

    def sleep(self, seconds: float) -> None:
        """See Runtime."""
        gevent.sleep(seconds)

    def event(self) -> Event:
        """See Runtime."""
        made: Event = gevent.event.Event()
        return made

    def lock(self) -> AbstractContextManager[Any]:
        """See Runtime."""
        return GeventLock()

    def thread(self) -> int:
        """See Runtime."""
        ident: int = _get_ident()
        return ident

    def alone(self) -> None:
        """See Runtime. As soon as the caller waits, its hub would go on reading from the parent's sockets."""
        for fiber in list(self._fibers):
            self._hub.loop.run_callback(fiber.throw, GreenletExit)

    def greenlet(self, fn: Callable[..., object], *args: object) -> Any:
        """See GreenRuntime."""
        return greenlet(lambda: fn(*args), self._hub)

    def current(self) -> Any:
        """See GreenRuntime."""
        return getcurrent()

    def park(self) -> None:
        """See GreenRuntime."""
        self._hub.switch()

    def wake(self, greenlet: Any) -> None:
        """See GreenRuntime."""
        self._hub.loop.run_callback(greenlet.switch)

    def turns(self) -> int:
        """See GreenRuntime."""
        turned: int = self._hub.loop.iteration
        return turned

    def watch(self, fd: int, call: Callable[[], object], *, writing: bool = False) -> GeventWatch:
        """See WatchingRuntime."""
        return GeventWatch(self._hub.loop.io(fd, WRITABLE if writing else READABLE), call)

    def pause(self) -> None:
        """See GreenRuntime."""
        gevent.sleep(0)


def _caught(fn: Callable[..., T], args: tuple[object, ...]) -> tuple[T | None, BaseException | None]:
    try:
        return fn(*args), None
    except BaseException as error:  # noqa: BLE001  (raised again on the hub)
        return None, error
