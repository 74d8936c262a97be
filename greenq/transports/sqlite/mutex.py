"""A mutex between native threads that stays one after the standard library has been patched."""

from __future__ import annotations

import signal
import time
from _queue import Empty, SimpleQueue
from threading import get_native_id


class NativeMutex:
    """Exclude other native threads, and other fibers of this one.

    gevent and eventlet replace `threading.Lock` by locks between fibers of one hub, which lose wake-ups
    between hubs of different threads. The C queue under `queue.SimpleQueue` is left alone by both. Blocking
    in it would stop the hub, so that is done only while another native thread has the mutex; should a fiber
    of this thread have it (it yielded, say to write a log line to a socket), this one lets it run.
    """

    __slots__ = ("_holder", "_token")

    def __init__(self) -> None:
        self._token: SimpleQueue[None] = SimpleQueue()
        self._token.put(None)
        self._holder = 0

    def __enter__(self) -> None:
        me = get_native_id()
        while True:
            try:
                self._token.get(block=False)
                break
            except Empty:
                if self._holder != me:
                    self._token.get()
                    break
            time.sleep(0.001)
        self._holder = me

    def __exit__(self, *exc_info: object) -> None:
        self._holder = 0
        self._token.put(None)


def native_pause(seconds: float) -> None:
    """Block this native thread, whatever `time.sleep` has been patched to be. Signal handlers run meanwhile."""
    signal.sigtimedwait((), seconds)
