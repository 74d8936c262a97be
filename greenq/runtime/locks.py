"""A lock between fibers and threads, for green libraries whose own is one between the fibers of a single hub.

Measured with gevent 26.9 and eventlet 0.41: two fibers of one hub and a thread with another that take turns at a
patched `threading.Lock`, as all do that write log lines, stop for ever within a hundred turns, and with them
everything that logs. So `patching` has the libraries hand out this one.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, ClassVar, Protocol


class Turn(Protocol):
    """One wait of the greenlet that made it, ended once."""

    def wait(self, timeout: float | None = None) -> bool:
        """Let the hub run until `wake`; False if `timeout` seconds passed first."""

    def wake(self) -> None:
        """End the wait, or the one to come; from any thread."""


class SharedLock:
    """A `threading.Lock` for fibers of several hubs; who waits lets its own hub run. No order is kept."""

    # What differs between the libraries; functions without arguments.
    allocate: ClassVar[Any]  # the interpreter's own lock
    ident: ClassVar[Any]  # an int, of the calling native thread
    turn: ClassVar[Any]  # a Turn
    in_hub: ClassVar[Any]  # is the caller the hub itself, which cannot wait?

    def __init__(self) -> None:
        self._held = self.allocate()
        self._holder = 0  # the thread that has it; 0 while it is passed on
        self._waiting: deque[Turn] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002  (threading's)
        """As `threading.Lock.acquire`."""
        if self._held.acquire(blocking=False) or (blocking and self._acquire_later(timeout)):
            self._holder = self.ident()
            return True
        return False

    __enter__ = acquire

    def release(self) -> None:
        """As `threading.Lock.release`."""
        self._holder = 0
        self._held.release()
        if self._waiting:
            self._wake_one()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def locked(self) -> bool:
        """As `threading.Lock.locked`."""
        held: bool = self._held.locked()
        return held

    def _at_fork_reinit(self) -> None:
        """As `threading.Lock`'s, which logging calls in the child: who holds or wants it lives in the parent."""
        self._held = self.allocate()
        self._holder = 0
        self._waiting.clear()

    def _acquire_later(self, timeout: float) -> bool:
        if self.in_hub():
            return self._acquire_in_hub(timeout)
        until = None if timeout < 0 else time.monotonic() + timeout
        while True:
            turn = self.turn()
            self._waiting.append(turn)
            try:
                # The release may have come just before it could see this greenlet in the line.
                if not self._held.locked():
                    self._wake_one()
                in_time = turn.wait(None if until is None else max(0.0, until - time.monotonic()))
            except BaseException:
                self._leave(turn)
                raise
            if not in_time:
                self._leave(turn)
            if self._held.acquire(blocking=False):
                return True
            if not in_time:
                return False

    def _acquire_in_hub(self, timeout: float) -> bool:
        """The hub cannot wait for its own greenlets; for another thread it can, as any thread does."""
        if self._holder == self.ident():
            raise RuntimeError("a call made by the hub wants a lock that a greenlet of this hub has")
        acquired: bool = self._held.acquire(timeout=timeout)
        return acquired

    def _leave(self, turn: Turn) -> None:
        try:
            self._waiting.remove(turn)
        except ValueError:  # woken, and not there to take the lock: the turn is the next one's
            self._wake_one()

    def _wake_one(self) -> None:
        try:
            turn = self._waiting.popleft()
        except IndexError:  # another thread woke the last one
            return
        turn.wake()
