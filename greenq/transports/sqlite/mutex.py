"""A mutex between native threads that stays one after the standard library has been patched."""

from __future__ import annotations

import signal
from _queue import SimpleQueue


class NativeMutex:
    """Exclude other native threads for a stretch of code in which no fiber switches.

    gevent and eventlet replace `threading.Lock` by locks between fibers of one hub, which lose wake-ups
    between hubs of different threads. The C queue under `queue.SimpleQueue` is left alone by both. Whoever
    holds the mutex may block in C (SQL, files), but must not yield to its hub: a second fiber of the same
    hub would then wait for the first one for ever.
    """

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: SimpleQueue[None] = SimpleQueue()
        self._token.put(None)

    def __enter__(self) -> None:
        self._token.get()

    def __exit__(self, *exc_info: object) -> None:
        self._token.put(None)


def native_pause(seconds: float) -> None:
    """Block this native thread, whatever `time.sleep` has been patched to be. Signal handlers run meanwhile."""
    signal.sigtimedwait((), seconds)
