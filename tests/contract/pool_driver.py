"""Runs one scenario of the pool contract in a process of its own: `pool_driver.py POOL SCENARIO`.

pytest itself stays unpatched; a green pool needs a patched process. A scenario raises when the contract is
broken; the process then exits 1 with the traceback.
"""

from __future__ import annotations

import sys

from greenq.runtime.patching import patch

patch(sys.argv[1])

import gc  # noqa: E402
import json  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import weakref  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

from greenq._speedups import decode_parts  # noqa: E402
from greenq.exceptions import ColdStop, Killed, PoolCannot, PoolClosed, PoolFull  # noqa: E402
from greenq.model import Outcome, Request, State  # noqa: E402
from greenq.pools import table  # noqa: E402
from greenq.pools.base import PoolOptions  # noqa: E402

made = table.load(sys.argv[1])
SIZES = {"solo": 1}


def request(task_id: str) -> Request:
    return decode_parts(
        {"task": "t", "id": task_id}, {}, "application/json", "utf-8", "[[], {}, {}]", "celery", task_id
    )


class Rig:
    """A pool whose tasks are plain functions, and the record of what it said."""

    def __init__(self, size: int) -> None:
        self.size = SIZES.get(sys.argv[1], size)
        self.runtime = made.make_runtime()
        self.runtime.attach()
        self.pool = made.make_pool(PoolOptions(self.size), self.runtime)
        self.bodies: dict[str, Callable[[], Any]] = {}
        self.done: list[tuple[str, str]] = []
        self.line: list[Request] = []
        self.broken: list[str] = []
        self.over = False

    def run(self, request: Request) -> Outcome:
        try:
            request.state = "running"
            self.bodies[request.id]()
            request.state = "finishing"
        except BaseException as error:  # as the executor does
            request.state = "finishing"
            return Outcome(request, type(error).__name__)
        return Outcome(request, State.SUCCESS)

    def finished(self, request: Request, outcome: Outcome) -> None:
        self.done.append((request.id, outcome.state))
        if not 0 <= self.pool.free() <= self.pool.size:
            self.broken.append(f"free() is {self.pool.free()} of {self.pool.size}")
        while self.line and self.pool.free():
            self.pool.submit(self.line.pop(0))

    def play(self, scenario: Callable[[Rig], None]) -> None:
        """Run the scenario beside the pool's main thread."""
        failure: list[BaseException] = []

        def body() -> None:
            try:
                scenario(self)
            except BaseException as error:
                failure.append(error)
            finally:
                self.pool.stop()

        self.pool.start(self.run, lambda request, outcome: self.finished(request, outcome))
        chase = self.runtime.isolated(self.chase, name="chase")
        self.runtime.spawn(body, name="scenario")
        self.pool.serve()
        # A native thread with a hub of its own may not outlive the interpreter.
        self.over = True
        chase.join(5.0)
        if failure:
            raise failure[0]
        assert not self.broken, self.broken

    def chase(self) -> None:
        while not self.over:
            self.runtime.sleep(0.05)
            self.pool.nudge()

    def add(self, task_id: str, body: Callable[[], Any]) -> Request:
        self.bodies[task_id] = body
        return request(task_id)

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"not within {seconds} s; done so far: {self.done[-5:]}"
            self.runtime.sleep(0.005)


def every_request_is_done_once(rig: Rig) -> None:
    rig.line = [rig.add(str(n), lambda: None) for n in range(5000)]
    rig.pool.submit(rig.line.pop(0))
    rig.wait(lambda: len(rig.done) == 5000)
    assert sorted(task_id for task_id, _ in rig.done) == sorted(map(str, range(5000)))
    assert rig.pool.free() == rig.size


def whatever_is_raised_ends_only_its_task(rig: Rig) -> None:
    class Odd(BaseException):
        pass

    errors = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, Odd, MemoryError, RecursionError]
    for error in errors:

        def body(error: type[BaseException] = error) -> None:
            raise error

        rig.line.append(rig.add(error.__name__, body))
    rig.line.append(rig.add("last", lambda: None))
    rig.pool.submit(rig.line.pop(0))
    rig.wait(lambda: len(rig.done) == len(errors) + 1)
    assert dict(rig.done) == {e.__name__: e.__name__ for e in errors} | {"last": "SUCCESS"}


def a_full_pool_refuses(rig: Rig) -> None:
    gate = threading.Event()
    for n in range(rig.size):
        rig.pool.submit(rig.add(str(n), gate.wait))
    assert rig.pool.free() == 0
    try:
        rig.pool.submit(rig.add("over", lambda: None))
    except PoolFull:
        pass
    else:
        raise AssertionError("a full pool took one more")
    gate.set()
    rig.wait(lambda: len(rig.done) == rig.size)


def after_drain_nothing_starts(rig: Rig) -> None:
    rig.pool.submit(rig.add("slow", lambda: time.sleep(0.3)))
    rig.wait(lambda: rig.pool.free() < rig.size)
    assert rig.pool.drain(0.05) is False
    assert rig.pool.drain(5.0) is True
    assert rig.done == [("slow", "SUCCESS")]
    try:
        rig.pool.submit(rig.add("late", lambda: None))
    except PoolClosed:
        return
    raise AssertionError("a drained pool took one more")


def drain_waits_until_everything_was_told(rig: Rig) -> None:
    told: list[str] = []
    real = rig.finished

    def slow(request: Request, outcome: Outcome) -> None:
        rig.runtime.sleep(0.2)
        real(request, outcome)
        told.append(request.id)

    rig.finished = slow  # type: ignore[method-assign]
    rig.pool.submit(rig.add("one", lambda: None))
    rig.wait(lambda: rig.pool.free() == rig.size)
    assert rig.pool.drain(5.0) is True
    assert told == ["one"]


