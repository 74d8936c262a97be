"""From a decoded request to a slot: the gates, the three places to wait, and back when one ends."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from greenq._speedups import Timer
from greenq.events.tasks import TaskEvents
from greenq.gates.rate import RateGate
from greenq.gates.revoked import RevokedGate
from greenq.model import Outcome, Request, Settle, Verdict, VerdictKind
from greenq.pools.base import Pool
from greenq.runtime.timers import Timers
from greenq.worker.ledger import Ledger

logger = logging.getLogger(__name__)

Gate = Callable[[Request, float], Verdict | None]

MOST_HELD = 1_000  # waiting for their ETA here; more go back to the broker where it can hold them


class Answers(Protocol):
    """What the line-up needs from whoever settles."""

    def put(self, entry: Outcome | Request) -> None:
        """Hand over an outcome, or a request to be acknowledged before it runs."""


class Room(Protocol):
    """What the line-up needs of the consumer; see `broker.base.Consumer`."""

    delays: bool

    def raise_prefetch(self, n: int = 1) -> None: ...
    def lower_prefetch(self, n: int = 1) -> None: ...


class Lineup:
    """Everything here happens on the main hub, but for solo, where the intake's and the main thread take turns.

    A request enters through `admit`, passes the gates in order, and waits in at most one place at a time.
    """

    def __init__(
        self,
        pool: Pool,
        gates: Sequence[Gate],
        rate: RateGate,
        timers: Timers,
        ledger: Ledger,
        outbox: Answers,
        drop: Callable[[Request, str], Outcome],
        *,
        revoked: RevokedGate,
        room: Room,
        events: TaskEvents,
        acks_late: Callable[[Request], bool],
        lock: Any,
    ) -> None:
        """`drop(request, reason)` makes the outcome of what may never run. `rate` comes after `gates`.

        `revoked` is one of the gates.

        `room` is the consumer: it may take back what is far off, and lends room for what is held here.
        """
        self._pool = pool
        self._gates = gates
        self._revoked = revoked
        self._rate = rate
        self._timers = timers
        self._ledger = ledger
        self._outbox = outbox
        self._drop = drop
        self._room = room
        self._events = events
        self._acks_late = acks_late
        self._lock = lock  # green: never contended; solo: the intake's, the timers' and the main thread meet here
        self._releases: dict[str, Timer] = {}  # when the first that waits for a rate may start, by task name
        self.closed = False

    def admit(self, request: Request) -> None:
        """Let a request in, from the broker or from a wait."""
        with self._lock:
            self._admit(request)

    def _admit(self, request: Request) -> None:
        now = time.time()
        for gate in self._gates:
            verdict = gate(request, now)
            if verdict is not None:
                self._stop_at(request, verdict, now)
                return
        verdict = self._rate(request, now)
        if verdict is not None:
            self._limit(request, verdict)
            return
        if self._ledger.ready or not self._pool.free():
            request.state = "ready"
            self._ledger.ready.append(request)
        else:
            self._begin(request)

    def _stop_at(self, request: Request, verdict: Verdict, now: float) -> None:
        if verdict.kind is VerdictKind.DROP:
            self._outbox.put(self._drop(request, verdict.reason))
            return
        if len(self._ledger.held) >= MOST_HELD and self._room.delays:
            self._give_to_broker(request, verdict.until)
            return
        request.state = "held"
        when = time.monotonic() + verdict.until - now
        self._ledger.held[request] = self._timers.at(when, partial(self._due, request))
        self._room.raise_prefetch()

    def _give_to_broker(self, request: Request, due: float) -> None:
        self._outbox.put(Outcome(request, "DELAYED", Settle.DELAY, due=due))

    def _due(self, request: Request) -> None:
        with self._lock:
            if self._ledger.held.pop(request, None) is not None:
                self._room.lower_prefetch()
                self._admit(request)

    def _limit(self, request: Request, verdict: Verdict) -> None:
        line = self._ledger.limited.setdefault(request.name, deque())
        if self._room.delays and len(line) >= self._rate.most_waiting(request.name):
            self._rate.gave_up(request.name)
            self._give_to_broker(request, time.time() + self._rate.look_again(request.name, len(line)))
            return
        request.state = "limited"
        line.append(request)
        self._room.raise_prefetch()
        if len(line) == 1:
            self._release_at(verdict.until, request.name)

    def release(self, name: str) -> None:
        """Let go who waits for this rate and may start now; asks again when the next may."""
        with self._lock:
            line = self._ledger.limited.get(name)
            while line and self._rate.may_leave(name):
                request = line.popleft()
                self._room.lower_prefetch()
                if not self._still_may(request):
                    continue
                if self._ledger.ready or not self._pool.free():
                    request.state = "ready"
                    self._ledger.ready.append(request)
                else:
                    self._begin(request)
            if line:
                self._release_at(self._rate.due(name), name)

    def _release_at(self, when: float, name: str) -> None:
        """One timer a name: every change of a rate and every line that begins anew asks for one."""
        timer = self._releases.get(name)
        if timer is not None:
            timer.cancel()
        self._releases[name] = self._timers.at(when, partial(self.release, name))

    def ended(self, request: Request) -> None:
        """A slot is free: note it, and fill it from the ready line."""
        with self._lock:
            self._ledger.note_end(request)
            self._fill()

    def fill(self) -> None:
        """There may be new slots: fill them from the ready line."""
        with self._lock:
            self._fill()

    def _fill(self) -> None:
        ready = self._ledger.ready
        while ready and not self.closed and self._pool.free():
            request = ready.popleft()
            if self._still_may(request):
                self._begin(request)

    def _still_may(self, request: Request) -> bool:
        """What has waited may have been revoked or have expired since, though this hub could not turn meanwhile."""
        if self._revoked.idle and request.expires is None:
            return True
        now = time.time()
        for gate in self._gates:
            verdict = gate(request, now)
            if verdict is not None:
                self._stop_at(request, verdict, now)
                return False
        return True

    def _begin(self, request: Request) -> None:
        if self.closed:
            self._ledger.ready.append(request)
            return
        request.state = "starting"
        self._ledger.note_start(request)
        if self._events.wanted:
            self._events.started(request)
        if not self._acks_late(request):
            request.acked = True
            self._outbox.put(request)
        self._pool.submit(request)

    def remove(self, request: Request) -> bool:
        """Take a waiting request out of its place; False if it does not wait (any more)."""
        with self._lock:
            timer = self._ledger.held.pop(request, None)
            if timer is not None:
                timer.cancel()
                self._room.lower_prefetch()
                return True
            line = self._ledger.limited.get(request.name)
            if line and request in line:
                line.remove(request)
                self._rate.gave_up(request.name)
                self._room.lower_prefetch()
                return True
            if request in self._ledger.ready:
                self._ledger.ready.remove(request)
                return True
            return False

    def surplus(self, keep: int, before: float) -> list[Request]:
        """Take out those that wait for a slot behind `keep` others, the last first, if they came before that time.

        `before` is in monotonic seconds. The last goes first since each goes to the head of its queue.
        """
        with self._lock:
            ready, taken = self._ledger.ready, []
            while len(ready) > keep and ready[-1].received < before:
                taken.append(ready.pop())
            return taken

    def close(self) -> list[Request]:
        """Start nothing more; returns all that waits, taken out of the ledger."""
        with self._lock:
            self.closed = True
            waiting = [*self._ledger.held, *self._ledger.waiting_for_rate(), *self._ledger.ready]
            for timer in self._ledger.held.values():
                timer.cancel()
            self._ledger.held.clear()
            self._ledger.limited.clear()
            self._ledger.ready.clear()
            return waiting

    def forget_lost(self, epoch: int) -> int:
        """Drop what waits from connections before `epoch`: the broker delivers it again."""
        lost = [r for r in self._ledger.unsettled() if r.epoch < epoch and r not in self._ledger.running]
        return sum(self.remove(request) for request in lost)
