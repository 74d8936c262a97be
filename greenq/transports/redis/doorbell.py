"""Waiting for work without taking it: Redis tells this connection when one of the lists changes."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Any

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable
from greenq.transports.redis.connection import Wire
from greenq.transports.redis.scripts import LOOK

logger = logging.getLogger(__name__)

FIRST_POLL, LAST_POLL = 0.002, 0.05  # seconds between looks where Redis does not ring


class Waker:
    """Ends a wait from any thread or greenlet: a socket pair polled beside the connection's socket.

    A wake-up with nobody waiting is kept for the next wait, so that none falls between a look and a wait.
    """

    def __init__(self) -> None:
        self.ear, self._mouth = socket.socketpair()
        self.ear.settimeout(0)
        self._mouth.settimeout(0)

    def wake(self) -> None:
        """Return at once; from any thread, also after `close`."""
        # Full: a wake-up is on its way already. Closed: nobody waits any more.
        with suppress(BlockingIOError, OSError):
            self._mouth.send(b"!")

    def clear(self) -> bool:
        """Forget the wake-ups so far; True if there were any."""
        try:
            return bool(self.ear.recv(4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.ear.close()
        self._mouth.close()

    def __del__(self) -> None:
        # kombu drops a broken connection's transport without closing it, maybe after the hub it waited on is gone.
        with suppress(ValueError, OSError):
            self.close()


class Doorbell:
    """Server-assisted waiting (`CLIENT TRACKING`, opt-in) on the connection that also claims.

    `arm` looks at the lists and has Redis remember the look; the first change to any of them comes as a
    push on the same socket, so waiting costs no command, takes nothing and needs no second connection.
    Where a server, a proxy or the user's rights refuse tracking, it looks again and again.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tracked = 0  # the connection for which tracking was switched on
        self._rung = False
        self.refused = False  # no pushes here: poll

    def arm(self, keys: Sequence[str]) -> tuple[bool, float]:
        """Look once: is something there, and in how many seconds is a delayed message due."""
        self._switch_on()
        self._rung = False
        before = () if self.refused else ("CLIENT", "CACHING", "YES")
        there, left = self._wire.run(LOOK, keys, (), before)
        return bool(there), float(left) if left else inf

    def rung(self, *, readable: bool = False) -> bool:
        """Whether Redis said since `arm` that a list has changed.

        `readable`: the socket was polled and has something; without it only what was read already counts,
        and it never waits.
        """
        wire = self._wire
        connection = wire.connection()
        if wire.connections != self._tracked and not self.refused:
            return True  # another connection: nobody would ring, look again
        with wire.translated("the doorbell"):
            while not self._rung and (readable or wire.buffered()):
                readable = False
                connection.read_response(**({} if self.refused else {"push_request": True}))
                if self.refused:
                    raise BrokerUnreachable(f"{wire.endpoint} sent what nobody asked for")
        return self._rung

    def wait(self, keys: Sequence[str], timeout: float, waker: Waker) -> bool:
        """As `Store.wait`."""
        deadline = time.monotonic() + timeout
        pause = FIRST_POLL
        while True:
            there, left = self.arm(keys)
            if there or self.rung():
                return True
            now = time.monotonic()
            due = now + left
            until = min(deadline, due)
            if self.refused:
                until = min(until, now + pause)
                pause = min(pause * 2, LAST_POLL)
            ended = self._sleep(until, waker)
            if ended is not None:
                return ended
            if time.monotonic() >= deadline:
                return due <= deadline

    def _sleep(self, until: float, waker: Waker) -> bool | None:
        """True: rung. False: woken by `waker`. None: the time is up."""
        # Made for each wait: gevent's selector belongs to the hub it was made on, and an owner may move.
        with selectors.DefaultSelector() as selector:
            selector.register(waker.ear, selectors.EVENT_READ)
            selector.register(self._wire.socket(), selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                ready = [key.fileobj for key, _ in selector.select(left)]
                if waker.ear in ready and waker.clear():
                    return False
                if ready and self.rung(readable=waker.ear not in ready or len(ready) > 1):
                    return True
        return None

    def _switch_on(self) -> None:
        wire = self._wire
        wire.connection()
        if self.refused or wire.connections == self._tracked:
            return
        if wire.protocol != 3 or not _reads_pushes(wire.connection()):
            self._refuse("no RESP3, or a redis-py or hiredis that cannot read pushes")
            return
        try:
            # NOLOOP: what this connection itself takes or gives back must not ring.
            wire.call("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
        except (BrokerPaused, BrokerUnreachable):
            raise
        except BrokerError as exc:
            self._refuse(str(exc))
            return
        # Reached through the parser: redis-py hands it pushes also while it looks for another reply.
        parser: Any = wire.connection()._parser  # noqa: SLF001
        parser.set_invalidation_push_handler(self._ring)
        self._tracked = wire.connections

    def _refuse(self, why: str) -> None:
        self.refused = True
        extra = {"event": "broker.polling"}
        logger.info("looking for work up to %.0f times a second: %s", 1 / LAST_POLL, why, extra=extra)

    def _ring(self, push: object) -> object:
        self._rung = True
        return push


def _reads_pushes(connection: Any) -> bool:
    """Whether the parser can tell a push from a reply; hiredis can since 3.2."""
    parser = connection._parser  # noqa: SLF001
    return getattr(parser, "_hiredis_PushNotificationType", True) is not None and hasattr(
        parser, "set_invalidation_push_handler"
    )
