"""How many slots the pool should have: the Autoscaler, which `worker_autoscaler` may replace by a subclass.

Everything here runs on the main hub: after each batch of messages, and every second. It may not wait.
"""

from __future__ import annotations

import importlib
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenq.exceptions import BadArgument, ConfigError

if TYPE_CHECKING:
    from greenq.pools.base import Pool
    from greenq.worker.worker import Worker

EVERY = 1.0  # seconds between two looks while no message comes
KEEPALIVE = 30.0  # seconds; AUTOSCALE_KEEPALIVE in the environment (wire.md 1.5)
CELERYS = frozenset({"celery.worker.autoscale:Autoscaler", "celery.worker.autoscale.Autoscaler"})


class Autoscaler:
    """Keeps the number of slots between two bounds, as the work demands.

    It grows at once to what is running and waiting here. While it may still grow, the worker asks the broker
    for as many messages again as there are slots, so that a backlog doubles the pool at each round trip. It
    shrinks to the most that was needed in the last `keepalive` seconds, and never interrupts a task.

    To scale by a rule of your own, subclass it, override `_maybe_scale`, and name the class in the setting
    `worker_autoscaler` ("module:Class"). `qty`, `processes` and the bounds are there to decide by, `scale_up`
    and `scale_down` to act. Constructor and members are Celery's (wire.md 8.3).
    """

    def __init__(
        self,
        pool: Pool,
        max_concurrency: int,
        min_concurrency: int = 0,
        worker: Worker | None = None,
        keepalive: float | None = None,
        mutex: Any = None,
    ) -> None:
        """`keepalive` is in seconds; None is AUTOSCALE_KEEPALIVE, else 30. `mutex` is kept for subclasses.

        Raises:
            ConfigError: AUTOSCALE_KEEPALIVE is no number of seconds.
        """
        self.pool = pool
        self.max_concurrency = max_concurrency
        self.min_concurrency = max(1, min_concurrency)
        self.worker = worker
        self.keepalive = keepalive_of(os.environ) if keepalive is None else keepalive
        self.mutex = mutex
        self._last_scale_up = 0.0
        # What was needed in the last `keepalive` seconds: (when, slots), each larger than all after it.
        self._needs: deque[tuple[float, int]] = deque()

    def maybe_scale(self, req: Any = None) -> None:
        """Look, and change the size if that is called for. `req` is Celery's parameter; greenq passes None."""
        self._maybe_scale(req)

    def _maybe_scale(self, req: Any = None) -> bool | None:
        """The rule; True if the size changed. The one member that most subclasses override."""
        have = self.processes
        need = max(self.min_concurrency, min(self.qty, self.max_concurrency))
        lately = self._peak(need)
        if need > have:
            self.scale_up(need - have)
            return True
        if lately < have:
            self.scale_down(have - lately)
            return self.processes != have
        return None

    def scale_up(self, n: int) -> None:
        """Add `n` slots, up to the maximum."""
        self._last_scale_up = time.monotonic()
        self._resize(min(self.processes + n, max(self.processes, self.max_concurrency)))

    def scale_down(self, n: int) -> None:
        """Take `n` slots away, down to the minimum; nothing within `keepalive` of the last growth."""
        if time.monotonic() - self._last_scale_up > self.keepalive:
            self._resize(max(self.processes - n, min(self.processes, self.min_concurrency)))

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:  # noqa: A002  (Celery's)
        """Set new bounds and bring the size between them at once; returns (maximum, minimum).

        Raises:
            BadArgument: if the minimum would be below 1 or above the maximum. Nothing changes then.
        """
        most, least = self.check(max, min)
        self.max_concurrency, self.min_concurrency = most, least
        if self.processes < least:
            self.scale_up(least - self.processes)
        elif self.processes > most:
            self._resize(most)
        return most, least

    def check(self, most: int | None, least: int | None) -> tuple[int, int]:
        """The bounds as they would be, (maximum, minimum); None is the one of now.

        Raises:
            BadArgument: as `update`.
        """
        most = self.max_concurrency if most is None else most
        least = self.min_concurrency if least is None else least
        if not 1 <= least <= most:
            raise BadArgument(f"autoscale needs 1 <= min <= max, not min={least} max={most}")
        return most, least

    @property
    def qty(self) -> int:
        """Requests here that want a slot: those that run and those that could."""
        if self.worker is None:
            return self.pool.size - self.pool.free()
        ledger = self.worker.ledger
        return len(ledger.running) + len(ledger.ready)

    @property
    def processes(self) -> int:
        """Slots there are, child processes or green."""
        return self.pool.size

    def info(self) -> dict[str, int]:
        """The object of `inspect stats` (wire.md 3.5)."""
        return {
            "max": self.max_concurrency,
            "min": self.min_concurrency,
            "current": self.processes,
            "qty": self.qty,
        }

    def appetite(self) -> int:
        """How many messages more than free slots to ask for: those are what shows that the pool is too small."""
        return max(0, min(self.processes, self.max_concurrency - self.processes))

    def _peak(self, need: int) -> int:
        now = time.monotonic()
        needs = self._needs
        while needs and needs[-1][1] <= need:
            needs.pop()
        needs.append((now, need))
        while now - needs[0][0] > self.keepalive:
            needs.popleft()
        return needs[0][1]

    def _resize(self, size: int) -> None:
        if size != self.processes:
            self.pool.resize(size)


def keepalive_of(environ: Mapping[str, str]) -> float:
    """The seconds before slots that nobody needed are taken away.

    Raises:
        ConfigError: AUTOSCALE_KEEPALIVE is no number of seconds.
    """
    text = environ.get("AUTOSCALE_KEEPALIVE", "")
    try:
        seconds = float(text or KEEPALIVE)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ConfigError(f"AUTOSCALE_KEEPALIVE={text!r} in the environment is not a number of seconds")
    return seconds


def autoscaler_class(path: str) -> type[Autoscaler]:
    """Import what the setting `worker_autoscaler` names, "module:Class" or "module.Class".

    Raises:
        ConfigError: it is not there, or is no subclass of Autoscaler.
    """
    if path in CELERYS:
        return Autoscaler
    where = f"setting worker_autoscaler = {path!r}"
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}; write module:Class") from error
    if not (isinstance(found, type) and issubclass(found, Autoscaler)):
        raise ConfigError(f"{where} is no subclass of `greenq.Autoscaler`: derive it from that")
    return found
