"""The kombu transport: kombu's own Redis transport, with messages taken in batches instead of one by one."""

from __future__ import annotations

import logging
import selectors
import time
from functools import partial
from math import inf
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as stock
from kombu.utils.url import maybe_sanitize_url

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable
from greenq.transports.redis.channel import Channel
from greenq.transports.redis.doorbell import LAST_POLL, Waker

logger = logging.getLogger(__name__)

_KombuTransport: Any = stock.Transport  # typed in name only, as in channel.py

CHORES = 1.0  # seconds after which a wait is broken off for what has to be done now and then


class Transport(_KombuTransport):  # type: ignore[misc]  # see above
    """`kombu.Connection(url, transport="greenq.transports.redis:Transport")`.

    Fan-out (control, events) and publishing are kombu's. Queues are read by `Channel.reserve_raw`, without
    BRPOP: a message is never outside Redis without standing in `unacked`. Messages delivered by it are held
    by the visibility timeout, as kombu's are; only `RedisStore` has leases. No event-loop mode.
    """

    Channel = Channel
    driver_name = "greenq-redis"
    can_parse_url = True  # kombu would lose the s of rediss://, and the whole of what follows greenq+
    implements = stock.Transport.implements.extend(asynchronous=False)
    connection_errors = (*stock.Transport.connection_errors, BrokerUnreachable, BrokerPaused)
    channel_errors = (*stock.Transport.channel_errors, BrokerError)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.waker = Waker()
        self.waiting = False  # an ack that comes while this is set has to end the wait
        self.dropped = 0  # control and event frames that were no messages
        self._next_reclaim = time.monotonic() + _reclaim_interval(client)

    def as_uri(self, uri: str, include_password: Any = False, mask: str = "**") -> str:  # noqa: FBT002  kombu's
        """Show the URL, without its password unless asked for."""
        prefix = f"{self.client.uri_prefix}+" if self.client.uri_prefix else ""
        return prefix + (uri if include_password else maybe_sanitize_url(uri, mask))

    def drop(self, queue: str, why: object) -> None:
        """Count a fan-out frame that is no message, and say so the first time."""
        self.dropped += 1
        level = logging.WARNING if self.dropped == 1 else logging.DEBUG
        extra = {"event": "control.frame_dropped"}
        logger.log(level, "dropped a frame on %s that is not a message: %s", queue, why, extra=extra)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        raise NotImplementedError("greenq's Redis transport has no event-loop mode: call drain_events()")

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver what is there, all of one batch, or wait for it.

        Raises:
            TimeoutError: after `timeout` seconds without a message.
        """
        deadline = inf if timeout is None else time.monotonic() + timeout
        pause = LAST_POLL
        while not self._deliver_ready():
            for channel in list(self.channels):
                channel.chores()
            self._reclaim()
            if self._listen(min(deadline, time.monotonic() + CHORES), pause):
                return
            if time.monotonic() >= deadline:
                raise TimeoutError

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        self.waker.close()

    def _deliver_ready(self) -> bool:
        delivered = False
        for channel in list(self.channels):
            # Every channel gets its turn, also when an earlier one had something.
            delivered = channel.deliver_ready() or delivered
        return delivered

    def _listen(self, until: float, pause: float) -> bool:
        """Wait for lists to change and for fan-out messages; True if a fan-out message was delivered."""
        news: list[Any] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self.waker.ear, selectors.EVENT_READ, self.waker.clear)
            for channel in list(self.channels):
                if channel.has_credit():
                    there, left = channel.store.arm(channel.active_queues)
                    if there or channel.store.rung():
                        return False
                    until = min(until, time.monotonic() + min(left, inf if channel.store.rings else pause))
                    heard = partial(channel.store.rung, readable=True)
                    selector.register(channel.store.socket(), selectors.EVENT_READ, heard)
                if channel.active_fanout_queues:
                    connection = channel.listen()
                    if connection.can_read(timeout=0):
                        return bool(channel.receive_fanout())
                    sock = connection._sock  # noqa: SLF001
                    selector.register(sock, selectors.EVENT_READ, channel.receive_fanout)
                    news.append(sock)
            self.waiting = True
            try:
                events = selector.select(max(0.0, until - time.monotonic()))
            finally:
                self.waiting = False
            delivered = False
            for key, _ in events:
                delivered = (key.data() and key.fileobj in news) or delivered
            return bool(delivered)

    def _reclaim(self) -> None:
        if time.monotonic() < self._next_reclaim:
            return
        for channel in list(self.channels):
            if channel.active_queues:
                self._next_reclaim = time.monotonic() + _reclaim_interval(self.client)
                channel.store.reclaim()
                return


def _reclaim_interval(client: Any) -> float:
    options = client.transport_options or {}
    return min(float(options.get("visibility_timeout") or 3600.0) / 4, 5.0)


def register() -> None:
    """Make kombu understand a Redis URL with `greenq+` in front: redis, rediss, redis+socket, socket.

    With `transport=` given, kombu takes `redis+socket://` for its own transport all the same; use the prefix.
    """
    for alias in ("greenq", "greenq+redis", "greenq+rediss"):
        TRANSPORT_ALIASES[alias] = "greenq.transports.redis:Transport"
