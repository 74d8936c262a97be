"""A kombu transport over the embedded broker, so that stock kombu and Celery programs can use it."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import time
from collections.abc import Sequence
from itertools import count
from typing import Any
from uuid import uuid4

from kombu.transport import virtual

from greenq.exceptions import BrokerError
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery
from greenq.transports.sqlite.channel import BATCH, Channel
from greenq.transports.sqlite.location import parse_url
from greenq.transports.sqlite.mutex import NativeMutex
from greenq.transports.sqlite.store import SqliteStore

logger = logging.getLogger(__name__)

_OPTIONS = ("durability", "busy_timeout")
_ACK_AGE = 0.005  # seconds between two transactions for acks alone
_UPKEEP = 1.0  # seconds between looks for dead owners
_FULL = 0.02  # seconds between looks whether a consumer at its prefetch limit may take more


class _Exclusive:
    """The store, for one thread at a time: some programs acknowledge from other threads."""

    __slots__ = ("_mutex", "_store")

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._mutex = NativeMutex()

    def __enter__(self) -> SqliteStore:
        self._mutex.__enter__()
        return self._store

    def __exit__(self, *exc_info: object) -> None:
        self._mutex.__exit__()


class Transport(virtual.Transport):
    """A kombu connection to the embedded broker: one store, one owner, any number of channels.

    Acknowledgements are collected for at most 5 ms of a busy stretch and written with the next claim; one that
    comes after a quiet while is written at once, and none waits while this connection waits for messages.
    """

    Channel = Channel
    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "sqlite3"
    connection_errors: Any = (*virtual.Transport.connection_errors, BrokerError)
    implements = virtual.Transport.implements.extend(
        asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # Other keys of kombu's transport options are its own (retry policies, polling).
        options = {key: client.transport_options[key] for key in _OPTIONS if key in client.transport_options}
        self._name = uuid4().hex
        self.store = SqliteStore(parse_url(client.hostname, options), f"kombu-{os.getpid()}-{self._name[:12]}")
        self.exclusive = _Exclusive(self.store)
        self.kinds: dict[str, str] = {}  # exchange: type
        self._acks: list[str] = []
        self._flushed = 0.0
        self._upkeep = 0.0
        self._queues: tuple[str, ...] = ()
        self._tags = count()

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: FBT001, FBT002
        return uri

    def next_tag(self) -> str:
        """A delivery tag no other message has: a uuid4 for each, as kombu makes, costs more than this."""
        return f"{self._name}-{os.getpid()}-{next(self._tags)}"

    def establish_connection(self) -> Transport:
        with self.exclusive as store:
            store.database.connect()
        super().establish_connection()
        return self

    def close_connection(self, connection: Any) -> None:
        try:
            super().close_connection(connection)
            with self.exclusive as store:
                store.topology.delete_owned(store.owner)
        finally:
            with self.exclusive as store:
                store.close()

    # -- settling -----------------------------------------------------------------------------------------

    def acknowledge(self, tag: str) -> None:
        self._acks.append(tag)
        if len(self._acks) >= BATCH or time.monotonic() - self._flushed >= _ACK_AGE:
            self.flush()

    def flush(self) -> None:
        """Write the acknowledgements collected so far; what fails is kept for the next time."""
        if self._acks:
            with self.exclusive as store:
                number = len(self._acks)
                store.settle(self._acks[:number])
                del self._acks[:number]
            self._flushed = time.monotonic()

    def give_back(self, tags: Sequence[str]) -> None:
        with self.exclusive as store:
            store.settle((), [Settlement(tag, "", Settle.REQUEUE) for tag in tags])

    def bury(self, delivery: Delivery, reason: str) -> None:
        with self.exclusive as store:
            store.settle((), [Settlement(delivery.tag, delivery.queue, Settle.DEAD, reason=reason)])

    # -- fetching -----------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Be woken for the queues that have consumers."""
        self._queues = tuple(dict.fromkeys(queue for channel in self.channels for queue in channel.queues))
        with self.exclusive as store:
            store.listen(self._queues)

    def fetch(self, queue: str) -> list[Delivery]:
        """Claim one message without becoming a listener."""
        with self.exclusive as store:
            store.own()
            return store.turn((), (queue,), 1)

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message; wait for one up to `timeout` seconds, or without end.

        Raises:
            socket.timeout: none came.
        """
        if self._deliver_one():
            return
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._look_after()
            if self._claim() and self._deliver_one():
                return
            left = 1.0 if end is None else end - time.monotonic()
            if left <= 0:
                self.flush()
                raise socket.timeout  # noqa: UP041  (the name kombu's callers catch)
            self._wait(left)

    def _deliver_one(self) -> bool:
        channels = self.channels
        for channel in channels:
            if channel.inbox:
                if len(channels) > 1:  # each channel in its turn, so that control is heard under load
                    channels.remove(channel)
                    channels.append(channel)
                if channel.deliver():
                    return True
        return False

    def _claim(self) -> bool:
        claimed = False
        for channel in self.channels:
            room = channel.room()
            if room <= 0:
                continue
            with self.exclusive as store:
                number = len(self._acks)
                channel.inbox.extend(store.turn(self._acks[:number], channel.queues, room))
                del self._acks[:number]
            if number:
                self._flushed = time.monotonic()
            claimed = claimed or bool(channel.inbox)
        return claimed

    def _wait(self, left: float) -> None:
        # Acknowledgements of a busy stretch go with the next claim, if that comes before they are old.
        if self._acks and self._queues and self.store.wait(self._queues, min(left, _ACK_AGE)):
            return
        self.flush()
        if any(channel.room() > 0 for channel in self.channels):
            self.store.wait(self._queues, min(left, _UPKEEP))
        else:  # all at their prefetch limit, or no consumer: another fiber's acknowledgement must end it
            time.sleep(min(left, _FULL))

    def _look_after(self) -> None:
        """Once a second, as a consumer: give back what dead consumers held."""
        now = time.monotonic()
        if not self._queues or now < self._upkeep:
            return
        self._upkeep = now + _UPKEEP
        with self.exclusive as store:
            if not store.renew(()):
                logger.warning("%s was taken for dead and has lost what it held", store.owner)
            number = store.reclaim()
        if number:
            logger.info("orphans_reclaimed n=%d", number)
