"""`-P prefork`: each task in a child process of ordinary Python; the worker itself is green and runs none."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from greenq.exceptions import ColdStop, ConfigError, Killed, PoolCannot, PoolClosed, PoolFull
from greenq.model import Outcome, Request, Settle, State
from greenq.pools._prefork import board as boards
from greenq.pools._prefork.brood import Brood, check_zygote
from greenq.pools._prefork.chasing import Chaser
from greenq.pools._prefork.crew import Crew, how_it_ended
from greenq.pools._prefork.frames import Frame, Kind
from greenq.pools._prefork.handle import Handle, Job
from greenq.pools.base import Capabilities, Done, Ending, PoolOptions, Run
from greenq.pools.guarding import tell_done
from greenq.runtime.gevent import GeventRuntime
from greenq.wire.passing import unpack_outcome, unpack_record

logger = logging.getLogger(__name__)

MOST_SLOTS = boards.MOST_CHILDREN // 2  # while children are replaced there are up to twice as many
DISMISSAL_SECONDS = 3.0  # for children to end, their stop hooks included
EPITAPH_TRIES = 2


class PreforkPool:
    """Requests go to idle children as they come; `ahead` lets busy ones have more.

    One greenlet, the crier, does all but `submit`: it reads what children and nurseries say and carries out
    endings. Everything belongs to the main hub; other threads use `kill` and `nudge`.
    """

    name = "prefork"
    can = Capabilities(
        soft_limit=True, hard_limit=True, kill=True, resize=True, restart=True, recycle=True, survives_crash=True
    )

    def __init__(self, options: PoolOptions, runtime: GeventRuntime) -> None:
        self.size = options.size
        self._options = options
        self._runtime = runtime
        self._line: deque[Job] = deque()  # accepted, in no child yet
        self._idle: list[Handle] = []
        self._condemned: dict[int, Ending] = {}  # of tasks that stand behind another one in a child
        self._accepted = 0  # and not done
        self._untold = 0  # done, but `done` has not returned: it may wait, to write a log line
        self._number = 0
        self._closed = False
        self._empty = runtime.event()
        self._stopped = runtime.event()
        self._up = runtime.event()  # the first child is ready, or has failed
        self._said: deque[tuple[Handle, list[Frame]]] = deque()  # for the crier: what children wrote,
        self._news: deque[Callable[[], object]] = deque()  # and what else it has to do
        self._crier = runtime.greenlet(self._cry)
        self._crying = False
        self._crew = Crew(check_zygote(options.zygote), options, runtime, self._heard, self._called, self._died)
        self._chaser = Chaser(self._crew.board, self._read_all)
        self._done: Done

    def start(self, run: Run, done: Done) -> None:
        """See Pool. `run` is of no use here: children have their own. Waits for the first child.

        Raises:
            ConfigError: the app cannot be loaded in a process of its own, or a child_start hook failed.
        """
        self._done = done
        self._crew.fill(self.size)
        while not self._up.wait(0.05):
            if self._crew.error:
                break
        self._crew.check_started()

    def serve(self) -> None:
        """See Pool."""
        while not self._stopped.is_set():
            try:
                self._stopped.wait()
            except (SystemExit, KeyboardInterrupt) as error:
                # gevent brings here what left a greenlet of the app's own; it ends no more than a task would.
                logger.error("%s in a greenlet of the app: the worker goes on.", type(error).__name__)  # noqa: TRY400
        self._dismiss()

    def submit(self, request: Request) -> None:
        """See Pool."""
        if self._closed:
            raise PoolClosed("the pool takes nothing new")
        if self.free() <= 0:
            raise PoolFull(f"all {self.size} slots are busy")
        self._accepted += 1
        child = self._pick()
        if child is not None:
            self._give(child, Job(request))
        else:
            self._line.append(Job(request))

    def free(self) -> int:
        """See Pool. With `ahead`, what busy children may be handed counts too."""
        return max(0, self.size * (1 + self._options.ahead) - self._accepted)

    def kill(self, request: Request, ending: Ending) -> None:
        """See Pool."""
        self._runtime.call_soon(self._tell_crier, partial(self._kill, request, ending))

    def nudge(self) -> None:
        """See Pool."""
        self._runtime.call_soon(self._tell_crier, self._look)

    def pid(self, request: Request) -> int | None:
        """See Pool."""
        for child in list(self._crew.children.values()):
            line = list(child.line)
            if line and line[0][1].request is request:
                return child.pid
        return None

    def resize(self, size: int) -> None:
        """See Pool. A child too many leaves after its task."""
        if size > MOST_SLOTS:
            raise PoolCannot(f"the prefork pool has at most {MOST_SLOTS} children, not {size}")
        self.size = max(1, size)
        staying = self._crew.staying()
        staying.sort(key=lambda child: len(child.line))
        for child in staying[: max(0, len(staying) - self.size)]:
            self._dismiss_one(child)
        self._crew.fill(self.size)

    def restart(self) -> None:
        """See Pool. Returns at once; children are replaced as soon as the new code is loaded."""
        self._crew.restart()

    def drain(self, timeout: float | None) -> bool:
        """See Pool."""
        self._closed = True
        if not self._accepted and not self._untold:
            return True
        self._empty.clear()
        return self._empty.wait(timeout)

    def stop(self) -> None:
        """See Pool."""
        self._closed = True
        self._stopped.set()

    def stats(self) -> dict[str, Any]:
        """See Pool."""
        children = list(self._crew.children.values())
        writes = [child.handed for child in children]
        total = sum(writes)
        return {
            "implementation": "greenq.pools.prefork",
            "max-concurrency": self.size,
            "processes": [child.pid for child in children],
            "max-tasks-per-child": self._options.max_tasks or "N/A",
            "max-memory-per-child": self._options.max_memory or "N/A",
            "put-guarded-by-semaphore": False,
            "writes": {
                "total": total,
                "avg": f"{total / len(children):.2f}" if children else "0.00",
                "all": ", ".join(f"{count / total:.2f}" if total else "0.00" for count in writes),
                "raw": ", ".join(map(str, writes)),
                "strategy": "default" if self._options.ahead else "fair",
                "inqueues": {"total": len(children), "active": sum(1 for child in children if len(child.line) > 1)},
            },
            "running": self._accepted,
            "free": self.free(),
            "capabilities": self.can.as_dict(),
        }

    # The crier, and what it does.

    def _heard(self, child: Handle, frames: list[Frame]) -> None:
        self._said.append((child, frames))
        self._wake_crier()

    def _called(self, brood: Brood) -> None:
        self._tell_crier(partial(self._listen, brood))

    def _tell_crier(self, news: Callable[[], object]) -> None:
        self._news.append(news)
        self._wake_crier()

    def _wake_crier(self) -> None:
        if not self._crying:
            self._crying = True
            self._runtime.wake(self._crier)

    def _cry(self) -> None:
        said, news = self._said, self._news
        while True:
            self._crying = True
            while said or news:
                try:
                    if said:
                        self._take(*said.popleft())
                    else:
                        news.popleft()()
                except Exception:
                    logger.exception("The prefork pool stumbled.")
            self._crying = False
            self._runtime.park()

    def _listen(self, brood: Brood) -> None:
        for pid in self._crew.listen(brood):
            child = self._crew.children.get(pid)
            if child is not None:
                self._chaser.stopped(child)
        if self._crew.error:
            self._up.set()

    def _read_all(self, child: Handle) -> None:
        """What it had written before comes first."""
        for each in [each for each in self._said if each[0] is child]:
            self._said.remove(each)
            self._take(*each)
        self._take(child, child.read_all())

    def _take(self, child: Handle, frames: list[Frame]) -> None:
        for kind, number, payload in frames:
            if kind == Kind.DONE:
                self._finished(child, number, payload)
            elif kind == Kind.RECORD:
                self._options.store(unpack_record(payload))
            elif kind == Kind.READY:
                self._crew.ready(child)
                self._up.set()
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
        if self._idle:
            return self._idle.pop()
        if not self._options.ahead:
            return None
        open_ones = [c for c in self._crew.staying() if c.ready and len(c.line) <= self._options.ahead]
        return min(open_ones, key=lambda child: len(child.line), default=None)

    def _give(self, child: Handle, job: Job) -> None:
        self._number += 1
        child.hand(self._number, job)
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

    def _end(self, request: Request, outcome: Outcome) -> None:
        request.state = "finishing"
        self._accepted -= 1
        self._untold += 1
        tell_done(self._done, request, outcome)
        self._untold -= 1
        if not self._accepted and not self._untold:
            self._empty.set()

    def _kill(self, request: Request, ending: Ending) -> None:
        for child in self._crew.children.values():
            for position, (number, job) in enumerate(child.line):
                if job.request is request and job.error is None:
                    if position:
                        self._condemned[number] = ending
                    else:
                        self._chaser.begin(child, ending)
                    return
        waiting = next((job for job in self._line if job.request is request and job.error is None), None)
        if waiting is not None:
            self._line.remove(waiting)
            self._end_unstarted(request, ending)

    def _end_unstarted(self, request: Request, ending: Ending) -> None:
        if isinstance(ending, Killed):
            self._line.appendleft(Job(request, ending))
        else:
            self._end(request, Outcome(request, State.CANCELLED, Settle.REQUEUE))

    def _look(self) -> None:
        now = time.monotonic()
        for child in list(self._crew.children.values()):
            self._chaser.look(child)
            if not child.ready and now - child.born > self._options.alive_timeout and not child.unfit:
                child.unfit = f"not ready within worker_proc_alive_timeout = {self._options.alive_timeout:g} s"
                child.kill()
            elif child.silent:
                child.kill()  # a task closed the pipe under it: nothing it does can be heard any more
        self._crew.fill()

    def _died(self, child: Handle, code: int) -> None:
        """What it had said counts, what it had not started goes to others, and what it was on is lost."""
        self._read_all(child)
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
        """Outcomes are made beside user code, where its errbacks are: by another child."""
        if job.tries >= EPITAPH_TRIES:
            logger.error("Two children died over the end of request %s; it goes to the dead queue.", job.request.id)
            self._end(job.request, Outcome(job.request, State.FAILURE, Settle.DEAD, reason="worker_error"))
            return
        other = self._pick()
        if other is not None:
            self._give(other, job)
        else:
            self._line.appendleft(job)

    def _dismiss_one(self, child: Handle) -> None:
        if child in self._idle:
            self._idle.remove(child)
        child.leave()

    def _dismiss(self) -> None:
        """Let the children end, then their nursery and the zygote."""
        self._crew.fill(0)
        for child in self._crew.staying():
            self._dismiss_one(child)
        until = time.monotonic() + DISMISSAL_SECONDS
        while self._crew.children and time.monotonic() < until:
            self._runtime.sleep(0.002)
        self._crew.close()


def make_runtime() -> GeventRuntime:
    """Make the runtime of the worker's own process; it must have been patched, after the zygote was forked."""
    return GeventRuntime()


def make_pool(options: PoolOptions, runtime: GeventRuntime) -> PreforkPool:
    """Make the pool; its children load the app at once.

    Raises:
        ConfigError: the process has no zygote, or there are too many children.
    """
    check_zygote(options.zygote)
    if options.recipe is None:
        raise ConfigError("prefork needs to know how its children load the app: start the worker with -A")
    if options.size > MOST_SLOTS:
        raise ConfigError(f"the prefork pool has at most {MOST_SLOTS} children, not {options.size}")
    return PreforkPool(options, runtime)