def a_waiting_task_can_be_killed(rig: Rig) -> None:
    left, right = socket.socketpair()
    for name, body in (("sleep", lambda: time.sleep(30)), ("socket", lambda: left.recv(1))):
        victim = rig.add(name, body)
        rig.pool.submit(victim)
        rig.wait(lambda: victim.state == "running")  # noqa: B023  (waited for at once)
        rig.runtime.sleep(0.05)
        began = time.monotonic()
        rig.pool.kill(victim, Killed("test"))
        rig.wait(lambda: dict(rig.done).get(name) == "Killed")  # noqa: B023
        assert time.monotonic() - began < 1.0
    right.close()
    left.close()


def a_computing_task_can_be_killed_from_a_thread(rig: Rig) -> None:
    def compute() -> None:
        while True:
            sum(range(1000))

    victim = rig.add("busy", compute)

    def killer() -> None:
        while victim.state != "running":
            rig.runtime.sleep(0.01)
        rig.pool.kill(victim, ColdStop("test"))

    rig.runtime.isolated(killer, name="killer")
    rig.pool.submit(victim)
    rig.wait(lambda: bool(rig.done), 5.0)
    assert rig.done == [("busy", "ColdStop")]


def a_swallowed_exception_class_does_not_stop_a_kill(rig: Rig) -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    victim = rig.add("stubborn", stubborn)
    rig.pool.submit(victim)
    rig.wait(lambda: victim.state == "running")
    rig.pool.kill(victim, Killed("test"))
    rig.wait(lambda: dict(rig.done).get("stubborn") == "Killed")


def a_kill_never_hits_a_bystander(rig: Rig) -> None:
    """Hundreds of kills at the moment the tasks end; whoever is hit must be the one that was named."""
    hit: list[str] = []
    rounds = 400

    def body(task_id: str) -> Callable[[], None]:
        def run() -> None:
            try:
                until = time.perf_counter() + 0.002
                while time.perf_counter() < until:
                    pass
                time.sleep(0)
            except Killed as error:
                assert error.args == (task_id,), (error.args, task_id)
                hit.append(task_id)
                raise

        return run

    stop = threading.Event()

    def bystander() -> None:
        try:
            while not stop.is_set():
                time.sleep(0.001)
        except Killed:
            rig.broken.append("a bystander was hit")

    others = 0
    if rig.size > 3:
        for others in (1, 2):
            rig.pool.submit(rig.add(f"bystander{others}", bystander))
    for n in range(rounds):
        victim = rig.add(str(n), body(str(n)))
        rig.wait(lambda: rig.pool.free() > 0)
        rig.pool.submit(victim)
        if n % 3:
            rig.runtime.sleep(0.001 * (n % 4))
        rig.pool.kill(victim, Killed(str(n)))
    rig.wait(lambda: len(rig.done) >= rounds)
    stop.set()
    rig.wait(lambda: len(rig.done) == rounds + others)
    wrong = [(i, s) for i, s in rig.done if s not in ("SUCCESS", "Killed")]
    assert not wrong, wrong
    assert not rig.broken, rig.broken


def nothing_keeps_a_reference(rig: Rig) -> None:
    class Big:
        pass

    big = Big()
    seen = weakref.ref(big)

    def body(big: Any = big) -> None:
        assert big

    kept = rig.add("one", body)
    del big, body
    rig.pool.submit(kept)
    del kept
    rig.wait(lambda: bool(rig.done))
    rig.bodies.clear()
    rig.line.append(rig.add("two", lambda: None))
    rig.pool.submit(rig.line.pop())
    rig.wait(lambda: len(rig.done) == 2)
    rig.bodies.clear()
    gc.collect()
    assert seen() is None


def stopping_twice_and_before_start_is_legal(rig: Rig) -> None:
    rig.pool.stop()
    rig.pool.stop()
    assert rig.pool.drain(1.0) is True
    stats = rig.pool.stats()
    assert stats["max-concurrency"] == rig.size
    json.dumps(stats)


def resizing_interrupts_nothing(rig: Rig) -> None:
    if not rig.pool.can.resize:
        try:
            rig.pool.resize(3)
        except PoolCannot:
            return
        raise AssertionError("a pool that cannot be resized said it had been")
    gate = threading.Event()
    for n in range(rig.size):
        rig.pool.submit(rig.add(str(n), gate.wait))
    rig.pool.resize(1)
    assert rig.pool.free() == 0
    gate.set()
    rig.wait(lambda: len(rig.done) == rig.size)
    rig.wait(lambda: rig.pool.free() == 1)
    rig.pool.resize(50)
    gate.clear()
    for n in range(50):
        rig.pool.submit(rig.add(f"more{n}", gate.wait))
    assert rig.pool.free() == 0
    gate.set()
    rig.wait(lambda: len(rig.done) == rig.size + 50)
    assert all(state == "SUCCESS" for _, state in rig.done)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        every_request_is_done_once,
        whatever_is_raised_ends_only_its_task,
        a_full_pool_refuses,
        after_drain_nothing_starts,
        drain_waits_until_everything_was_told,
        a_waiting_task_can_be_killed,
        a_computing_task_can_be_killed_from_a_thread,
        a_swallowed_exception_class_does_not_stop_a_kill,
        a_kill_never_hits_a_bystander,
        nothing_keeps_a_reference,
        stopping_twice_and_before_start_is_legal,
        resizing_interrupts_nothing,
    )
}

if __name__ == "__main__":
    if sys.argv[2] == "list":
        print("\n".join(SCENARIOS))
    else:
        Rig(10).play(SCENARIOS[sys.argv[2]])
        print("kept")
