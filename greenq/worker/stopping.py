"""Ending a worker: warm lets tasks finish, cold gives them back."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

from greenq.exceptions import ColdStop
from greenq.model import Request, Settle, Settlement
from greenq.pools.base import Pool
from greenq.runtime.base import Runtime
from greenq.worker.intake import Intake
from greenq.worker.ledger import Ledger
from greenq.worker.lineup import Lineup
from greenq.worker.outbox import Outbox

logger = logging.getLogger(__name__)

INTAKE_SECONDS = 2.0
OUTBOX_SECONDS = 10.0
BROKEN = 70  # EX_SOFTWARE
COLD_SECONDS = 3.0  # for tasks to notice a cold stop


class Stopping:
    """Warm or cold, once. `request_stop` comes from the service thread; the steps run in a fiber of the main hub.

    The order is: fetch nothing more, give back what has not started, wait for what runs, write every outcome.
    """

    def __init__(
        self, intake: Intake, lineup: Lineup, ledger: Ledger, outbox: Outbox, pool: Pool, runtime: Runtime
    ) -> None:
        self._intake = intake
        self._lineup = lineup
        self._ledger = ledger
        self._outbox = outbox
        self._pool = pool
        self._runtime = runtime
        self.exit_code = 0
        self.stopping = False
        self._cold_since = 0.0
        self._finished = False

    def signalled(self, number: signal.Signals) -> None:
        """A signal came (service thread). TERM and the first INT: warm; QUIT and the second INT: cold."""
        if number is signal.SIGTERM:
            self.warm("TERM")
        elif number is signal.SIGINT and not self.stopping:
            self.exit_code = 1
            print("\nEnding warmly; Ctrl-C again ends it now and gives running tasks back.", file=sys.stderr)
            self.warm("INT")
        else:
            self.cold(number.name)

    def warm(self, why: str) -> None:
        """Finish what runs, give back the rest. Callable from any thread."""
        if self.stopping:
            return
        self.stopping = True
        # Before it is said: a log whose handler raises may not keep a worker from ending. So everywhere here.
        self._runtime.call_soon(self._begin)
        logger.warning("Stopping warmly (%s): %d tasks run.", why, len(self._ledger.running))

    def cold(self, why: str) -> None:
        """End now: what runs is cut short, and goes back if it is acknowledged late. Callable from any thread."""
        if self._cold_since:
            return
        self._cold_since = time.monotonic()
        running = len(self._ledger.running)
        self._cut()
        if self.stopping:
            logger.warning("Stopping now (%s): %d tasks run.", why, running)
        else:
            self.warm(f"{why}, now")

    def broken(self, name: str) -> None:
        """A fiber of the worker ended by a defect: a worker that lives on half deaf helps nobody. Any thread."""
        if self._finished:
            return
        self.exit_code = BROKEN
        # A thread of its own, because the fiber that sees a stop through may be the broken one.
        self._runtime.isolated(self._leave_later, name="leaving")
        self.cold(f"{name} is broken")

    def _leave_later(self) -> None:
        until = time.monotonic() + COLD_SECONDS + OUTBOX_SECONDS
        while not self._finished and time.monotonic() < until:
            self._runtime.sleep(0.1)
        if not self._finished:
            self._leave()

    def watch(self) -> None:
        """Service thread, several times a second: see a cold stop through, whatever tasks and stop hooks do."""
        if not self._cold_since:
            return
        self._cut()
        if time.monotonic() - self._cold_since > COLD_SECONDS + OUTBOX_SECONDS:
            self._leave()
        if time.monotonic() - self._cold_since > COLD_SECONDS and self._ledger.running:
            self._leave()

    def _cut(self) -> None:
        for request in list(self._ledger.running):
            self._pool.kill(request, ColdStop("the worker ends now"))

    def _leave(self) -> None:
        """A task holds the process against its will: its message comes back when the connection or lease ends."""
        try:
            left = [f"{request.name}[{request.id}]" for request in list(self._ledger.running)]
            if self._finished:
                logger.error("Leaving: a stop hook does not return.")
            else:
                logger.error("Leaving with tasks that cannot be interrupted: %s", ", ".join(left) or "none")
            logging.shutdown()
        finally:
            os._exit(self.exit_code or 1)

    def _begin(self) -> None:
        self._runtime.spawn(self._steps, name="stopping")

    def _steps(self) -> None:
        try:
            self._intake.stop(INTAKE_SECONDS)
            self._give_back(self._lineup.close())
            self._pool.drain(None)
            if not self._outbox.stop(OUTBOX_SECONDS):
                logger.error("%d outcomes could not be written; their tasks will run again.", len(self._outbox))
        finally:
            self._finished = True
            self._pool.stop()

    def _give_back(self, requests: list[Request]) -> None:
        # Each goes to the head of its queue: the one received last goes first, so that the order stays.
        requests.sort(key=lambda request: request.received)
        for request in reversed(requests):
            self._outbox.put((request, Settlement(request.tag, request.queue, Settle.REQUEUE)))
