"""`-P prefork`: each task in a child process of ordinary Python; the worker itself is green and runs none."""

from __future__ import annotations

import logging
import resource
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from greenq.exceptions import ConfigError, GreenqError, PoolCannot, PoolClosed, PoolFull
from greenq.model import Outcome, Request
from greenq.pools._prefork.board import MOST_CHILDREN
from greenq.pools._prefork.brood import Brood, check_zygote
from greenq.pools._prefork.crew import Crew
from greenq.pools._prefork.dispatch import Dispatch
from greenq.pools._prefork.handle import Handle, Job
from greenq.pools.base import Capabilities, Done, Ending, PoolOptions, Run
from greenq.pools.closing import Closing
from greenq.runtime.gevent import GeventRuntime

logger = logging.getLogger(__name__)

MOST_SLOTS = MOST_CHILDREN // 2  # while children are replaced there are up to twice as many
FILES = 64  # open in the worker besides the children's pipes: connections, logs, the app's own
DISMISSAL_SECONDS = 3.0  # for children to end, their stop hooks included


class PreforkPool:
    """Requests go to idle children as they come; `ahead` lets busy ones have more.

    Everything belongs to the main hub; other threads use `kill` and `nudge`. One greenlet, the crier, does what
    may have to wait: the hub only reads pipes and leaves what they said to it.
    """

    name = "prefork"
    can = Capabilities(
        soft_limit=True, hard_limit=True, kill=True, resize=True, restart=True, recycle=True, survives_crash=True
    )

    def __init__(self, options: PoolOptions, runtime: GeventRuntime) -> None:
        self.size = options.size
        self._options = options
        self._runtime = runtime
        self._closing = Closing(runtime)
        self._up = runtime.event()  # the first child is ready, or has failed
        self._said: deque[Handle] = deque()  # for the crier: children that have written something,
        self._news: deque[Callable[[], object]] = deque()  # and what else it has to do
        self._crier = runtime.greenlet(self._cry)
        self._crying = False
        self._crew = Crew(check_zygote(options.zygote), options, runtime, self._heard, self._called, self._died)
        self._dispatch = Dispatch(options, self._crew, self._end, self._up.set)
        self._done: Done

    def start(self, run: Run, done: Done) -> None:
        """See Pool. `run` is of no use here: children have their own. Waits for the first child.

        Raises:
            ConfigError: the app cannot be loaded in a process of its own.
            HookFailed: the first child did not come up.
        """
        self._done = done
        self._crew.fill(self.size)
        while not self._up.wait(0.05) and not self._crew.error:
            self.nudge()
        try:
            self._crew.check_started()
        except GreenqError:
            self._dismiss()  # other children may be in their start hooks still
            raise

    def serve(self) -> None:
        """See Pool."""
        self._closing.wait("the app")
        self._dismiss()

    def submit(self, request: Request) -> None:
        """See Pool."""
        if self._closing.closed:
            raise PoolClosed("the pool takes nothing new")
        if self.free() <= 0:
            raise PoolFull(f"all {self.size} slots are busy")
        self._closing.busy += 1
        self._dispatch.offer(Job(request))

    def free(self) -> int:
        """See Pool. With `ahead`, what busy children may be handed counts too."""
        return max(0, self.size * (1 + self._options.ahead) - self._closing.busy)

    def kill(self, request: Request, ending: Ending) -> None:
        """See Pool."""
        self._runtime.call_soon(self._tell_crier, partial(self._dispatch.kill, request, ending))

    def nudge(self) -> bool:
        """See Pool."""
        self._runtime.call_soon(self._tell_crier, self._dispatch.look)
        return False

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
        try:
            _make_room(size)
        except ConfigError as error:
            raise PoolCannot(str(error)) from error
        self.size = max(1, size)
        staying = self._crew.staying()
        # Idle ones first, and of these the youngest: going up and down, the pool would else dismiss every child that
        # has just become ready.
        staying.sort(key=lambda child: (len(child.line), child.ready, -child.born))
        for child in staying[: max(0, len(staying) - self.size)]:
            self._dispatch.dismiss(child)
        self._crew.fill(self.size)

    def restart(self, renewed: Callable[[], object] = lambda: None) -> None:
        """See Pool. Returns at once; children are replaced as soon as the new code is loaded."""
        self._crew.restart(renewed)

    def drain(self, timeout: float | None) -> bool:
        """See Pool."""
        return self._closing.drain(timeout)

    def stop(self) -> None:
        """See Pool."""
        self._closing.stop()

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
            "running": self._closing.busy,
            "free": self.free(),
            "capabilities": self.can.as_dict(),
        }

    def _heard(self, child: Handle) -> None:
        """On the hub: the crier takes it in at once, unless it waits somewhere."""
        self._said.append(child)
        if not self._crying:
            self._crying = True
            self._crier.switch()

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
        said, news, hear = self._said, self._news, self._dispatch.hear
        while True:
            while said or news:
                try:
                    if said:
                        hear(said.popleft())
                    else:
                        news.popleft()()
                except Exception:
                    logger.exception("The prefork pool stumbled.")
            self._crying = False
            self._runtime.park()

    def _listen(self, brood: Brood) -> None:
        for pid in self._crew.listen(brood):
            self._dispatch.stopped(pid)
        if self._crew.error:
            self._up.set()

    def _died(self, child: Handle, code: int) -> None:
        self._dispatch.died(child, code)

    def _end(self, request: Request, outcome: Outcome) -> None:
        request.state = "finishing"
        self._closing.tell(self._done, request, outcome)

    def _dismiss(self) -> None:
        """Let the children end, then their nursery and the zygote."""
        self._crew.fill(0)
        for child in self._crew.staying():
            self._dispatch.dismiss(child)
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
    _make_room(options.size)
    return PreforkPool(options, runtime)


def _make_room(size: int) -> None:
    """Raise this process's own limit on open files as far as the children's pipes need.

    Raises:
        ConfigError: the system allows fewer.
    """
    needed = 2 * size + FILES  # twice, for while all are replaced
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{size} child processes need {needed} open files, and the limit is {hard}: raise it (ulimit -n, or "
            "LimitNOFILE= of systemd), or use a smaller -c"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
