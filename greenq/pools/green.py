"""The pool of fixed slots on green threads, for every green runtime."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from greenq.exceptions import PoolCannot, PoolClosed, PoolFull
from greenq.model import Request
from greenq.pools.base import Capabilities, Done, Ending, Run
from greenq.pools.closing import Closing
from greenq.pools.guarding import run_guarded
from greenq.pools.interrupts import Interrupts
from greenq.runtime.base import GreenRuntime

logger = logging.getLogger(__name__)

FAIR_SECONDS = 0.001  # back-to-back tasks let the hub turn this often


class Slot:
    """Room for one task: a greenlet that is reused, since a fresh one costs twenty times a task's hand-over."""

    __slots__ = ("coming", "greenlet", "request")

    def __init__(self) -> None:
        self.greenlet: Any = None
        self.request: Request | None = None
        self.coming = False  # free or woken, and has not looked for a request yet


class GreenPool:
    """Slots are made on demand up to `size`, and parked last in, first out, so that warm ones run first.

    Everything here belongs to the main hub: only its greenlets touch a slot. Other threads use `kill`.
    """

    can = Capabilities(soft_limit=True, hard_limit=True, kill=True, resize=True)

    def __init__(self, name: str, size: int, runtime: GreenRuntime) -> None:
        self.name = name
        self.size = size
        self._runtime = runtime
        self._slots: dict[Any, Slot] = {}
        self._idle: list[Slot] = []
        self._handed: deque[Request] = deque()  # accepted, not yet picked up by a slot
        self._coming = 0  # slots that will look without a wake: never fewer than were handed over
        self._closing = Closing(runtime)
        self._interrupts = Interrupts(self._running)
        self._run: Run
        self._done: Done

    def start(self, run: Run, done: Done) -> None:
        """See Pool."""
        self._run = run
        self._done = done
        self._interrupts.install(self._runtime.thread())

    def serve(self) -> None:
        """See Pool. Green tasks run on the hub; the main greenlet only waits."""
        self._closing.wait("a task")

    def submit(self, request: Request) -> None:
        """See Pool."""
        closing = self._closing
        if closing.closed:
            raise PoolClosed("the pool takes nothing new")
        if closing.busy >= self.size:
            raise PoolFull(f"all {self.size} slots are busy")
        closing.busy += 1
        self._handed.append(request)
        if len(self._handed) > self._coming:
            self._summon()

    def free(self) -> int:
        """See Pool."""
        return max(0, self.size - self._closing.busy)

    def kill(self, request: Request, ending: Ending) -> None:
        """See Pool."""
        self._interrupts.add(request, ending)
        self._runtime.call_soon(self._throw, request)
        self._interrupts.nudge()

    def nudge(self) -> bool:
        """See Pool."""
        return self._interrupts.nudge()

    def pid(self, request: Request) -> int | None:
        """See Pool. Every slot lives in this process."""
        return os.getpid() if request.state == "running" else None

    def restart(self, renewed: Callable[[], object] = lambda: None) -> None:
        """See Pool."""
        raise PoolCannot(f"the {self.name} pool has no child processes to restart: restart the worker")

    def resize(self, size: int) -> None:
        """See Pool. Surplus slots end as they become idle."""
        self.size = max(1, size)
        for _ in range(min(len(self._idle), len(self._slots) - self.size)):
            self._summon()

    def drain(self, timeout: float | None) -> bool:
        """See Pool."""
        return self._closing.drain(timeout)

    def stop(self) -> None:
        """See Pool."""
        self._closing.stop()

    def stats(self) -> dict[str, Any]:
        """See Pool."""
        return {
            "implementation": f"greenq.pools.{self.name}",
            "max-concurrency": self.size,
            "processes": [os.getpid()],
            "running": self._closing.busy,
            "free": self.free(),
            "slots": len(self._slots),
            "capabilities": self.can.as_dict(),
        }

    def _summon(self) -> None:
        """Have one more slot come and look."""
        if self._idle:
            slot = self._idle.pop()
        else:
            slot = Slot()
            slot.greenlet = self._runtime.greenlet(self._live, slot)
            self._slots[slot.greenlet] = slot
        self._comes(slot)
        self._runtime.wake(slot.greenlet)

    def _comes(self, slot: Slot) -> None:
        slot.coming = True
        self._coming += 1

    def _came(self, slot: Slot) -> None:
        if slot.coming:
            slot.coming = False
            self._coming -= 1

    def _live(self, slot: Slot) -> None:
        """A slot is struck between two tasks by what an earlier one left behind, a timeout or a kill: replace it."""
        try:
            self._work(slot)
        except BaseException as stray:  # noqa: BLE001  (whatever it is, it was not meant for a slot)
            self._slots.pop(slot.greenlet, None)
            if slot in self._idle:
                self._idle.remove(slot)
            self._came(slot)
            if len(self._handed) > self._coming:
                self._summon()
            logger.warning("A %s left behind by an earlier task struck an idle slot.", type(stray).__name__)

    def _work(self, slot: Slot) -> None:
        """What a slot does. Woken for nothing (another slot was quicker), it parks again."""
        handed = self._handed
        turns = self._runtime.turns
        turn, began = turns(), time.perf_counter()
        while True:
            self._came(slot)
            if handed:
                self._one(slot, handed.popleft())
                if turns() != turn:
                    # The task waited, so others had their turn; a pause now would only hold up the next one.
                    turn, began = turns(), time.perf_counter()
                elif time.perf_counter() - began > FAIR_SECONDS:
                    self._runtime.pause()
                    turn, began = turns(), time.perf_counter()
            elif len(self._slots) > self.size:
                del self._slots[slot.greenlet]
                return
            else:
                self._idle.append(slot)
                while not slot.coming:  # what an earlier task left behind may switch here too
                    self._runtime.park()
                turn, began = turns(), time.perf_counter()

    def _one(self, slot: Slot, request: Request) -> None:
        slot.request = request
        outcome = run_guarded(self._run, request)
        slot.request = None
        self._interrupts.forget(request)
        self._comes(slot)
        self._closing.tell(self._done, request, outcome)

    def _running(self) -> Request | None:
        slot = self._slots.get(self._runtime.current())
        return slot.request if slot is not None else None

    def _throw(self, request: Request) -> None:
        """Raise into a task that waits; runs on the hub, so no slot can change its task meanwhile."""
        for slot in self._slots.values():
            if slot.request is request:
                break
        else:
            self._interrupts.forget(request)
            return
        if request.state == "running" and slot.greenlet is not self._runtime.current():
            ending = self._interrupts.take(request)
            if ending is not None:
                slot.greenlet.throw(ending)
