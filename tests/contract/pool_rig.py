"""A real pool with a scenario beside it, and the record of what it was given and what it said."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from greenq._speedups import decode_parts
from greenq.exceptions import ConfigError, WorkerLostError
from greenq.model import Outcome, Record, Request, State
from greenq.pools import table
from greenq.pools.base import Ending, Pool, PoolOptions, Recipe
from tests.contract.pool_bodies import FRESH, LEDGER, Side
from tests.contract.pool_traces import descriptors, relatives

SLOW = 20.0  # seconds a busy machine may take over what takes milliseconds
NONE_LEFT_SECONDS = 5.0
STOP_SECONDS = 2.0  # with nothing running


def make_request(task_id: str, body: str, args: tuple[Any, ...]) -> Request:
    text = json.dumps([args, {}, {}])
    return decode_parts({"task": body, "id": task_id}, {}, "application/json", "utf-8", text, "celery", task_id)


class Rig:
    """Everything a scenario needs. `size` is what it asks for; solo has one slot whatever is asked."""

    def __init__(self, pool: str, size: int, zygote: object = None, **options: Any) -> None:
        made = table.load(pool)
        self.folder = Path(tempfile.mkdtemp(prefix="greenq-pool-"))
        self.size = table.DEFAULT_SIZE[pool] if pool == "solo" else size
        self.runtime = made.make_runtime()
        self.runtime.attach()
        # gevent and eventlet keep what their hub needs; that is made here, before anything is counted.
        self.runtime.sleep(0)
        self.before = (descriptors(), relatives())
        self.write_code(1)
        self.records: list[Record] = []
        self.side = Side(str(self.folder))
        self.side.store = self.records.append
        side = Recipe(f"{Side.__module__}:make_side", {"folder": str(self.folder)})
        hears = {"begun": self._begun, "lost": self._lost, "store": self.records.append}
        self.options = PoolOptions(self.size, zygote=zygote, **{"recipe": side, **hears, **options})
        self.make_pool: Callable[[PoolOptions], Pool] = lambda given: made.make_pool(given, self.runtime)
        self.refusal: ConfigError | None = None
        try:
            self.pool = self.make_pool(self.options)
        except ConfigError as refusal:
            self.refusal = refusal
            self.options = replace(self.options, max_tasks=None, max_memory=None, ahead=0)
            self.pool = self.make_pool(self.options)
        self.begun: list[str] = []
        self.lost: dict[str, str] = {}  # id -> why
        self.verdict: Callable[[Request, str], Outcome | BaseException] = lambda request, why: WorkerLostError(why)
        self.done: list[tuple[str, str]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.keep_outcomes = True
        self.told: Callable[[str], object] = lambda task_id: None  # the end of `done`
        self.line: list[Request] = []
        self.broken: list[str] = []  # what was found wrong where nothing could be raised
        self.steady = True  # the size does not change meanwhile
        self.given = 0
        self._running = 0
        self._places = 1 + (self.options.ahead if self.pool.can.survives_crash else 0)  # for each slot
        self._numbers = itertools.count()
        # The scenario submits and the pool's thread says done; who counts must not come between.
        self._counting = threading.RLock()
        self._over = False
        self._stopping = 0.0

    # What a scenario does.

    def request(self, body: str, *args: Any, task_id: str | None = None) -> Request:
        return make_request(task_id or f"{body}-{next(self._numbers)}", body, args)

    def submit(self, request: Request) -> Request:
        with self._counting:
            self.pool.submit(request)
            self._running += 1
            self.given += 1
        return request

    def put(self, body: str, *args: Any, task_id: str | None = None) -> Request:
        """Submit a new one when there is a free slot."""
        return self.give(self.request(body, *args, task_id=task_id))

    def give(self, request: Request) -> Request:
        self.wait(lambda: self.pool.free() > 0, "a free slot")
        return self.submit(request)

    def run(self, body: str, *args: Any) -> Any:
        """The value of one task, which has to succeed."""
        request = self.put(body, *args)
        self.wait_done(request.id)
        assert self.state(request.id) == State.SUCCESS, self.outcomes[request.id].result_text
        return self.value(request.id)

    def feed(self, *requests: Request) -> None:
        """Have these run as slots become free."""
        with self._counting:
            self.line += requests
            self._fill()

    def kill(self, request: Request, ending: Ending) -> None:
        self.pool.kill(request, ending)

    def write_code(self, version: int) -> None:
        """What `version` returns wherever the code is imported from now on."""
        (self.folder / f"{FRESH}.py").write_text(f"VERSION = {version}\n")

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def close(self, gate: str) -> None:
        (self.folder / gate).unlink()

    # What it sees.

    def notes(self, word: str) -> list[list[str]]:
        """The ledger's lines with that first word, without it."""
        lines = ((self.folder / LEDGER).read_text().split("\n"))[:-1]
        return [line.split()[1:] for line in lines if line.startswith(f"{word} ")]

    def started(self) -> dict[str, int]:
        """Id to process, of all that were started."""
        return {task_id: int(pid) for task_id, pid in self.notes("started")}

    def state(self, task_id: str) -> str | None:
        return dict(self.done).get(task_id)

    def states(self) -> Counter[str]:
        return Counter(state for _, state in self.done)

    def value(self, task_id: str) -> Any:
        record = self.outcomes[task_id].record
        assert record is not None, self.outcomes[task_id]
        return json.loads(record.payload)

    def wait(self, condition: Callable[[], object], what: str | Callable[[], str], seconds: float = SLOW) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                text = what if isinstance(what, str) else what()
                raise AssertionError(f"gave up after {seconds:g} s waiting for {text}; the last: {self.done[-5:]}")
            self.runtime.sleep(0.005)

    def wait_started(self, *task_ids: str, seconds: float = SLOW) -> None:
        self.wait(lambda: set(task_ids) <= set(self.started()), f"the start of {task_ids[:5]}", seconds)

    def wait_begun(self, request: Request) -> Request:
        self.wait_started(request.id)
        return request

    def wait_done(self, *task_ids: str, seconds: float = SLOW) -> None:
        wanted = set(task_ids)
        self.wait(lambda: wanted <= {i for i, _ in self.done}, f"the end of {task_ids[:5]}", seconds)

    def wait_count(self, number: int, seconds: float = SLOW) -> None:
        self.wait(lambda: len(self.done) >= number, lambda: f"{number} ends, not {len(self.done)}", seconds)

    def fill_slots(self, gate: str, number: int | None = None) -> list[Request]:
        """As many tasks as there are slots, all running at the same time."""
        requests = [self.put("gate", gate) for _ in range(number or self.size)]
        self.wait_started(*(request.id for request in requests))
        return requests

    def check_whole(self) -> None:
        """After whatever happened, the pool runs as many tasks at once as it says."""
        self.wait(lambda: self.pool.free() == self.size, "a pool with nothing to do")
        gate = f"whole-{next(self._numbers)}"
        requests = self.fill_slots(gate)
        assert self.pool.free() == 0
        self.open(gate)
        self.wait_done(*(request.id for request in requests))
        assert all(self.state(request.id) == State.SUCCESS for request in requests)

    def wait_children(self, number: int) -> None:
        """A pool of processes has as many as it has slots, sooner or later."""
        if self.pool.can.survives_crash:
            self.wait(
                lambda: len(self.pool.stats()["processes"]) == number,
                lambda: f"{number} children, not {len(self.pool.stats()['processes'])}",
                5.0,
            )

    # What the pool says.

    def _begun(self, request: Request) -> None:
        self.begun.append(request.id)

    def _lost(self, request: Request, why: str) -> Outcome | BaseException:
        self.lost[request.id] = why
        return self.verdict(request, why)

    def _done(self, request: Request, outcome: Outcome) -> None:
        with self._counting:
            self._running -= 1
            free, places = self.pool.free(), self.pool.size * self._places
            if self.steady and free + self._running != places:
                self.broken.append(f"free() is {free} while {self._running} of {places} run")
        if outcome.request is not request:
            self.broken.append(f"{request.id} got the outcome of {outcome.request.id}")
        if self.keep_outcomes:
            self.outcomes[request.id] = outcome
        self.done.append((request.id, outcome.state))
        with self._counting:
            self._fill()
        self.told(request.id)

    def _fill(self) -> None:
        while self.line and self.pool.free():
            self.submit(self.line.pop(0))

    # The frame around a scenario.

    def play(self, scenario: Callable[[Rig], None], *, start: bool = True) -> None:
        """Run the scenario beside the pool's main thread; raises what was left behind.

        A scenario that fails takes the process along: some task may wait for ever for what it would have done.
        """
        try:
            if start:
                self._serve(scenario)
            else:
                scenario(self)
            assert not self.broken, self.broken[:5]
            self.check_once()
            self.check_nothing_left()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self, scenario: Callable[[Rig], None]) -> None:
        self.pool.start(self.side.run, self._done)
        chase = self.runtime.isolated(self._chase, name="chase")
        self.runtime.spawn(self._guarded, scenario, name="scenario")
        self.pool.serve()
        took = time.monotonic() - self._stopping
        if took > STOP_SECONDS:
            self.broken.append(f"stop took {took:.1f} s")
        # A native thread with a hub of its own may not outlive the interpreter.
        self._over = True
        chase.join(5.0)

    def _guarded(self, scenario: Callable[[Rig], None]) -> None:
        try:
            scenario(self)
        except BaseException:
            traceback.print_exc()
            print(f"broken: {self.broken[:5]}", flush=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(1)
        self._stopping = time.monotonic()
        self.pool.stop()

    def _chase(self) -> None:
        """What the worker's service thread does."""
        while not self._over:
            self.runtime.sleep(0.05)
            self.pool.nudge()

    def check_once(self) -> None:
        """No request ended twice, and none that a child had in hand began unheard."""
        twice = [task_id for task_id, times in Counter(i for i, _ in self.done).items() if times > 1]
        assert not twice, f"done more than once: {twice[:5]}"
        if self.pool.can.survives_crash:
            unheard = {i for i, state in self.done if state == State.SUCCESS} - set(self.begun)
            assert not unheard, f"ended, and never begun: {sorted(unheard)[:5]}"

    def check_nothing_left(self) -> None:
        """Neither a descriptor nor a process more than before there was a pool."""
        self.side.close()
        files, processes = self.before
        until = time.monotonic() + NONE_LEFT_SECONDS
        while True:
            gc.collect()
            more_files = {fd: name for fd, name in descriptors().items() if files.get(fd) != name}
            more_processes = {pid: name for pid, name in relatives().items() if pid not in processes}
            if not more_files and not more_processes:
                return
            assert time.monotonic() < until, f"left behind: {more_files} {more_processes}"
            self.runtime.sleep(0.01)


class Scenario(NamedTuple):
    """One sentence of the contract, and what a pool has to be for it."""

    name: str
    body: Callable[[Rig], None]
    size: int = 10
    needs: str = ""  # a capability; a pool without it is asked for its refusal instead
    options: dict[str, Any] = {}  # noqa: RUF012  (never written)
    start: bool = True


class Book:
    """The scenarios of one module, in order."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []

    def tells(self, **properties: Any) -> Callable[[Callable[[Rig], None]], Callable[[Rig], None]]:
        def note(body: Callable[[Rig], None]) -> Callable[[Rig], None]:
            self.scenarios.append(Scenario(body.__name__, body, **properties))
            return body

        return note
