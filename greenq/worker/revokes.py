"""What may never start here: ids and stamps, kept in memory and in the state file, and what a revoke does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from greenq import naming
from greenq._speedups import RevokedSet
from greenq.broker.revoked_log import bounds_of
from greenq.config import Settings
from greenq.exceptions import Killed
from greenq.gates.revoked import RevokedGate, RevokedStamps
from greenq.log import printable
from greenq.runtime.base import Runtime
from greenq.wire.control import LogicalClock
from greenq.wire.revoked import LONGEST
from greenq.wire.stamps import stamps_of
from greenq.worker.statedb import Record, StateFile
from greenq.worker.statewriter import StateWriter

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

T = TypeVar("T")
Timed = Iterable[tuple[T, float]]
Stamp = tuple[str, str]  # header and value

logger = logging.getLogger(__name__)

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
        most, ttl = bounds_of(conf)
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
        self._keep("ids", _now(task_ids), wait=True)

    def add_stamps(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Revoke what carries one of these stamps, at once, and wait for the disk where there is a file."""
        now = time.monotonic()
        with self._lock:
            for header, value in pairs:
                self.stamps.add(header, value, now)
        self.gate.idle = False
        self._keep("stamps", _now(pairs), wait=True)

    def learn(self, task_ids: Iterable[Any], pairs: Iterable[tuple[str, str]] = ()) -> bool:
        """Take over what a neighbour knows, oldest first, as far as there is room; True if some of it was new."""
        now = time.monotonic()
        told = ((task_id, now) for task_id in task_ids if isinstance(task_id, str) and len(task_id) <= LONGEST)
        return any(self._take_over(told, [(pair, now) for pair in pairs], _last, now))

    def catch_up(self, ids: Timed[str], stamps: Timed[Stamp]) -> tuple[int, int]:
        """Take over what was revoked while nobody here listened, each with the seconds since then, oldest first.

        It counts as if it had been heard: where there is no room the oldest goes. Returns how many ids and how many
        stamps were new.
        """
        now = time.monotonic()
        dated = [(task_id, now - age) for task_id, age in ids]
        return self._take_over(dated, [(pair, now - age) for pair, age in stamps], _newest, now)

    def _take_over(self, ids: Timed[str], stamps: Timed[Stamp], choose: Any, now: float) -> tuple[int, int]:
        """Add what is new, with the monotonic time it was revoked at; `choose` is given both sides and the bound."""
        with self._lock:
            self.ids.purge(now)
            self.stamps.purge(now)
            new = [each for each in ids if not self.ids.contains(each[0], now)]
            new = choose(new, self.ids, self.ids.maxlen)
            for task_id, added in new:
                self.ids.add(task_id, added)
            pairs = [each for each in stamps if not self.stamps.contains(*each[0], now)]
            pairs = choose(pairs, self.stamps, self.stamps.maxlen)
            for (header, value), added in pairs:
                self.stamps.add(header, value, added)
        if new or pairs:
            self.gate.idle = False
        self._keep("ids", [(task_id, now - added) for task_id, added in new], wait=False)
        self._keep("stamps", [(pair, now - added) for pair, added in pairs], wait=False)
        return len(new), len(pairs)

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

    def _keep(self, kind: str, aged: Sequence[tuple[object, float]], *, wait: bool) -> None:
        """Put values with their age in seconds into the file, if there is one."""
        if self._writer is None or not aged:
            return
        now = time.time()
        dated = [(value, int(now - age)) for value, age in aged]
        written = [self._writer.put(record) for record in _records(kind, dated)]
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


def _now(values: Iterable[T]) -> list[tuple[T, float]]:
    """The values with the age of what was revoked just now."""
    return [(value, 0.0) for value in values]


def _last(new: list[Any], kept: Any, most: int) -> list[Any]:
    """As many of the new ones, the last of them, as there is room for."""
    room = most - len(kept)
    return new[-room:] if room > 0 else []


def _newest(new: list[Any], kept: Any, most: int) -> list[Any]:
    """Those of the new ones that are among the newest `most` of all."""
    if len(new) + len(kept) <= most:
        return new
    newest = sorted((added for _, added in [*new, *kept.items()]), reverse=True)[:most]
    return [each for each in new if each[1] >= newest[-1]][-most:]


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
            if max(len(header), len(value)) <= LONGEST
        ]
        if self._kept.learn(task_ids, pairs):
            self._sweep_soon()

    def catch_up(self, ids: Timed[str], stamps: Timed[Stamp]) -> tuple[int, int]:
        """Take over what the broker's log says; see Revocations. What waits here and is among it goes at once."""
        new = self._kept.catch_up(ids, stamps)
        if any(new):
            self._sweep_soon()
        return new

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
