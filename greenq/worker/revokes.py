"""What may never start here: ids and stamps, kept in memory and in the state file, and what a revoke does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from greenq import naming
from greenq._speedups import RevokedSet
from greenq.config import Settings
from greenq.exceptions import ConfigError, Killed
from greenq.gates.revoked import RevokedGate, RevokedStamps
from greenq.log import printable
from greenq.runtime.base import Runtime
from greenq.wire.control import LogicalClock
from greenq.wire.stamps import stamps_of
from greenq.worker.statedb import Record, StateFile
from greenq.worker.statewriter import StateWriter

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 512  # of an id or a stamp; nobody's are longer, and what is kept has to be bounded
_IN_A_RECORD = 200  # ids or stamps: with the longest of them a record is within its bound
_SHOWN = 10


class Revocations:
    """The two sets and the file behind them. Any thread may look; only the service thread adds.

    An id that was learned from a neighbour never takes the place of one that was revoked here.
    """

    def __init__(self, conf: Settings, hostname: str, clock: LogicalClock, runtime: Runtime) -> None:
        """Read the state file, if the settings name one; blocks for the disk.

        Raises:
            ConfigError: the file cannot be used, or a bound makes no sense.
        """
        most, ttl = conf.worker_revokes_max, conf.worker_revoke_expires
        if most < 1 or ttl <= 0:
            raise ConfigError(
                f"worker_revokes_max ({most}) has to be at least 1, and worker_revoke_expires ({ttl:g}) more than 0"
            )
        self.ids = RevokedSet(most, ttl)
        self.stamps = RevokedStamps(ttl=ttl)
        self.gate = RevokedGate(self.ids, self.stamps)
        self._clock = clock
        self._lock = runtime.lock()  # several commands may run at once, with the solo pool in threads of their own
        self._writer: StateWriter | None = None
        if conf.worker_state_db:
            file = StateFile(naming.expand(conf.worker_state_db, hostname))
            self._recall(file)
            self._writer = StateWriter(file, self._everything, runtime)

    def start(self) -> None:
        """Start the thread that writes the file."""
        if self._writer is not None:
            self._writer.start()

    def stop(self, timeout: float) -> None:
        """Write the file a last time and let go of it; blocks up to `timeout` seconds."""
        if self._writer is not None:
            self._writer.stop(timeout)

    def add(self, task_ids: Sequence[str]) -> None:
        """Revoke these, at once, and wait for the disk where there is a file."""
        with self._lock:
            self.ids.update(task_ids, time.monotonic())
        self.gate.idle = False
        self._keep("ids", list(task_ids), wait=True)

    def add_stamps(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Revoke what carries one of these stamps, at once, and wait for the disk where there is a file."""
        now = time.monotonic()
        with self._lock:
            for header, value in pairs:
                self.stamps.add(header, value, now)
        self.gate.idle = False
        self._keep("stamps", pairs, wait=True)

    def learn(self, task_ids: Iterable[Any], pairs: Iterable[tuple[str, str]] = ()) -> bool:
        """Take over what a neighbour knows, oldest first, as far as there is room; True if some of it was new."""
        now = time.monotonic()
        with self._lock:
            self.ids.purge(now)
            self.stamps.purge(now)
            told = (task_id for task_id in task_ids if isinstance(task_id, str) and len(task_id) <= MOST_CHARACTERS)
            new = _last([task_id for task_id in told if not self.ids.contains(task_id, now)], self._room())
            self.ids.update(new, now)
            room = self.stamps.maxlen - len(self.stamps)
            new_pairs = _last([pair for pair in pairs if not self.stamps.contains(*pair, now)], room)
            for header, value in new_pairs:
                self.stamps.add(header, value, now)
        if new or new_pairs:
            self.gate.idle = False
        self._keep("ids", new, wait=False)
        self._keep("stamps", new_pairs, wait=False)
        return bool(new or new_pairs)

    def in_force(self) -> list[str]:
        """The revoked ids that have not expired, oldest first."""
        now = time.monotonic()
        return [task_id for task_id, added in self.ids.items() if now - added < self.ids.ttl]

    def stamps_in_force(self) -> dict[str, list[str]]:
        """The revoked stamps that have not expired: header -> values."""
        now = time.monotonic()
        found: dict[str, list[str]] = {}
        for (header, value), added in self.stamps.items():
            if now - added < self.stamps.ttl:
                found.setdefault(header, []).append(value)
        return found

    def _room(self) -> int:
        return self.ids.maxlen - len(self.ids)

    def _keep(self, kind: str, values: Sequence[object], *, wait: bool) -> None:
        if self._writer is None or not values:
            return
        now = int(time.time())
        written = [self._writer.put(record) for record in _records(kind, [(each, now) for each in values])]
        if wait:
            self._writer.wait(written[-1])

    def _recall(self, file: StateFile) -> None:
        """Take in what the file holds and has not expired.

        Its times are unix ones: a clock that was set back must not make an entry immortal.
        """
        wall, now = time.time(), time.monotonic()
        held = file.remembered
        for task_id, added in held.ids:
            age = max(0.0, wall - added)
            if age < self.ids.ttl:
                self.ids.add(task_id, now - age)
        for (header, value), added in held.stamps:
            age = max(0.0, wall - added)
            if age < self.stamps.ttl:
                self.stamps.add(header, value, now - age)
        self.gate.idle = not len(self.ids) and not len(self.stamps)
        self._clock.adjust(held.clock)
        if len(self.ids) or len(self.stamps):
            logger.info("%d revoked ids and %d stamps are known from %s.", len(self.ids), len(self.stamps), file.path)

    def _everything(self) -> list[Record]:
        offset = time.time() - time.monotonic()
        now = time.monotonic()
        ids = [(each, int(added + offset)) for each, added in self.ids.items() if now - added < self.ids.ttl]
        pairs = [(each, int(added + offset)) for each, added in self.stamps.items() if now - added < self.stamps.ttl]
        return [*_records("ids", ids), *_records("stamps", pairs), {"clock": self._clock.value}]


