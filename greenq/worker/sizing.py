"""The size of the pool while it runs, and what follows from it: prefetch, new slots filled, more asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenq.broker.base import Consumer
from greenq.exceptions import BadArgument, PoolCannot
from greenq.pools.base import Pool
from greenq.runtime.timers import Timers
from greenq.worker.autoscale import EVERY, Autoscaler
from greenq.worker.credit import MOST_AHEAD

logger = logging.getLogger(__name__)


class Sizing:
    """Changes the number of slots, by command or as the autoscaler says.

    Fibers of the main hub only, but for the checks, which read plain numbers.
    """

    def __init__(
        self,
        pool: Pool,
        consumer: Consumer,
        timers: Timers,
        resized: Callable[[], object],
        *,
        multiplier: int,
        chosen: bool,
        most: int,
        autoscaler: Autoscaler | None,
    ) -> None:
        """`resized` fills new slots and wakes the intake; `most` bounds what a command may ask for.

        `chosen` says that the multiplier is the user's own and not the default.
        """
        self.autoscaler = autoscaler
        self._pool = pool
        self._consumer = consumer
        self._timers = timers
        self._resized = resized
        self._multiplier = multiplier
        self._chosen = chosen
        self._added = 0  # to the prefetch count, by command
        self._most = most
        self._failure = ""  # of the user's rule, as last said
        self._size_said = pool.size

    def start(self) -> None:
        """Let the autoscaler look every second."""
        if self.autoscaler is not None:
            self._look_again()

    def _look_again(self) -> None:
        self.look()
        self._say_size()
        self._timers.at(time.monotonic() + EVERY, self._look_again)

    def look(self) -> None:
        """Ask the autoscaler whether the size is right; after each batch, and every second.

        A rule of the user's that raises is said once, and asked again.
        """
        if self.autoscaler is None:
            return
        before = self._pool.size
        try:
            self.autoscaler.maybe_scale()
        except Exception as error:
            if repr(error) != self._failure:
                self._failure = repr(error)
                logger.exception("The autoscaler failed; it is asked again every second.")
        else:
            self._failure = ""
        if self._pool.size != before:
            self._resized()

    def _say_size(self) -> None:
        """Once a second at most: a backlog takes the pool through many sizes in a moment."""
        size, before = self._pool.size, self._size_said
        if size != before:
            self._size_said = size
            logger.info("Autoscale: %d slots, after %d.", size, before, extra={"event": "pool.scaled"})

    def most_ahead(self) -> int:
        """Messages that may wait here beyond the slots, however short the tasks are.

        What is pushed here blocks others, so there the multiplier is a bound even if nobody chose it.
        """
        prefetch = self._consumer.prefetch
        if not prefetch or (self._consumer.by_number and not self._chosen):
            return MOST_AHEAD
        return max(0, prefetch - self._pool.size)

    @property
    def prefetch(self) -> int:
        """Deliveries that may be unsettled here, without what held requests add; 0 is no limit. Any thread."""
        return self._consumer.prefetch

    def change_prefetch(self, by: int) -> int:
        """Raise or lower the prefetch count, to 1 at least, and return it; it stays so when the pool is resized.

        It counts as chosen from then on, and so is a bound also where messages are asked for by number.
        """
        before = self._consumer.prefetch
        if before:
            after = max(1, before + by)
            self._added += after - before
            self._chosen = True
            self._consumer.prefetch = after
            self._resized()
            logger.info("The prefetch count is %d now.", after, extra={"event": "prefetch.changed"})
        return self._consumer.prefetch

    def appetite(self) -> int:
        """Messages to ask for beyond the free slots, so that an autoscaler sees what waits."""
        return self.autoscaler.appetite() if self.autoscaler is not None else 0

    def check_change(self, by: int) -> None:
        """Refuse a size that cannot be; any thread.

        Raises:
            BadArgument: the pool would have less than one slot, or more than is sane.
            PoolCannot: its size is fixed.
        """
        if not self._pool.can.resize:
            raise PoolCannot(
                f"the {self._pool.name} pool has exactly one slot: run more workers, "
                "or use -P gevent, -P eventlet or -P prefork"
            )
        size = self._pool.size
        if size + by > self._most:
            raise BadArgument(
                f"the pool has {size} slots, and a command may make them {self._most} at most: "
                f"{by} more are too many; start a worker with the -c you need"
            )
        if size + by < 1:
            raise BadArgument(f"the pool has {size} slots and keeps one: it can shrink by {size - 1}, not by {-by}")

    def change(self, by: int) -> None:
        """Add `by` slots, or take that many away; what runs goes on. Prefetch follows.

        Raises:
            BadArgument, PoolCannot: as `check_change`; nothing changes then.
        """
        self.check_change(by)
        size = self._pool.size + by
        self._pool.resize(size)
        self._follow(size)
        logger.info("The pool has %d slots now.", size, extra={"event": "pool.resized"})

    def check_bounds(self, most: int | None, least: int | None) -> None:
        """Refuse bounds that cannot be; any thread.

        Raises:
            BadArgument: the maximum is more than is sane, or below the minimum, or that is below 1.
        """
        assert self.autoscaler is not None, "the panel says whether there is one"
        self.autoscaler.check(most, least)
        if most is not None and most > self._most:
            raise BadArgument(f"a command may let the pool have {self._most} slots at most, not {most}")

    def bound(self, most: int | None, least: int | None) -> tuple[int, int]:
        """Give the autoscaler new bounds; returns (maximum, minimum). Prefetch follows the maximum.

        Raises:
            BadArgument: as `check_bounds`, or the minimum would be above the maximum. Nothing changes then.
        """
        assert self.autoscaler is not None
        self.check_bounds(most, least)
        now = self.autoscaler.update(most, least)
        self._follow(now[0])
        return now

    def _follow(self, slots: int) -> None:
        reserved = slots * self._multiplier
        self._consumer.prefetch = max(1, reserved + self._added) if reserved else 0
        self._resized()
