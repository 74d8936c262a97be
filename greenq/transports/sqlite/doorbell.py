"""Waking who waits in another process: a unix datagram socket for each listener, rung after a commit.

The doorbell takes a wake-up from the next poll to about half a millisecond (spike.md 9). It carries no news:
who is woken looks into the database, and looks there now and then even if no bell rings.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from _socket import socket as RawSocket  # noqa: N812  (never patched: sends, which do not wait, from any thread)
from collections.abc import Iterable
from pathlib import Path
from threading import get_native_id

from greenq.exceptions import BrokerError, BrokerUnreachable
from greenq.transports.sqlite.database import Database

logger = logging.getLogger(__name__)

_PATH_LIMIT = 100  # sun_path has 108 bytes
RESULTS = ""  # what listeners for stored results listen to; no queue has this name


class Addresses:
    """Socket addresses in a directory, of any length of path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefix = str(directory)
        self._descriptor = -1
        if len(os.fsencode(directory)) > _PATH_LIMIT - 48:
            # The kernel follows this link to the directory itself, so its path may be as long as it likes.
            try:
                self._descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as exc:
                raise BrokerUnreachable(f"cannot open the doorbells' directory {directory}: {exc.strerror}") from exc
            self._prefix = f"/proc/self/fd/{self._descriptor}"

    def of(self, bell: str) -> str:
        return f"{self._prefix}/{bell}"

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Bell:
    """A bound socket that others ring. `ring` from any thread, `wait` from one fiber at a time."""

    def __init__(self, addresses: Addresses, name: str) -> None:
        self.name = name
        self._address = addresses.of(name)
        self._file = addresses.directory / name
        try:
            self._raw = _raw_socket()
            self._raw.bind(self._address)
        except OSError as exc:
            raise BrokerUnreachable(f"cannot make the doorbell {self._file}: {exc.strerror}") from exc
        self._waiter: socket.socket | None = None
        self._waiter_thread = 0

    def ring(self) -> None:
        send(self._raw, self._address)

    def wait(self, timeout: float) -> bool:
        """Block this fiber until the bell was rung, at most `timeout` seconds; False on timeout."""
        # The (perhaps patched) socket belongs to the hub of the thread that made it; the raw one to nobody.
        if self._waiter is None or self._waiter_thread != get_native_id():
            self._let_waiter_go()
            self._waiter = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, fileno=os.dup(self._raw.fileno()))
            self._waiter_thread = get_native_id()
        self._waiter.settimeout(max(timeout, 0.0))
        try:
            self._waiter.recv(1)
        except (TimeoutError, BlockingIOError):
            return False
        self._empty()
        return True

    def _empty(self) -> None:
        while True:
            try:
                self._raw.recv(1)
            except BlockingIOError:
                return

    def _let_waiter_go(self) -> None:
        if self._waiter is not None:
            self._waiter.close()
            self._waiter = None

    def close(self, *, remove: bool = True) -> None:
        """Close the socket and, unless it is a parent's (`remove` False), take its file away."""
        self._let_waiter_go()
        self._raw.close()
        if remove:
            self._file.unlink(missing_ok=True)


def _raw_socket() -> RawSocket:
    return RawSocket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def send(raw: RawSocket, address: str) -> bool:
    """Ring once; False if nobody is there any more."""
    try:
        raw.sendto(b"!", address)
    except BlockingIOError:  # its buffer is full of rings already
        return True
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


class Doorbell:
    """Rings the bells of who listens to a queue, as the `listener` table has them.

    The table is read again whenever the time stamp of the bells' directory has changed; whoever changes the
    table must call `changed` after the commit. The stamp is looked at after the publisher's own commit, and a
    listener commits and stamps before it looks for messages, so one of the two always sees the other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = str(database.directory)
        self._place = (0, 0)
        self._stamp = -1
        self._bells: dict[str, list[str]] = {}
        self._sender: RawSocket | None = None
        self._addresses: Addresses | None = None

    @property
    def addresses(self) -> Addresses:
        place = (os.getpid(), self._database.generation)  # a new file may have come with a new directory
        if self._addresses is None or self._place != place:
            if self._addresses is not None:
                self._addresses.close()
            self._addresses, self._place = Addresses(self._database.directory), place
        return self._addresses

    def changed(self) -> None:
        """Tell all publishers to read the listeners again."""
        now = time.time_ns()  # finer than the stamp the kernel gives on its own, which may not move for 4 ms
        try:
            os.utime(self._directory, ns=(now, now))
        except OSError as exc:
            raise BrokerUnreachable(
                f"cannot stamp the doorbells' directory {self._directory}: {exc.strerror}"
            ) from exc

    def ring(self, queues: Iterable[str], own: str = "") -> None:
        """Wake the listeners of the queues, except the bell `own`. Call it after the commit; never blocks.

        Never raises either: what was committed must not look as if it failed, and the listeners' own polls
        stand in for a bell that could not be rung.
        """
        try:
            stamp = os.stat(self._directory).st_mtime_ns
            if stamp != self._stamp:
                self._read_listeners(stamp)
            if self._bells:
                for queue in queues:
                    self._ring_one(queue, own)
        except (OSError, BrokerError) as exc:
            logger.warning("could not ring the bells of %s: %s", self._database.path, exc)

    def _ring_one(self, queue: str, own: str) -> None:
        for bell in list(self._bells.get(queue, ())):
            if bell == own:
                continue
            if self._sender is None:
                self._sender = _raw_socket()
            if not send(self._sender, self.addresses.of(bell)):
                self._bells[queue].remove(bell)  # its owner died; whoever reclaims it changes the table

    def _read_listeners(self, stamp: int) -> None:
        bells: dict[str, list[str]] = {}
        with self._database.reading as run:
            for queue, bell in run.execute("SELECT queue, bell FROM listener"):
                bells.setdefault(queue, []).append(bell)
        self._bells, self._stamp = bells, stamp

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._addresses is not None:
            self._addresses.close()
            self._addresses = None
        self._stamp = -1
