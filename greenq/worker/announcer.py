"""Publishes what happens here to whoever watches: task events in batches, and the node's heartbeats."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from greenq import hostinfo
from greenq.broker.events import EventLink
from greenq.events.dispatcher import Dispatcher
from greenq.exceptions import BrokerError
from greenq.runtime.base import Event as BellEvent
from greenq.runtime.base import Runtime
from greenq.wire.control import LogicalClock
from greenq.wire.events import BATCH_KEY, Event, routing_key
from greenq.worker.trouble import Trouble

logger = logging.getLogger(__name__)

EVERY = 0.1  # seconds between two looks; events of that time go out together
BATCH = 100  # events a message


class Announcer:
    """A fiber of the service thread, with a connection of its own, so that a busy node still shows that it lives.

    `counts` gives (running, started so far).
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: LogicalClock,
        make_link: Callable[[], EventLink],
        counts: Callable[[], tuple[int, int]],
        runtime: Runtime,
        *,
        beat_every: float | None,
    ) -> None:
        """`beat_every` is in seconds; None sends no heartbeats."""
        self._dispatcher = dispatcher
        self._clock = clock
        self._make_link = make_link
        self._counts = counts
        self._runtime = runtime
        self._beat_every = beat_every
        self._link: EventLink | None = None
        self._trouble = Trouble(logger, "events")
        self._next_beat = 0.0
        self._bell: BellEvent | None = None  # made by the thread that waits for it

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Until `stopped`; then say what is left, and goodbye."""
        bell = self._bell = self._runtime.event()
        self._say("worker-online")
        quiet_until = 0.0
        while not stopped():
            now = time.monotonic()
            if now >= quiet_until:
                quiet_until = now + self._turn(now)
            bell.wait(EVERY)
            bell.clear()
        self._say("worker-offline")
        self._turn(time.monotonic())
        if self._link is not None:
            self._link.close()

    def beat(self) -> None:
        """Have a heartbeat sent now; any thread."""
        self._next_beat = 0.0

    def wake(self) -> None:
        """Have what waits sent at once; fibers of the service thread."""
        if self._bell is not None:
            self._bell.set()

    def _turn(self, now: float) -> float:
        """Publish what waits; returns for how many seconds the broker is to be left alone."""
        if self._beat_every is not None and now >= self._next_beat:
            self._next_beat = now + self._beat_every
            self._say("worker-heartbeat")
        events: list[Event] = []
        try:
            link = self._opened()
            while events := self._dispatcher.take(BATCH):
                self._send(link, events)
            link.beat()
        except BrokerError as error:
            self._dispatcher.put_back(events)
            self._drop_link()
            return self._trouble.happened(error)
        self._trouble.over()
        return 0.0

    def _opened(self) -> EventLink:
        if self._link is None:
            link = self._make_link()
            link.open()
            self._link = link
        return self._link

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _send(self, link: EventLink, events: list[Event]) -> None:
        """Task events together, the node's own each by itself, all in order."""
        batch: list[Event] = []
        for each in events:
            each["clock"] = self._clock.forward()
            if each["type"].startswith("task-"):
                batch.append(each)
                continue
            self._send_batch(link, batch)
            batch = []
            link.send(routing_key(each["type"]), each)
        self._send_batch(link, batch)
        self._dispatcher.sent += len(events)

    @staticmethod
    def _send_batch(link: EventLink, batch: list[Event]) -> None:
        if len(batch) == 1:
            link.send(routing_key(batch[0]["type"]), batch[0])
        elif batch:
            link.send(BATCH_KEY, batch)

    def _say(self, kind: str) -> None:
        running, processed = self._counts()
        fields: dict[str, Any] = {
            "freq": self._beat_every or 0.0,
            "active": running,
            "processed": processed,
            "loadavg": [round(load, 2) for load in os.getloadavg()],
            **hostinfo.software(),
        }
        self._dispatcher.note(kind, fields)
