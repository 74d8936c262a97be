"""How a pool of a green hub ends: it takes nothing new, all it has accepted is told, and `serve` returns."""

from __future__ import annotations

import logging

from greenq.model import Outcome, Request
from greenq.pools.base import Done
from greenq.pools.guarding import tell_done
from greenq.runtime.base import Runtime

logger = logging.getLogger(__name__)


class Closing:
    """What a pool has accepted and not told yet, and whether it still takes anything. Main hub only."""

    __slots__ = ("_empty", "_stopped", "_untold", "busy", "closed")

    def __init__(self, runtime: Runtime) -> None:
        self.busy = 0  # accepted and not done
        self.closed = False
        self._untold = 0  # done, but `done` has not returned: it may wait, to write a log line
        self._empty = runtime.event()
        self._stopped = runtime.event()

    def tell(self, done: Done, request: Request, outcome: Outcome) -> None:
        """Say that a request ended; its room is free before that."""
        self.busy -= 1
        self._untold += 1
        tell_done(done, request, outcome)
        self._untold -= 1
        if not self.busy and not self._untold:
            self._empty.set()

    def wait(self, whose: str) -> None:
        """Until `stop`. The main greenlet has nothing else to do: `whose` greenlets may fail there."""
        while not self._stopped.is_set():
            try:
                self._stopped.wait()
            except (SystemExit, KeyboardInterrupt) as error:
                # gevent brings here what left a greenlet of user code; that ends no more than a task would.
                logger.error("%s in a greenlet of %s: the worker goes on.", type(error).__name__, whose)  # noqa: TRY400

    def drain(self, timeout: float | None) -> bool:
        """See Pool."""
        self.closed = True
        if not self.busy and not self._untold:
            return True
        self._empty.clear()
        return self._empty.wait(timeout)

    def stop(self) -> None:
        """See Pool."""
        self.closed = True
        self._stopped.set()
