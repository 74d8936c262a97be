"""Signals of the operating system: a flag and a byte, read by a fiber that may wait."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
LOOK_EVERY = 0.2  # seconds, for the end of the service thread
LOOK_EVERY = 0.2  # seconds, for the end of the service thread


class Signals:
    """The interpreter writes each signal's number into a socket; the service thread reads it from the other end.

    No work is done in a handler, where waiting is forbidden, and a hub that computes delays nothing.
    """

    def __init__(self) -> None:
        ear, mouth = socket.socketpair()
        # As numbers: a green socket belongs to the hub of the thread that made it, and the ear is the service thread's.
        self._ear, self._mouth = ear.detach(), mouth.detach()
        os.set_blocking(self._mouth, False)
        self._before: list[tuple[signal.Signals, object]] = []

    def install(self) -> None:
        """Take over the signals; main thread only."""
        signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        for number in STOPPING:
            self._before.append((number, signal.signal(number, _noted)))

    def serve(self, handle: Callable[[signal.Signals], None], stopped: Callable[[], bool]) -> None:
        """Service thread: call `handle` for each signal, until `stopped`."""
        with socket.socket(fileno=self._ear) as ear:
            ear.settimeout(LOOK_EVERY)
            while not stopped():
                try:
                    numbers = ear.recv(256)
                except TimeoutError:
                    continue
                for number in numbers:
                    if number in STOPPING:
                        handle(signal.Signals(number))

    def close(self) -> None:
        """Give the signals back; main thread only."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # typeshed names no type for it
        os.close(self._mouth)


def _noted(number: int, frame: object) -> None:
    """The interpreter has written the byte already; a Python handler must exist for it to do so."""
