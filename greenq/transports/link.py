"""What the pushing transports have in common: a link to the broker, read by one fiber and written by any."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from greenq.exceptions import BrokerUnreachable, ConfigError
from greenq.model import TaskMessage


class QueueMismatch(ConfigError):
    """A queue, or its exchange, exists with other arguments than the ones asked for.

    `entity` is "queue 'name'" or "exchange 'name'", `argument` the first that differs, `current` the
    broker's value of it ("" where it has none).
    """

    def __init__(self, entity: str, argument: str, current: str, detail: str) -> None:
        shown = current or ("classic" if argument == "x-queue-type" else "none")
        super().__init__(
            f"{entity} exists with {argument} = {shown}: change the setting or delete it in the broker ({detail})"
        )
        self.entity = entity
        self.argument = argument
        self.current = current


class LinkRefused(BrokerUnreachable):
    """The broker ended the connection because of what it was asked; the message says what that was."""


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
    thread. All raise BrokerUnreachable when the connection is gone.
    """

    @property
    def shared_prefetch(self) -> bool:
        """Whether one count holds for all consumers together, so that it can change without cost."""

    def declare(self, queue: Any) -> None:
        """Declare a kombu.Queue with its exchange and binding.

        Raises:
            QueueMismatch: it exists with other arguments; what is consumed already is not disturbed.
        """

    def unshare_prefetch(self) -> None:
        """Give every consumer a count of its own, as quorum queues require; before they are consumed."""

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

    def withdrawn(self) -> list[str]:
        """Queues the broker has taken from us (deleted, most likely) since the last call."""

    def beat(self) -> None:
        """Show the broker a sign of life where one is due; from any native thread, about once a second."""

    def close(self) -> None:
        """Let go: what is unsettled goes back to the broker. Closing twice is legal."""


class Receipt(NamedTuple):
    """What became of the messages that are not confirmed; empty when all are in the broker."""

    unroutable: list[TaskMessage]  # no queue is bound where they were sent; they are nowhere
    refused: list[TaskMessage]  # the broker said no (full, or failing inside); they are nowhere
    unknown: list[TaskMessage]  # the connection broke or fell silent; in order
    cause: Exception | None = None  # of `unknown`


class Sender(Protocol):
    """One connection for publishing; one owner at a time. Once it raises it is closed and replaced."""

    @property
    def blocked(self) -> bool:
        """Whether the broker has said that it reads nothing more for now."""

    def ready(self, timeout: float) -> None:
        """Look at the connection before anything is written to it.

        Raises:
            BrokerUnreachable: it is gone.
            BrokerPaused: the broker takes nothing, and did not begin to within `timeout` seconds.
        """

    def declare(self, queue: Any) -> None:
        """As `Link.declare`."""

    def require(self, exchange: str) -> None:
        """Raise ConfigError if no exchange has that name, where the transport can tell."""

    def prepare(self, message: TaskMessage, *, mandatory: bool) -> Any:
        """Encode it for `send`. With `mandatory`, it is reported when no queue takes it.

        Raises:
            MalformedMessage: a header or property that the transport cannot carry.
        """

    def send(self, messages: Sequence[tuple[TaskMessage, Any]], timeout: float) -> Receipt:
        """Put prepared messages into the broker, in order; wait for the fate of each, or until time is up."""

    def purge(self, queue: str) -> int:
        """Delete what is ready in the queue; how many."""

    def length(self, queue: str) -> int:
        """How many are ready in the queue; 0 for one that does not exist."""

    def close(self) -> None:
        """Let go of the connection. Closing twice is legal."""


class Doorbell:
    """Ends a wait for a socket, from any thread; remembered if nobody waits.

    Sockets, not a pipe: to ring after `close` is then an error of this object, not a byte in somebody's file.
    """

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.settimeout(0.0)
        self._outside.settimeout(0.0)

    def ring(self) -> None:
        """Wake the waiter. Without effect after `close`, or while an earlier ring is not heard yet."""
        try:
            self._outside.send(b"!")
        except OSError:
            return

    def wait(self, timeout: float, sock: int | None = None, *, writing: bool = False) -> bool:
        """Wait for the bell, for bytes on `sock`, or with `writing` for room on it; True if the bell rang."""
        bell = self._inside.fileno()
        if bell < 0 or sock == -1:
            raise OSError(errno.EBADF, "waiting on what is closed")
        wait_for_io(bell, sock, max(0.0, timeout), writing=writing)
        try:
            return bool(self._inside.recv(4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Give the descriptors back."""
        self._inside.close()
        self._outside.close()


def wait_for_io(first: int, second: int | None, timeout: float, *, writing: bool) -> None:
    """Wait until one of two descriptors is readable, with `writing` also until the second is writable."""
    # gevent makes select.poll cooperative; eventlet takes it away and leaves select.select.
    poll = getattr(select, "poll", None)
    if poll is None:
        reads = [first] if second is None else [first, second]
        select.select(reads, [second] if writing and second is not None else [], [], timeout)
        return
    poller = poll()
    poller.register(first, select.POLLIN)
    if second is not None:
        poller.register(second, select.POLLIN | select.POLLOUT if writing else select.POLLIN)
    poller.poll(timeout * 1000)
