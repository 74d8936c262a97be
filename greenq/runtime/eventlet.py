"""eventlet: greenlets on a loop in plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import eventlet
from eventlet import patcher
from eventlet.hubs import get_hub, use_hub
from greenlet import getcurrent, greenlet

from greenq.runtime.base import Event
from greenq.runtime.eventlet_threads import OFFLOAD, Bell, EventletLock, Turn, bell_here, forget_bell, get_ident
from greenq.runtime.fibers import Guarding, NativeFiber

T = TypeVar("T")

_start_new_thread = patcher.original("_thread").start_new_thread


class EventletEvent:
    """A flag; who waits for it is woken at the hub's next turn."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Turn] = []

    def set(self) -> None:
        """See Event."""
        self._set = True
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.wake()

    def clear(self) -> None:
        """See Event."""
        self._set = False

    def is_set(self) -> bool:
        """See Event."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """See Event."""
        if self._set:
            return True
        turn = Turn()
        self._waiting.append(turn)
        try:
            return turn.wait(timeout)
        finally:
            if not turn.woken:
                self._waiting.remove(turn)


class EventletFiber:
    """A spawned greenlet."""

    def __init__(self) -> None:
        self._ended = EventletEvent()

    def run(self, fn: Callable[..., object], *args: object) -> None:
        """What the greenlet does."""
        try:
            fn(*args)
        finally:
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._ended.wait(timeout)

    def alive(self) -> bool:
        """Has it not ended?"""
        return not self._ended.is_set()


class EventletRuntime(Guarding):
    """One main hub, owned by the thread that called `attach`; native threads get hubs of their own."""

    name = "eventlet"
    green = True

    def __init__(self) -> None:
        super().__init__()
        self._hub: Any = None
        self._main = 0
        self._bell: Bell
        self._turned = 0
        # The main hub's: who is to run at its next turn, and whether that turn is asked for.
        self._woken: deque[Any] = deque()
        self._asked = False

    def attach(self) -> None:
        """See Runtime."""
        self._hub = get_hub()
        self._main = get_ident()
        self._bell = bell_here()
        # The loop has no counter of its own; it waits for descriptors once a turn.
        self._hub.wait = self._counted(self._hub.wait)

    def _counted(self, wait: Callable[[float], None]) -> Callable[[float], None]:
        def turn(seconds: float) -> None:
            self._turned += 1
            wait(seconds)

        return turn

    def spawn(self, fn: Callable[..., object], *args: object, name: str) -> EventletFiber:
        """See Runtime."""
        fiber = EventletFiber()
        eventlet.spawn(fiber.run, self._guarded, name, fn, *args)
        return fiber

    def isolated(self, fn: Callable[[], object], *, name: str) -> NativeFiber:
        """See Runtime."""

        def body() -> None:
            try:
                self._guarded(name, fn)
            finally:
                _close_hub()

        fiber = NativeFiber(eventlet.sleep)
        _start_new_thread(fiber.run, (body,))
        return fiber

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        """See Runtime."""
        self._bell.post(fn, *args)

    def offload(self, fn: Callable[..., T], *args: object) -> T:
        """See Runtime. Outside the main thread the call is made where it stands: nothing waits there."""
        if get_ident() != self._main:
            return fn(*args)
        return OFFLOAD.call(lambda: fn(*args))

    def sleep(self, seconds: float) -> None:
        """See Runtime."""
        eventlet.sleep(seconds)

    def event(self) -> Event:
        """See Runtime."""
        return EventletEvent()

    def lock(self) -> AbstractContextManager[Any]:
        """See Runtime."""
        return EventletLock()

    def thread(self) -> int:
        """See Runtime."""
        ident: int = get_ident()
        return ident

    def alone(self) -> None:
        """See Runtime. The loop's epoll descriptor is the parent's: what the child did to it, the parent would feel.

        So the child gets a hub of its own, on which nothing waits.
        """
        before, bell = get_hub(), forget_bell()
        use_hub()
        after, here = get_hub(), getcurrent()
        top = here
        while top.parent is not None:
            top = top.parent
        if here is not top:
            after.greenlet.parent = top
            here.parent = after.greenlet
        _close_poll(before)
        if bell is not None:
            bell.drop()
        self._woken.clear()
        self._asked = False
        OFFLOAD.start_over()
        self.attach()

    def greenlet(self, fn: Callable[..., object], *args: object) -> Any:
        """See GreenRuntime."""
        return greenlet(lambda woken: fn(*args), self._hub.greenlet)

    def current(self) -> Any:
        """See GreenRuntime."""
        return getcurrent()

    def park(self) -> None:
        """See GreenRuntime. Only a wake ends it: a timer that eventlet has lost track of may switch here too."""
        while self._hub.switch() is not self:
            continue

    def wake(self, greenlet: Any) -> None:
        """See GreenRuntime. One timer a turn for all of them: eventlet's timers cost more than a task may."""
        self._woken.append(greenlet)
        if not self._asked:
            self._ask()

    def _ask(self) -> None:
        self._asked = True
        self._hub.schedule_call_global(0, self._run_woken)

    def _run_woken(self) -> None:
        self._asked = False
        try:
            # Who is woken meanwhile has to wait for the next turn, as descriptors and timers have.
            for _ in range(len(self._woken)):
                self._woken.popleft().switch(self)
        finally:
            if self._woken and not self._asked:
                self._ask()

    def turns(self) -> int:
        """See GreenRuntime."""
        return self._turned

    def pause(self) -> None:
        """See GreenRuntime."""
        eventlet.sleep(0)


def _close_hub() -> None:
    """End the calling thread's hub: whatever still waits on it never goes on."""
    bell = forget_bell()
    if bell is not None:
        bell.close()
    hub = get_hub()
    if hub.running:
        hub.abort(wait=True)
    _close_poll(hub)


def _close_poll(hub: Any) -> None:
    """Give the descriptor of the loop back, where it has one (epoll, kqueue)."""
    close = getattr(getattr(hub, "poll", None), "close", None)
    if close is not None:
        close()