def _records(kind: str, dated: Sequence[tuple[object, int]]) -> list[Record]:
    """Values with unix seconds as records of the state file, a few hundred of one second together."""
    records: list[Record] = []
    for moment, group in groupby(dated, key=lambda pair: pair[1]):
        values = [value for value, _ in group]
        starts = range(0, len(values), _IN_A_RECORD)
        records += ({"at": moment, kind: values[start : start + _IN_A_RECORD]} for start in starts)
    return records


def _last(values: list[Any], most: int) -> list[Any]:
    return values[-most:] if most > 0 else []


class WorkerRevokes:
    """See control.panel.Revokes. Called from the service thread; what waits here is dropped on the main hub.

    Nothing waits for that hub: the sets alone keep a task from starting, and dropping what waits is tidying up.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept = worker.revocations
        self._ledger = worker.ledger
        self._sweeping = False

    def ids(self) -> list[str]:
        """See Revokes."""
        return self._kept.in_force()

    def stamps(self) -> dict[str, list[str]]:
        """See Revokes."""
        return self._kept.stamps_in_force()

    def add(self, task_ids: Sequence[str]) -> None:
        """See Revokes."""
        self._kept.add(task_ids)
        shown = ", ".join(map(printable, task_ids[:_SHOWN]))
        logger.info("%d ids are revoked: %s%s", len(task_ids), shown, ", ..." if len(task_ids) > _SHOWN else "")
        self._sweep_soon()
        self._worker.runtime.call_soon(self._worker.unstarted.note, list(task_ids))

    def add_stamps(self, pairs: Sequence[tuple[str, str]]) -> None:
        """See Revokes."""
        self._kept.add_stamps(pairs)
        shown = ", ".join(f"{printable(header)}={printable(value)}" for header, value in pairs[:_SHOWN])
        logger.info("%d stamps are revoked: %s%s", len(pairs), shown, ", ..." if len(pairs) > _SHOWN else "")
        self._sweep_soon()

    def learn(self, task_ids: Iterable[Any], stamps: Mapping[str, Sequence[str]]) -> None:
        """See Revokes."""
        pairs = [
            (header, value)
            for header, values in stamps.items()
            for value in values
            if max(len(header), len(value)) <= MOST_CHARACTERS
        ]
        if self._kept.learn(task_ids, pairs):
            self._sweep_soon()

    def terminate_stamped(self, pairs: Sequence[tuple[str, str]], signal: int) -> list[tuple[str, str]]:
        """See Revokes."""
        wanted = set(pairs)
        ended: list[tuple[str, str]] = []
        for request in list(self._ledger.running):
            if request.stamped and (matching := wanted.intersection(stamps_of(request))):
                self._worker.pool.kill(request, Killed(signal))
                ended += matching
        return ended

    def _sweep_soon(self) -> None:
        # One sweep sees all that was revoked before it: a flood of revokes does not make a flood of sweeps.
        if not self._sweeping:
            self._sweeping = True
            self._worker.runtime.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Main hub: what waits here and is revoked leaves memory and the broker."""
        self._sweeping = False
        worker, now = self._worker, time.time()
        for request in [*list(self._ledger.held), *self._ledger.reserved()]:
            if self._kept.gate(request, now) is not None and worker.lineup.remove(request):
                worker.outbox.put(worker.accounts.dropped(request, "revoked"))
