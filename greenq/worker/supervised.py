"""What a supervisor that follows sd_notify(3) is told: ready, alive, stopping. systemd, and whoever does likewise."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_STATUS_EVERY = 1.0  # seconds
_BEATS = 3  # in the time after which the supervisor takes a silent worker for dead


class Supervised:
    """Tells the supervisor of this process; without one, nobody. Told in the service thread; `ready` and the end by
    the main hub, before and after it.

    It is alive as long as its hub turns: a worker whose tasks let nothing else run for longer than the
    supervisor's patience (WatchdogSec=) is ended by it, as a hanging one is.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._patience = _patience(environ)
        self._beaten = self._shown = 0.0
        self._status = ""
        self._stopping = self._failed = False

    def ready(self) -> None:
        """Consuming, and listening to commands."""
        self._send(f"READY=1\nMAINPID={os.getpid()}")

    def tell(self, *, stopping: bool, running: int, stalled_for: float) -> None:
        """Several times a second; `stalled_for` is how long (seconds) the main hub has not turned."""
        if not self._address:
            return
        words = []
        now = time.monotonic()
        if stopping and not self._stopping:
            self._stopping = True
            words.append("STOPPING=1")
        if self._patience and now - self._beaten >= self._patience / _BEATS and stalled_for < self._patience / _BEATS:
            self._beaten = now
            words.append("WATCHDOG=1")
        status = f"STATUS={'stopping, ' if stopping else ''}{running} task{'' if running == 1 else 's'} running"
        if status != self._status and (words or now - self._shown >= _STATUS_EVERY):
            self._status, self._shown = status, now
            words.append(status)
        if words:
            self._send("\n".join(words))

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(0)
                sending.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:  # it would fail again several times a second
                logger.warning("The supervisor behind NOTIFY_SOCKET=%s cannot be told: %s", self._address, error)
            self._failed = True


def _patience(environ: Mapping[str, str]) -> float:
    """Seconds after which a silent process is taken for dead; 0.0 if nobody watches this one."""
    meant = environ.get("WATCHDOG_PID", "")
    if meant and meant != str(os.getpid()):
        return 0.0
    micros = environ.get("WATCHDOG_USEC", "")
    return int(micros) / 1e6 if micros.isdigit() else 0.0
