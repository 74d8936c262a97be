"""The interfaces of consuming and publishing, whatever the broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from greenq.model import Rejected, Request, Settlement, TaskMessage


class Consumer(Protocol):
    """Where requests come from and where their settlements go.

    `fetch` has one owner fiber and `settle` one other; the rest may be called from any thread.
    Every method raises `BrokerUnreachable` or `BrokerPaused` and nothing of a client library.
    """

    lease: float  # seconds this worker may be silent before others take what it holds
    epoch: int  # counts connections: a delivery of an earlier one has gone back to the broker
    prefetch: int  # how many deliveries may be unsettled here
    delays: bool  # True where Settle.DELAY works; else a held request stays here, unsettled
    by_number: bool  # takes what it asks for, so that what goes back is anybody's; else `prefetch` are pushed here

    def start(self) -> None:
        """Connect, declare, and be ready to fetch. Called again after a loss."""

    def fetch(self, limit: int, timeout: float) -> list[Request | Rejected]:
        """Up to `limit` new requests; waits up to `timeout` seconds for the first. [] on timeout or interrupt.

        With `limit` 0 nothing is taken: the call only waits, and serves the connection meanwhile.
        """

    def interrupt(self) -> None:
        """End a wait in `fetch`, from any thread."""

    def settle(
        self, acks: Sequence[Request], others: Sequence[tuple[Request | Rejected, Settlement]] = ()
    ) -> int:
        """End deliveries; returns for how many it had no effect any more, since the broker took them back."""

    def raise_prefetch(self, n: int = 1) -> None:
        """Make room for others while `n` more requests are held here; bounded."""

    def lower_prefetch(self, n: int = 1) -> None:
        """Take back what `raise_prefetch` gave."""

    def renew(self, held: Sequence[Request]) -> bool:
        """Say that this worker lives and holds these; False if the broker had given it up for dead."""

    def reclaim(self) -> int:
        """Give back what dead workers held; returns how many messages."""

    def release(self) -> None:
        """Let go of the connection that `renew` and `reclaim` use; called in the thread that used it."""

    def beat(self) -> None:
        """Keep the connection alive; called every second from a native thread, also while the hub computes."""

    def queues(self) -> list[dict[str, Any]]:
        """What is consumed, as QUEUE_INFO objects (wire.md 3.4)."""

    def add_queue(self, name: str, **options: Any) -> None:
        """Consume from one more queue, soon; without effect on one that is consumed already.

        Blocks while the queue is declared, on a connection of its own. Options are the keywords of kombu's
        Queue.from_dict (`broker.queue_requests.OPTIONS`); one that is None counts as not given.

        Raises:
            ConfigError: there can be no such queue here, it exists with other arguments, or is described
                otherwise by the settings; nothing has changed then.
        """

    def cancel_queue(self, name: str) -> None:
        """Stop consuming from a queue, soon; what was fetched from it stays, and runs. An unknown one is no error."""

    def close(self) -> None:
        """Let go; what is unsettled goes back to the broker."""


class Publisher(Protocol):
    """Sends task messages. Safe to call from several greenlets and threads of one process."""

    def publish(self, messages: Sequence[TaskMessage]) -> None:
        """Send all, in order; returns when the broker has them.

        Raises:
            BrokerUnreachable: nothing was sent, after the retries the settings allow.
            PublishUncertain: the connection broke while the broker's answer was awaited.
        """

    def length(self, queue: str) -> int:
        """Messages ready in the queue."""

    def purge(self, queue: str) -> int:
        """Delete what is ready in the queue; returns how many."""

    def close(self) -> None:
        """Let go of connections. Closing twice is legal."""
