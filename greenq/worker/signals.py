"""Signals of the operating system: a flag and a byte, read by a fiber that may wait."""

from __future__ import annotations

import os
import posix
import signal
from collections.abc import Callable

from greenq.transports.link import wait_for_io

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
LOOK_EVERY = 0.2  # seconds, for the end of the service thread


class Signals:
    """The interpreter writes each signal's number into a pipe; the service thread reads it.

    No work is done in a handler, where waiting is forbidden, and a hub that computes delays nothing.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before: list[tuple[signal.Signals, object]] = []

    def install(self) -> None:
        """Take over the signals; main thread only."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in STOPPING:
            self._before.append((number, signal.signal(number, _noted)))

    def serve(self, handle: Callable[[signal.Signals], None], stopped: Callable[[], bool]) -> None:
        """Service thread: call `handle` for each signal, until `stopped`."""
        while not stopped():
            wait_for_io(self._read, None, LOOK_EVERY, writing=False)
            try:
                numbers = posix.read(self._read, 256)  # eventlet's os.read would wait
            except BlockingIOError:
                continue
            for number in numbers:
                if number in STOPPING:
                    handle(signal.Signals(number))

    def close(self) -> None:
        """Give the signals back; main thread only."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # typeshed names no type for it
        os.close(self._read)
        os.close(self._write)


def _noted(number: int, frame: object) -> None:
    """The interpreter has written the byte already; a Python handler must exist for it to do so."""
