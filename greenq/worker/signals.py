"""Signals of the operating system: a flag and a byte, read by a fiber that may wait."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


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
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        while not stopped():
            if not poller.poll(200):
                continue
            for number in os.read(self._read, 256):
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
