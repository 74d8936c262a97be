"""What crosses between eventlet's hubs, each in a thread of its own: posted calls, waking, locks, blocking calls.

eventlet itself knows one hub: what one thread releases switches to the greenlet that waits in another, which
cannot be, and who waits does so for ever.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
from _queue import SimpleQueue  # the one queue between threads that patching leaves as it is
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from eventlet import patcher
from eventlet.hubs import get_hub
from greenlet import getcurrent

from greenq.runtime.locks import SharedLock

T = TypeVar("T")
logger = logging.getLogger(__name__)

MOST_THREADS = 10  # for calls that block in C
RESOLVING = ("getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyname_ex")

_socket = patcher.original("socket")
_thread = patcher.original("_thread")
_here = patcher.original("threading").local()  # each thread's bell
get_ident = _thread.get_ident


class Bell:
    """Runs calls on the hub of the thread that made it; any thread posts them.

    A descriptor that the hub watches is the only way to end its wait from outside.
    """

    def __init__(self) -> None:
        self._hub = get_hub()
        # Any thread appends, only the bell's own hub pops; a deque's ends are atomic under the interpreter lock.
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._rung = False
        # As files, which say no once they are closed: to post then is no byte in somebody else's descriptor.
        self._ear, self._mouth = map(io.FileIO, os.pipe(), ("r", "w"))
        os.set_blocking(self._ear.fileno(), False)
        os.set_blocking(self._mouth.fileno(), False)
        self._listener = self._hub.add(self._hub.READ, self._ear.fileno(), self._run, _nothing, None)

    def post(self, call: Callable[..., object], *args: object) -> None:
        """Have `call` made on the bell's hub, where it may not wait. Without effect after `close`."""
        self._calls.append((call, args))
        if not self._rung:
            self._rung = True
            with contextlib.suppress(ValueError):
                self._mouth.write(b"!")

    def _run(self, fileno: int) -> None:
        self._ear.read(64)
        # What is posted from here on rings again, so that a call which posts another lets the hub turn.
        self._rung = False
        for _ in range(len(self._calls)):
            call, args = self._calls.popleft()
            try:
                call(*args)
            except Exception:
                logger.exception("A call posted to a hub failed.")

    def close(self) -> None:
        """Give the descriptors back; in the bell's own thread."""
        self._hub.remove(self._listener)
        self.drop()

    def drop(self) -> None:
        """Give the descriptors back where the hub is gone already."""
        self._ear.close()
        self._mouth.close()


def bell_here() -> Bell:
    """The calling thread's bell."""
    try:
        bell: Bell = _here.bell
    except AttributeError:
        bell = _here.bell = Bell()
    return bell


def forget_bell() -> Bell | None:
    """The calling thread's bell, if it has one, which is handed out no more."""
    bell: Bell | None = _here.__dict__.pop("bell", None)
    return bell


class Turn:
    """One wait of the calling greenlet, ended once: by `wake` from any thread, or by time."""

    __slots__ = ("_bell", "_greenlet", "_hub", "_thread", "_waits", "woken")

    def __init__(self, bell: Bell | None = None) -> None:
        """`bell` is the calling thread's, and needed only if another thread may wake."""
        self._hub = get_hub()
        self._greenlet = getcurrent()
        self._thread = get_ident()
        self._bell = bell
        self._waits = False
        self.woken = False

    def wait(self, timeout: float | None = None) -> bool:
        """Let the hub run until `wake`; False if `timeout` seconds passed first."""
        if self.woken:
            return True
        timer = None if timeout is None else self._hub.schedule_call_global(timeout, self._go_on)
        self._waits = True
        try:
            # A timer that eventlet has lost track of, where a signal struck in its midst, may switch here too.
            while self._hub.switch() is not self:
                continue
        finally:
            self._waits = False
            if timer is not None:
                timer.cancel()
        return self.woken

    def wake(self) -> None:
        """End the wait, or the one to come."""
        self.woken = True
        if get_ident() == self._thread:
            self._hub.schedule_call_global(0, self._go_on)
        elif self._bell is not None:
            self._bell.post(self._go_on)

    def _go_on(self) -> None:
        """On the hub. Time, a kill or an earlier wake may have ended the wait already."""
        if self._waits:
            self._waits = False
            self._greenlet.switch(self)


class EventletLock(SharedLock):
    """What `threading.Lock` is under eventlet."""

    allocate = staticmethod(_thread.allocate_lock)
    ident = staticmethod(get_ident)
    turn = staticmethod(lambda: Turn(bell_here()))
    in_hub = staticmethod(lambda: get_hub().greenlet is getcurrent())


class Offload:
    """Native threads for calls that block in C, started as they are needed, shared by all hubs."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """After a fork, in the child: the threads are the parent's."""
        self._calls: SimpleQueue[tuple[Callable[[], object], Turn, list[Any]]] = SimpleQueue()
        # One for each thread that waits, and for each that may still be started; anybody appends and pops.
        self._idle: deque[None] = deque()
        self._unstarted: deque[None] = deque([None] * MOST_THREADS)

    def call(self, call: Callable[[], T]) -> T:
        """Make the call over there and return its value; the calling greenlet waits. The hub itself makes it here."""
        if get_hub().greenlet is getcurrent():
            return call()
        if not _taken(self._idle) and _taken(self._unstarted):
            _thread.start_new_thread(self._serve, ())
        turn, answer = Turn(bell_here()), list[Any]()
        self._calls.put((call, turn, answer))
        turn.wait()
        value, error = answer
        if error is not None:
            raise error
        made: T = value
        return made

    def _serve(self) -> None:
        while True:
            call, turn, answer = self._calls.get()
            try:
                answer += (call(), None)
            except BaseException as error:  # noqa: BLE001  (raised again on the hub)
                answer += (None, error)
            self._idle.append(None)
            turn.wake()
            del call, turn, answer  # nothing of a call is kept while waiting for the next


OFFLOAD = Offload()


def _taken(tokens: deque[None]) -> bool:
    try:
        tokens.pop()
    except IndexError:
        return False
    return True


def share_locks() -> None:
    """Have eventlet hand out `EventletLock` where it would its own; before it patches anything."""
    green = importlib.import_module("eventlet.green.thread")
    for name in ("Lock", "LockType", "allocate", "allocate_lock"):
        setattr(green, name, EventletLock)


def resolve_in_threads() -> None:
    """Have names looked up by the system beside the hub, which would stand still meanwhile; before patching."""
    green = importlib.import_module("eventlet.green.socket")
    for name in RESOLVING:
        setattr(green, name, _beside(getattr(_socket, name)))


def _beside(look_up: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(look_up)
    def look_up_beside(*args: object, **options: object) -> T:
        return OFFLOAD.call(functools.partial(look_up, *args, **options))

    return look_up_beside


def _nothing(*args: object) -> None:
    """What eventlet throws into who waits for a descriptor: nobody does here."""
