"""What the batched transports have in common: the store, a broker reached in batches of raw envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from greenq.model import Settlement


class Delivery(NamedTuple):
    """One claimed message, still in its broker under `tag` until it is settled."""

    tag: str
    raw: bytes  # kombu's envelope, JSON (wire.md 5.9)
    queue: str


class Post(NamedTuple):
    """One envelope to be put at the tail of a queue."""

    queue: str
    raw: bytes
    priority: int = 0  # 0..9, kombu's Redis meaning: 0 is served first


class KeptEntry(NamedTuple):
    """One entry of the log of revokes, as it stands there, and the seconds since it was written last."""

    raw: bytes
    age: float


class RevokedLog(Protocol):
    """What was revoked lately, where every worker may read it and none takes it away (wire.revoked).

    One connection and one owner at a time; blocks for its own I/O, and raises as `Store` does. A broker that
    refuses (rights, a key of another type) is a plain `BrokerError`.
    """

    def append(self, kind: str, entries: Sequence[str], most: int, ttl: float) -> None:
        """Add the entries, the newest last; one that is there already becomes the newest.

        What is older than `ttl` seconds leaves the log, and beyond `most` the oldest, at once or within 1,000 more.
        """

    def read(self, kind: str, most: int, ttl: float, longest: int) -> tuple[list[KeptEntry], int]:
        """The newest entries of the last `ttl` seconds, at most `most`, oldest first, perhaps one of them twice.

        One of more than `longest` bytes is left where it is; returned besides is how many such were seen.
        """

    def close(self) -> None:
        """Let go of the connection. Closing twice is legal."""


class Store(Protocol):
    """A broker reached in batches of raw envelopes.

    An instance owns one connection and has one owner at a time (a greenlet or a thread): nothing in it is
    locked. Several instances of one process share `owner`, the identity under which messages are claimed,
    so that one may claim, another settle and a third renew.

    Every method blocks for its own I/O only and raises `BrokerUnreachable` when the connection is gone (the
    next call connects again) or `BrokerPaused` when the broker answers that it cannot serve now.
    """

    owner: str

    def claim(self, queues: Sequence[str], limit: int) -> list[Delivery]:
        """Take up to `limit` messages from the queues in one atomic step; never waits for more.

        A claim whose reply was lost on the wire is returned by a later call: nothing is stranded.
        Several queues are served fairly, higher priorities first. What was delayed and is due is served too.
        """

    def wait(self, queues: Sequence[str], timeout: float) -> bool:
        """Block until a queue may have something, or `timeout` seconds passed. Takes nothing.

        Call it only after an empty claim. Returns False on timeout. `interrupt()` ends it early.
        """

    def interrupt(self) -> None:
        """End a `wait` in progress in the owner, from any thread or greenlet; returns at once."""

    def settle(self, acks: Sequence[str], others: Sequence[Settlement] = ()) -> int:
        """End deliveries, all in one round trip or transaction.

        Returns how many of them were no longer ours (another owner had reclaimed them): for those nothing
        was done.
        """

    def post(self, messages: Sequence[Post]) -> None:
        """Put the envelopes into their queues, all or (on an error) possibly some; in order.

        Raises:
            PublishUncertain: the connection broke after they were sent and before the answer.
        """

    def renew(self, tags: Sequence[str]) -> bool:
        """Say that this owner lives and still holds `tags`. False if the owner had been given up for dead."""

    def reclaim(self) -> int:
        """Give back what dead owners held; returns how many messages."""

    def recover(self) -> list[str]:
        """Tags this owner holds in the broker, as the broker sees it (for tests and shutdown checks)."""

    def length(self, queue: str) -> int:
        """Messages ready in the queue, all priorities; neither claimed nor delayed ones."""

    def purge(self, queue: str) -> int:
        """Delete what is ready in the queue; returns how many."""

    def close(self) -> None:
        """Let go of the connection; what is claimed stays claimed. Closing twice is legal."""
