"""Which child runs which request, and what becomes of those whose child died."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from greenq.exceptions import ColdStop, Interrupt, Killed
from greenq.model import Outcome, Request, Settle, State
from greenq.pools._prefork.chasing import Chaser
from greenq.pools._prefork.crew import Crew, how_it_ended
from greenq.pools._prefork.frames import Frame, Kind
from greenq.pools._prefork.handle import Handle, Job
from greenq.pools.base import Ending, PoolOptions
from greenq.wire.passing import unpack_outcome, unpack_record

logger = logging.getLogger(__name__)

EPITAPH_TRIES = 2


class Dispatch:
    """Accepted requests wait in one line until a child has room. Main hub only; all but `offer` is the crier's."""

    def __init__(
        self, options: PoolOptions, crew: Crew, end: Callable[[Request, Outcome], object], up: Callable[[], object]
    ) -> None:
        """`end` is told each request's one outcome, `up` that a child is ready."""
        self._options = options
        self._crew = crew
        self._end = end
        self._up = up
        self._chaser = Chaser(crew.board, lambda child: self._take(child, child.collect_all()))
        self._line: deque[Job] = deque()  # in no child yet
        self._idle: list[Handle] = []  # last in, first out
        self._condemned: dict[int, Ending] = {}  # of tasks that stand behind another one in a child
        self._number = 0

    def offer(self, job: Job) -> None:
        """Have it done, by the first child that has room."""
        child = self._pick()
        if child is not None:
            self._give(child, job)
        else:
            self._line.append(job)

    def hear(self, child: Handle) -> None:
        """Take in what a child has written."""
        self._take(child, child.collect())

    def _take(self, child: Handle, frames: list[Frame]) -> None:
        for kind, number, payload in frames:
            if kind == Kind.DONE:
                self._finished(child, number, payload)
            elif kind == Kind.RECORD:
                self._options.store(unpack_record(payload))
            elif kind == Kind.READY:
                self._crew.ready(child)
                self._up()
                self._relieve(child)
            elif kind == Kind.LEAVING:
                child.leaving = True
                self._take_back(child, keep=1)
                self._crew.fill()
            elif kind == Kind.UNFIT:
                child.unfit = payload.decode()

    def _finished(self, child: Handle, number: int, payload: bytes) -> None:
        expected, job = child.line.popleft()
        assert expected == number, f"child {child.index} ended {number} instead of {expected}"
        child.chase = None
        self._crew.proved()
        outcome = unpack_outcome(payload, job.request)
        if child.line:
            self._begin(child)
        self._relieve(child)
        self._end(job.request, outcome)

    def _relieve(self, child: Handle) -> None:
        """A child has room: give it what waits, or note it as idle."""
        if child.leaving or not child.ready:
            return
        if self._line and len(child.line) <= self._options.ahead:
            self._give(child, self._line.popleft())
        elif not child.line:
            self._idle.append(child)

    def _pick(self) -> Handle | None:
        while self._idle:
            child = self._idle.pop()
            if not child.leaving:  # as all are when the pool restarts
                return child
        if not self._options.ahead:
            return None
        roomy = [c for c in self._crew.staying() if c.ready and len(c.line) <= self._options.ahead]
        return min(roomy, key=lambda child: len(child.line), default=None)

    def _give(self, child: Handle, job: Job) -> None:
        self._number += 1
        child.hand(self._number, job, tells=self._options.tells())
        if len(child.line) == 1:
            self._begin(child)
        if self._options.max_tasks and child.handed >= self._options.max_tasks:
            # Its last: the next child comes up while it works.
            child.leaving = True
            self._crew.fill()

    def _begin(self, child: Handle) -> None:
        number, job = child.line[0]
        if job.error is not None:
            return
        job.request.started = time.time()
        job.request.state = "running"
        self._options.begun(job.request)
        if self._condemned:
            ending = self._condemned.pop(number, None)
            if ending is not None:
                self._chaser.begin(child, ending)

    def kill(self, request: Request, ending: Ending) -> None:
        """See Pool.kill."""
        for child in self._crew.children.values():
            for position, (number, job) in enumerate(child.line):
                if job.request is request and job.error is None:
                    if not position:
                        self._chaser.begin(child, ending)
                    elif isinstance(ending, Interrupt):
                        self._condemned[number] = ending
                    return
        if not isinstance(ending, Interrupt):
            return  # a soft limit is for what runs
        for job in self._line:
            if job.request is request and job.error is None:
                self._line.remove(job)
                if isinstance(ending, Killed):
                    self._line.appendleft(Job(request, ending))
                else:
                    self._end(request, Outcome(request, State.CANCELLED, Settle.REQUEUE))
                return

    def look(self) -> None:
        """Several times a second: see endings through, and that children come up."""
        now = time.monotonic()
        for child in list(self._crew.children.values()):
            self._chaser.look(child)
            if child.silent:
                child.kill()  # a task closed the pipe under it: nothing it does can be heard any more
            elif not child.ready and not child.unfit and now - child.born > self._options.alive_timeout:
                child.unfit = f"not ready within worker_proc_alive_timeout = {self._options.alive_timeout:g} s"
                child.kill()
        self._crew.fill()

    def stopped(self, pid: int) -> None:
        """A child stands still."""
        child = self._crew.children.get(pid)
        if child is not None:
            self._chaser.stopped(child)

    def dismiss(self, child: Handle) -> None:
        """Have a child leave after what it has in hand."""
        if child in self._idle:
            self._idle.remove(child)
        child.leave()

    def died(self, child: Handle, code: int) -> None:
        """What it had said counts, what it had not started goes to others, and what it was on is lost."""
        self._take(child, child.collect_all())
        if child in self._idle:
            self._idle.remove(child)
        on_it = bool(child.line) and child.line[0][0] == self._crew.board.started(child.index)
        self._take_back(child, keep=1 if on_it else 0)
        if child.line:
            _, job = child.line.popleft()
            self._mourn(child, job, code)

    def _take_back(self, child: Handle, keep: int) -> None:
        while len(child.line) > keep:
            number, job = child.line.pop()
            ending = self._condemned.pop(number, None)
            self._line.appendleft(Job(job.request, ending) if isinstance(ending, Killed) else job)
        while self._line and (other := self._pick()) is not None:
            self._give(other, self._line.popleft())

    def _mourn(self, child: Handle, job: Job, code: int) -> None:
        request = job.request
        chase, child.chase = child.chase, None
        if job.error is not None:
            self._write_epitaph(job._replace(tries=job.tries + 1))
        elif chase is not None and chase.struck:
            if isinstance(chase.ending, ColdStop):
                self._end(request, Outcome(request, State.CANCELLED, Settle.REQUEUE))
            else:
                self._write_epitaph(Job(request, chase.ending))
        else:
            verdict = self._options.lost(request, f"child {child.index} (pid {child.pid}) {how_it_ended(code)}")
            if isinstance(verdict, Outcome):
                self._end(request, verdict)
            else:
                self._write_epitaph(Job(request, verdict))

    def _write_epitaph(self, job: Job) -> None:
        """An outcome is made beside user code, where the task's errbacks are: by another child, before all else."""
        if job.error is not None and job.tries >= EPITAPH_TRIES:
            logger.error("Two children died over the end of request %s; it goes to the dead queue.", job.request.id)
            self._end(job.request, self._options.unwritten(job.request, job.error))
            return
        other = self._pick()
        if other is not None:
            self._give(other, job)
        else:
            self._line.appendleft(job)
