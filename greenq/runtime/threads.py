"""Native threads: for the solo pool, where the main thread runs tasks and everything else runs beside it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from greenq.runtime.base import Event
from greenq.runtime.fibers import Guarding

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ThreadFiber:
    """A daemon thread: a task that never returns may not keep the process."""

    def __init__(self, name: str, fn: Callable[..., object], args: tuple[object, ...]) -> None:
        self._thread = threading.Thread(target=fn, args=args, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def alive(self) -> bool:
        """Has it not ended?"""
        return self._thread.is_alive()


class ThreadsRuntime(Guarding):
    """Every fiber is a thread, so every thread may wait; the "main hub" is a thread that runs posted calls."""

    name = "threads"
    green = False

    def __init__(self) -> None:
        super().__init__()
        self._soon: queue.SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = queue.SimpleQueue()

    def attach(self) -> None:
        """See Runtime."""
        ThreadFiber("greenq-hub", self._serve, ())

    def _serve(self) -> None:
        while True:
            fn, args = self._soon.get()
            try:
                fn(*args)
            except Exception:
                logger.exception("A call posted to the hub thread failed.")

    def spawn(self, fn: Callable[..., object], *args: object, name: str) -> ThreadFiber:
        """See Runtime."""
        return ThreadFiber(f"greenq-{name}", self._guarded, (name, fn, *args))

    def isolated(self, fn: Callable[[], object], *, name: str) -> ThreadFiber:
        """See Runtime."""
        return ThreadFiber(f"greenq-{name}", self._guarded, (name, fn))

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        """See Runtime."""
        self._soon.put((fn, args))

    def offload(self, fn: Callable[..., T], *args: object) -> T:
        """See Runtime."""
        return fn(*args)

    def sleep(self, seconds: float) -> None:
        """See Runtime."""
        time.sleep(seconds)

    def event(self) -> Event:
        """See Runtime."""
        return threading.Event()

    def lock(self) -> AbstractContextManager[Any]:
        """See Runtime."""
        return threading.Lock()

    def alone(self) -> None:
        """See Runtime. Only the thread that forks lives on in the child."""

    def thread(self) -> int:
        """See Runtime."""
        return threading.get_ident()
