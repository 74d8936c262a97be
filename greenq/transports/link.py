"""What the pushing transports have in common: a link to the broker, read by one fiber and written by any."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from greenq.exceptions import ConfigError


class QueueMismatch(ConfigError):
    """A queue exists with other arguments than the ones asked for.

    `argument` is the first that differs, `current` the value the broker has ("" where it has none).
    """

    def __init__(self, queue: str, argument: str, current: str, detail: str) -> None:
        super().__init__(
            f"queue {queue!r} exists with another {argument} ({current or 'none'}): "
            f"change the setting or delete the queue; the broker says: {detail}"
        )
        self.queue = queue
        self.argument = argument
        self.current = current


class LinkOptions(NamedTuple):
    """How to connect, apart from where."""

    heartbeat: int = 0  # seconds between two signs of life, as offered to the broker; 0 is none
    connect_timeout: float = 4.0
    ssl: Any = False  # kombu's: True or a dict
    login_method: str | None = None
    transport_options: Mapping[str, Any] = {}
    name: str = "greenq"  # what the broker's lists of connections show


class Arrival(NamedTuple):
    """One delivery, still encoded; `source` is for `Link.parts` only."""

    queue: str
    tag: str | int
    body: bytes | str
    source: Any


class Parts(NamedTuple):
    """A message taken apart: what `_speedups.decode_parts` wants."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    content_encoding: str | None


class Link(Protocol):
    """One connection with its consumers. A lost link is never mended: close it and open another.

    `wait`, `take`, `declare` and `close` belong to one owner fiber. The rest may be called from any fiber or
    thread, and waits for nobody but the socket. All raise BrokerUnreachable when the connection is gone.
    """

    shared_prefetch: bool  # one count for all consumers, to be changed at any time

    def declare(self, queue: Any) -> None:
        """Declare a kombu.Queue with its exchange and binding.

        Raises:
            QueueMismatch: it exists with other arguments; what is consumed already is not disturbed.
        """

    def consume(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """Begin to receive from a queue that exists."""

    def cancel(self, queue: str) -> None:
        """Receive no more from it; what was delivered stays to be settled."""

    def prefetch(self, count: int) -> None:
        """Let at most `count` deliveries be unsettled; 0 is no limit."""

    def wait(self, timeout: float) -> None:
        """Read what is there; if nothing is, wait for it, for `wake` or for the time to pass."""

    def wake(self) -> None:
        """End a wait in progress, or the next one."""

    def take(self, limit: int) -> list[Arrival]:
        """Hand out what has arrived; from now on it is to be settled."""

    def parts(self, arrival: Arrival) -> Parts:
        """Decode headers and properties. Raises ValueError for bytes that are none."""

    def ack(self, tags: Sequence[str | int]) -> int:
        """Acknowledge; returns how many of the tags were still to be settled."""

    def requeue(self, tag: str | int) -> bool:
        """Give one back; False if it was not to be settled any more."""

    def cancelled(self) -> list[str]:
        """Queues the broker has taken from us (deleted, most likely) since the last call."""

    def beat(self) -> None:
        """Show the broker a sign of life where one is due; from any native thread, about once a second."""

    def close(self) -> None:
        """Let go: what is unsettled goes back to the broker. Closing twice is legal."""


class Doorbell:
    """A pipe that ends a wait for sockets, from any thread, and is remembered if nobody waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def ring(self) -> None:
        """Wake the waiter."""
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            return  # full: it is ringing already

    def wait(self, timeout: float, sock: int | None = None, *, writing: bool = False) -> bool:
        """Wait for the bell, for bytes on `sock`, or with `writing` for room on it; True if the bell rang."""
        _wait(self._read, sock, timeout, writing)
        try:
            return bool(os.read(self._read, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Give the descriptors back; once."""
        os.close(self._read)
        os.close(self._write)


def _wait(bell: int, sock: int | None, timeout: float, writing: bool) -> None:  # noqa: FBT001  (internal)
    # gevent makes select.poll cooperative; eventlet takes it away and has select.select instead.
    poll = getattr(select, "poll", None)
    if poll is None:
        reads = [bell] if sock is None else [bell, sock]
        select.select(reads, [sock] if writing and sock is not None else [], [], max(0.0, timeout))
        return
    poller = poll()
    poller.register(bell, select.POLLIN)
    if sock is not None:
        poller.register(sock, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
    poller.poll(max(0.0, timeout) * 1000)
