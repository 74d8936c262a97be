"""The service thread: what must go on while every slot computes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenq.broker.base import Consumer
from greenq.exceptions import BrokerError
from greenq.model import Request
from greenq.runtime.base import Fiber, Runtime
from greenq.worker.trouble import Trouble

logger = logging.getLogger(__name__)

TICK = 0.2  # seconds
KEEP_EVERY = 1.0


class ServiceThread:
    """A native thread with a hub of its own, and the fibers that live on it.

    It shares with the main hub only snapshots it reads and calls it posts; no connection, lock or event.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._fibers: list[tuple[str, Callable[[], object]]] = []
        self._thread: Fiber | None = None
        self._stopped = False

    def add(self, name: str, serve: Callable[[], object]) -> None:
        """Have `serve` run as a fiber of the thread; it returns soon after `stopped` is true. Before `start`."""
        self._fibers.append((name, serve))

    def stopped(self) -> bool:
        """Are the fibers to return?"""
        return self._stopped

    def start(self) -> None:
        """Start the thread."""
        self._thread = self._runtime.isolated(self._serve, name="service")

    def stop(self, timeout: float) -> None:
        """Let the fibers return, and wait for the thread."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join(timeout)

    def _serve(self) -> None:
        fibers = [self._runtime.spawn(serve, name=name) for name, serve in self._fibers]
        for fiber in fibers:
            fiber.join()


class Keeper:
    """Keeps what this worker holds its own: heartbeats, leases, and what dead workers left behind."""

    def __init__(
        self,
        consumer: Consumer,
        held: Callable[[], list[Request]],
        tick: Callable[[], None],
        runtime: Runtime,
    ) -> None:
        """`held` is a snapshot of what this worker holds; `tick` is called several times a second."""
        self._consumer = consumer
        self._held = held
        self._tick = tick
        self._runtime = runtime
        self._renew_every = consumer.lease / 4
        self._renewed = 0.0
        self._trouble = Trouble(logger, "leases")
        self._quiet_until = 0.0

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Service thread: until `stopped`."""
        kept = 0.0
        while not stopped():
            self._tick()
            now = time.monotonic()
            if now - kept >= KEEP_EVERY and now >= self._quiet_until:
                kept = now
                self._keep(now)
            self._runtime.sleep(TICK)
        self._consumer.release()

    def _keep(self, now: float) -> None:
        try:
            self._consumer.beat()
            if now - self._renewed >= self._renew_every:
                if not self._consumer.renew(self._held()):
                    logger.warning(
                        "This worker had been given up for dead: what it held may run elsewhere too.",
                        extra={"event": "lease.lost"},
                    )
                self._renewed = now
            count = self._consumer.reclaim()
        except BrokerError as error:
            self._quiet_until = now + self._trouble.happened(error)
            return
        self._trouble.over()
        if count:
            logger.warning(
                "%d messages of dead workers are back on their queues.", count, extra={"event": "orphans.reclaimed"}
            )
