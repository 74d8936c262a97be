"""`-P solo`: one task at a time, in the main thread, where a debugger finds it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from greenq.exceptions import ConfigError, PoolCannot, PoolClosed, PoolFull
from greenq.model import Request
from greenq.pools.base import Capabilities, Done, Ending, PoolOptions, Run, refuse_recycling
from greenq.pools.guarding import run_guarded, tell_done
from greenq.pools.interrupts import Interrupts
from greenq.runtime.threads import ThreadsRuntime


class SoloPool:
    """The main thread takes requests from a one-place line; every other thread only hands over or kills."""

    name = "solo"
    can = Capabilities(soft_limit=True, hard_limit=True, kill=True)

    def __init__(self, runtime: ThreadsRuntime) -> None:
        self.size = 1
        self._runtime = runtime
        self._line: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        # Guards the count: the intake's thread submits while the main thread ends a task.
        self._lock = threading.Lock()
        self._busy = 0
        self._untold = False  # free again, but `done` has not returned
        self._current: Request | None = None  # written by the main thread only
        self._closed = False
        self._empty = threading.Event()
        self._interrupts = Interrupts(lambda: self._current)
        self._run: Run
        self._done: Done

    def start(self, run: Run, done: Done) -> None:
        """See Pool."""
        self._run = run
        self._done = done
        self._interrupts.install(self._runtime.thread())

    def serve(self) -> None:
        """See Pool."""
        while (request := self._line.get()) is not None:
            self._one(request)

    def submit(self, request: Request) -> None:
        """See Pool."""
        with self._lock:
            if self._closed:
                raise PoolClosed("the pool takes nothing new")
            if self._busy:
                raise PoolFull("the one slot is busy")
            self._busy = 1
        self._line.put(request)

    def free(self) -> int:
        """See Pool."""
        return 1 - self._busy

    def kill(self, request: Request, ending: Ending) -> None:
        """See Pool."""
        self._interrupts.add(request, ending)
        about_to_start = self._busy and self._current is None
        if self._current is request and request.state != "finishing":
            self._interrupts.nudge()
        elif request.state == "finishing" or not about_to_start:
            self._interrupts.forget(request)  # it does not run (any more), and would be struck when it comes again

    def nudge(self) -> bool:
        """See Pool."""
        return self._interrupts.nudge()

    def resize(self, size: int) -> None:
        """See Pool. Solo has one slot by definition."""
        if size != 1:
            raise PoolCannot("the solo pool has exactly one slot")

    def pid(self, request: Request) -> int | None:
        """See Pool."""
        return os.getpid() if request.state == "running" else None

    def restart(self, renewed: Callable[[], object] = lambda: None) -> None:
        """See Pool."""
        raise PoolCannot("the solo pool has no child processes to restart: restart the worker")

    def drain(self, timeout: float | None) -> bool:
        """See Pool."""
        with self._lock:
            self._closed = True
            if not self._busy and not self._untold:
                return True
            self._empty.clear()
        return self._empty.wait(timeout)

    def stop(self) -> None:
        """See Pool."""
        with self._lock:
            self._closed = True
        self._line.put(None)

    def stats(self) -> dict[str, Any]:
        """See Pool."""
        return {
            "implementation": "greenq.pools.solo",
            "max-concurrency": 1,
            "processes": [os.getpid()],
            "running": self._busy,
            "free": self.free(),
            "capabilities": self.can.as_dict(),
        }

    def _one(self, request: Request) -> None:
        self._current = request
        outcome = run_guarded(self._run, request)
        self._current = None
        self._interrupts.forget(request)
        with self._lock:
            self._busy = 0
            self._untold = True
        tell_done(self._done, request, outcome)
        with self._lock:
            self._untold = False
            if not self._busy:
                self._empty.set()


def make_runtime() -> ThreadsRuntime:
    """Make the runtime."""
    return ThreadsRuntime()


def make_pool(options: PoolOptions, runtime: ThreadsRuntime) -> SoloPool:
    """Make the pool; its size must be 1."""
    refuse_recycling("solo", options)
    if options.size != 1:
        raise ConfigError("the solo pool has exactly one slot: leave out -c, or say -c 1")
    return SoloPool(runtime)
