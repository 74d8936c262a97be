"""The children of a pool as a population: born, replaced, dismissed, and their nurseries with them."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import signal
import time
from collections.abc import Callable

from greenq.exceptions import ConfigError, HookFailed, PoolError
from greenq.pools._prefork import board as boards
from greenq.pools._prefork import nursery as words
from greenq.pools._prefork.board import Board
from greenq.pools._prefork.brood import Brood, Said
from greenq.pools._prefork.handle import Handle
from greenq.pools._prefork.zygote import Zygote
from greenq.pools.base import PoolOptions, Recipe
from greenq.runtime.base import Watch, WatchingRuntime

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between births that fail


class Crew:
    """Owned by the pool's greenlet on the main hub.

    A child counts as staying until it is told to leave or has been handed its last task; there are always as
    many staying ones, born or about to be, as the pool has slots.
    """

    def __init__(
        self,
        zygote: Zygote,
        options: PoolOptions,
        runtime: WatchingRuntime,
        heard: Callable[[Handle], object],
        called: Callable[[Brood], object],
        died: Callable[[Handle, int], object],
    ) -> None:
        """On the hub: `heard` is called with a child, `called` with a nursery that has said something.

        `died(child, exit code)` comes from `listen`.
        """
        assert options.recipe is not None  # looked at by make_pool
        self.children: dict[int, Handle] = {}
        self.board_file = boards.make_file()
        self.board = Board(self.board_file)
        self.error = ""  # why the first nursery or the first child failed
        self.loaded = False
        self._zygote = zygote
        self._recipe: Recipe = options.recipe
        self._options = options
        self._runtime = runtime
        self._heard = heard
        self._called = called
        self._died = died
        self._size = 0
        self._births: dict[int, Brood] = {}  # index -> where it was asked for
        self._free = list(range(1, boards.MOST_CHILDREN))  # a heap: the lowest index is taken first
        self._was_up = False  # a child has been ready; before that, whoever starts the pool is told of a failure
        self._closed = False
        self._given_up = False  # the zygote is gone, and the worker ends
        self._failures = 0
        self._not_before = 0.0
        self._watches: dict[Brood, Watch] = {}
        self._next: Brood | None = None  # loads its app; takes over when it has
        self._renewed: Callable[[], object] = lambda: None  # told when it does
        self._brood = self._open()

    def _open(self) -> Brood:
        brood = Brood(self._zygote, self.board_file, self._recipe)
        watch = self._runtime.watch(brood.fileno(), lambda: self._readable(brood))
        self._watches[brood] = watch
        watch.start()
        return brood

    def _readable(self, brood: Brood) -> None:
        # It stays readable until `listen`; until then the hub need not say it again.
        self._watches[brood].stop()
        self._called(brood)

    def staying(self) -> list[Handle]:
        """Children that will take more."""
        return [child for child in self.children.values() if not child.leaving]

    def fill(self, size: int | None = None) -> None:
        """Have children born until there are enough; with `size`, that many from now on."""
        if size is not None:
            self._size = size
        if time.monotonic() < self._not_before:
            return
        if not self.loaded:
            if self._was_up and self._brood not in self._watches:
                self._open_again()
            return
        missing = self._size - len(self.staying()) - len(self._births)
        for _ in range(missing):
            index = heapq.heappop(self._free)
            self.board.clear(index)
            self._births[index] = self._brood
            self._brood.birth(index, self._options.max_tasks, self._options.max_memory)

    def _open_again(self) -> None:
        try:
            self._brood = self._open()
        except PoolError as error:
            if not self._given_up:
                self._given_up = True
                logger.error("No more child processes can be started: %s", error)  # noqa: TRY400  (it says all)
                self._runtime.failed("prefork")

    def restart(self, renewed: Callable[[], object]) -> None:
        """Load the app in a fresh nursery; when it has, every child is replaced by one from there.

        `renewed` is called at that moment.
        """
        if self._next is not None:
            self._close(self._next)  # the code it loads may be older than what is meant now
        self._next, self._renewed = self._open(), renewed

    def listen(self, brood: Brood) -> list[int]:
        """Take in what a nursery has said; returns the pids of children that have stopped."""
        if brood not in self._watches:
            return []
        said = brood.listen()
        stopped = []
        for each in said or ():
            if each.word == words.STOPPED:
                stopped.append(each.rest[0])
            else:
                self._take(brood, each)
        if said is None:
            self._gone(brood)
        elif brood in self._watches:
            self._watches[brood].start()
        return stopped

    def _take(self, brood: Brood, said: Said) -> None:
        if said.word == words.BORN:
            self._born(brood, said)
        elif said.word == words.EXITED:
            pid, code = said.rest
            self._ended(self.children[pid], code)
        elif said.word == words.STILLBORN:
            index, why = said.rest
            self._failed(f"forking a child failed: {why}")
            self._births.pop(index, None)
            heapq.heappush(self._free, index)
        elif said.word == words.LOADED:
            self._loaded(brood, *said.rest)
        elif said.word == words.BROKEN:
            self._broken(brood, *said.rest)

    def _born(self, brood: Brood, said: Said) -> None:
        index, pid = said.rest
        self._births.pop(index, None)
        child = Handle(brood, index, pid, said.fd, self._runtime)
        self.children[pid] = child
        child.listen(self._heard)
        if brood is not self._brood or len(self.staying()) > self._size:
            child.leave()  # the pool was restarted, or made smaller, since it was asked for
            self.fill()

    def ready(self, child: Handle) -> None:
        """A child is fit."""
        child.ready = self._was_up = True

    def proved(self) -> None:
        """A child has ended a task: whatever made others die before is over."""
        self._failures = 0

    def _ended(self, child: Handle, code: int) -> None:
        del self.children[child.pid]
        self._died(child, code)
        dismissed, child.leaving = child.leaving, True
        child.close()
        heapq.heappush(self._free, child.index)
        if not child.ready or (not child.handed and not dismissed):
            self._failed(f"child {child.index} did not come up: {child.unfit or how_it_ended(code)}")
        self._forget_empty(child.brood)
        self.fill()

    def _failed(self, why: str) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        self.error = why
        if self._was_up:
            logger.error("%s; the next try is in %.1f s.", why, pause)

    def _loaded(self, brood: Brood, threads: list[str]) -> None:
        if threads:
            logger.warning(
                "The app's modules start threads (%s), which child processes do not have: start them in a "
                "child_start hook.",
                ", ".join(threads),
            )
        if brood is self._next:
            self._next = None
            self._brood = brood
            for child in self.staying():
                child.leave()
            logger.warning("The pool restarts with freshly imported code.")
            self._renewed()
        self.loaded = True
        self.fill()

    def _broken(self, brood: Brood, why: str) -> None:
        self._close(brood)
        text = f"loading the app for child processes failed: {why.strip()}"
        if brood is self._next:
            self._next = None
            logger.error("%s\nThe pool goes on with the code it has.", text)
        else:
            self._failed(text)

    def _gone(self, brood: Brood) -> None:
        """A nursery was killed, and the kernel its children with it."""
        self._close(brood)
        for child in [child for child in self.children.values() if child.brood is brood]:
            self._ended(child, -signal.SIGKILL)
        for index in [index for index, where in self._births.items() if where is brood]:
            del self._births[index]
            heapq.heappush(self._free, index)
        if brood is self._next:
            self._next = None
        if brood is self._brood:
            self.loaded = False
            self._failed(f"the process that forks children (pid {brood.pid}) is gone")

    def _forget_empty(self, brood: Brood) -> None:
        if brood is self._brood or brood is self._next or brood not in self._watches:
            return
        if all(child.brood is not brood for child in self.children.values()) and brood not in self._births.values():
            self._close(brood)

    def _close(self, brood: Brood) -> None:
        self._watches.pop(brood).close()
        brood.close()

    def close(self) -> None:
        """Let go of all processes; what still runs is killed by its nursery. Twice is legal."""
        if self._closed:
            return
        self._closed = True
        for brood in list(self._watches):
            self._close(brood)
        for child in self.children.values():
            child.close()
        self.children.clear()
        self.board.close()
        os.close(self.board_file)
        os.close(self._zygote.fd)
        until = time.monotonic() + 1.0
        with contextlib.suppress(ChildProcessError):  # where a module has SIGCHLD ignored, the kernel reaps
            while os.waitpid(self._zygote.pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                self._runtime.sleep(0.002)

    def check_started(self) -> None:
        """Raise ConfigError if the first nursery has failed, HookFailed if the first child has."""
        if self.error:
            raise HookFailed(self.error) if self.loaded else ConfigError(self.error)


def how_it_ended(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
