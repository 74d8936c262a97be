"""What crosses between gevent's hubs, each in a native thread of its own: waking, locks."""

from __future__ import annotations

import importlib

import gevent
from gevent import monkey
from gevent.event import Event
from greenlet import getcurrent

from greenq.runtime.locks import SharedLock


class Turn:
    """One wait of the calling greenlet, ended once: by `wake` from any thread, or by time."""

    __slots__ = ("_bell", "_woken", "wake")

    def __init__(self) -> None:
        self._woken = Event()
        # Another thread may only ring; and a loop without a watcher would end under who waits.
        self._bell = gevent.get_hub().loop.async_()
        self._bell.start(self._woken.set)
        self.wake = self._bell.send

    def wait(self, timeout: float | None = None) -> bool:
        """Let the hub run until `wake`; False if `timeout` seconds passed first."""
        try:
            return bool(self._woken.wait(timeout))
        finally:
            self._bell.stop()
            self._bell.close()


class GeventLock(SharedLock):
    """What `threading.Lock` is under gevent."""

    allocate = staticmethod(monkey.get_original("_thread", "allocate_lock"))
    ident = staticmethod(monkey.get_original("_thread", "get_ident"))
    turn = Turn
    in_hub = staticmethod(lambda: gevent.get_hub() is getcurrent())


def share_locks() -> None:
    """Have gevent hand out `GeventLock` where it would its own; before it patches anything."""
    for module, names in (
        ("gevent.thread", ("allocate_lock", "LockType", "lock")),
        ("gevent.threading", ("_allocate_lock", "allocate_lock", "Lock")),
    ):
        green = importlib.import_module(module)
        for name in names:
            setattr(green, name, GeventLock)
