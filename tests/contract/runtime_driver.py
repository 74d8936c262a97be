"""Runs one scenario of the Runtime contract in a process of its own: `runtime_driver.py RUNTIME SCENARIO`.

pytest itself stays unpatched; a green runtime needs a patched process. A scenario raises when the contract is
broken; the process then exits 1 with the traceback.
"""

from __future__ import annotations

import sys

from greenq.runtime.patching import patch

patch(sys.argv[1])

import importlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from greenq._speedups import Timer  # noqa: E402
from greenq.runtime.base import GreenRuntime, Runtime  # noqa: E402
from greenq.runtime.timers import Timers  # noqa: E402

RUNTIMES = {
    "eventlet": "greenq.runtime.eventlet:EventletRuntime",
    "gevent": "greenq.runtime.gevent:GeventRuntime",
    "threads": "greenq.runtime.threads:ThreadsRuntime",
}
SLACK = 3.0  # seconds a busy machine may be late


def make() -> Runtime:
    module, _, name = RUNTIMES[sys.argv[1]].partition(":")
    made: Runtime = getattr(importlib.import_module(module), name)()
    made.attach()
    return made


def until(runtime: Runtime, condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        runtime.sleep(0.005)


def compute(seconds: float) -> None:
    """Use the processor without ever waiting: nothing else of this hub runs meanwhile."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def original(module: str, name: str) -> Callable[..., Any]:
    """A function of the standard library as it was before patching."""
    if sys.argv[1] == "threads":
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found
    if sys.argv[1] == "eventlet":
        kept: Callable[..., Any] = getattr(importlib.import_module("eventlet.patcher").original(module), name)
        return kept
    patched: Callable[..., Any] = importlib.import_module("gevent.monkey").get_original(module, name)
    return patched


class Heard(logging.Handler):
    """What is logged, and what `failed` is told."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.names: list[str] = []
        runtime.failed = self.names.append
        logging.getLogger("greenq").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def a_spawned_fiber_runs_beside_its_caller_and_can_be_joined(runtime: Runtime) -> None:
    seen: list[Any] = []
    go = runtime.event()

    def body(*args: object) -> None:
        go.wait()
        seen.extend(args)

    fiber = runtime.spawn(body, 1, "two", name="body")
    assert fiber.alive()
    began = time.monotonic()
    fiber.join(0.2)
    assert 0.15 < time.monotonic() - began < SLACK
    assert fiber.alive()
    assert seen == []
    go.set()
    fiber.join()
    assert not fiber.alive()
    assert seen == [1, "two"]
    fiber.join()


def fibers_of_one_hub_switch_only_when_they_wait_if_green(runtime: Runtime) -> None:
    assert runtime.green == (sys.argv[1] != "threads")
    assert runtime.name == sys.argv[1]
    ran: list[int] = []
    fiber = runtime.spawn(ran.append, 1, name="other")
    compute(0.2)
    assert bool(ran) is not runtime.green
    fiber.join(5.0)
    assert ran == [1]


def a_sleep_lets_others_run_and_lasts_as_long_as_said(runtime: Runtime) -> None:
    order: list[str] = []
    fibers = [runtime.spawn(order.append, name, name=name) for name in "ab"]
    until(runtime, lambda: len(order) == 2)
    assert order == ["a", "b"]
    for fiber in fibers:
        fiber.join(5.0)
    wakings: list[tuple[float, float]] = []

    def nap(seconds: float) -> None:
        began = time.monotonic()
        runtime.sleep(seconds)
        wakings.append((seconds, time.monotonic() - began))

    naps = [runtime.spawn(nap, seconds, name="nap") for seconds in (0.6, 0.2, 0.4)]
    began = time.monotonic()
    for one in naps:
        one.join(10.0)
    assert [seconds for seconds, _ in wakings] == [0.2, 0.4, 0.6]
    assert all(lasted > seconds - 0.01 for seconds, lasted in wakings), wakings
    assert time.monotonic() - began < 1.1 + SLACK
    ran: list[int] = []
    runtime.spawn(ran.append, 1, name="other")
    deadline = time.monotonic() + 5.0
    while not ran and time.monotonic() < deadline:
        runtime.sleep(0)
    assert ran == [1]


def an_exception_in_a_spawned_fiber_is_logged_and_told(runtime: Runtime) -> None:
    heard = Heard(runtime)

    def body() -> None:
        raise ValueError("nobody may lose this")

    runtime.spawn(body, name="the-spawned").join(5.0)
    until(runtime, lambda: heard.names and heard.records)
    assert heard.names == ["the-spawned"]
    (record,) = heard.records
    assert record.levelno >= logging.ERROR
    assert "the-spawned" in record.getMessage()
    assert record.exc_info and "nobody may lose this" in str(record.exc_info[1])


def an_exception_in_an_isolated_fiber_is_logged_and_told(runtime: Runtime) -> None:
    heard = Heard(runtime)

    def body() -> None:
        raise ValueError("nor this")

    fiber = runtime.isolated(body, name="the-isolated")
    until(runtime, lambda: heard.names and heard.records)
    fiber.join(5.0)
    assert not fiber.alive()
    assert heard.names == ["the-isolated"]
    assert "nor this" in str((heard.records[0].exc_info or (None, None))[1])


def an_exception_in_a_posted_call_is_logged_and_the_next_ones_run(runtime: Runtime) -> None:
    heard = Heard(runtime)
    ran: list[int] = []
    runtime.call_soon(lambda: 1 // 0)
    runtime.call_soon(ran.append, 1)
    until(runtime, lambda: ran)
    assert len(heard.records) == 1
    assert heard.records[0].exc_info


def isolated_goes_on_while_the_main_hub_computes(runtime: Runtime) -> None:
    ticks: list[float] = []
    threads: list[int] = []
    over: list[bool] = []

    def tick() -> None:
        threads.append(runtime.thread())
        while not over:
            ticks.append(time.monotonic())
            runtime.sleep(0.02)

    fiber = runtime.isolated(tick, name="tick")
    until(runtime, lambda: ticks)
    assert fiber.alive()
    before = len(ticks)
    compute(1.0)
    assert len(ticks) - before >= 10, len(ticks) - before
    over.append(True)
    fiber.join(5.0)
    assert not fiber.alive()
    assert threads != [runtime.thread()]


def calls_posted_from_any_thread_run_on_the_main_hub_in_order(runtime: Runtime) -> None:
    ran: list[tuple[str, int]] = []
    threads: set[int] = set()

    def note(who: str, number: int) -> None:
        threads.add(runtime.thread())
        ran.append((who, number))

    def post_all(who: str) -> None:
        for number in range(500):
            runtime.call_soon(note, who, number)

    fibers = [runtime.isolated(lambda who=who: post_all(who), name=who) for who in ("a", "b")]  # type: ignore[misc]
    post_all("here")
    until(runtime, lambda: len(ran) == 1500)
    for who in ("a", "b", "here"):
        assert [number for name, number in ran if name == who] == list(range(500))
    assert len(threads) == 1
    if runtime.green:
        assert threads == {runtime.thread()}
    for fiber in fibers:
        fiber.join(5.0)


def a_posted_call_wakes_a_hub_that_waits(runtime: Runtime) -> None:
    called = runtime.event()

    def later() -> None:
        runtime.sleep(0.2)
        runtime.call_soon(called.set)

    fiber = runtime.isolated(later, name="later")
    began = time.monotonic()
    assert called.wait(20.0)
    assert time.monotonic() - began < SLACK
    fiber.join(5.0)


def an_offloaded_call_returns_its_value_without_blocking_the_hub(runtime: Runtime) -> None:
    ticks: list[int] = []
    over: list[bool] = []

    def tick() -> None:
        while not over:
            ticks.append(1)
            runtime.sleep(0.02)

    def end(seconds: float, write: int) -> None:
        original("time", "sleep")(seconds)
        os.write(write, b"x")

    def blocks(seconds: float) -> str:
        read, write = os.pipe()  # a read in C that nothing makes cooperative
        original("_thread", "start_new_thread")(end, (seconds, write))
        try:
            return os.read(read, 1).decode()
        finally:
            os.close(read)
            os.close(write)

    fiber = runtime.spawn(tick, name="tick")
    until(runtime, lambda: ticks)
    before = len(ticks)
    assert runtime.offload(blocks, 0.6) == "x"
    assert len(ticks) - before >= 8, len(ticks) - before
    over.append(True)
    fiber.join(5.0)


def an_offloaded_call_raises_what_the_call_raised(runtime: Runtime) -> None:
    def fails(text: str) -> None:
        raise LookupError(text)

    for _ in range(2):
        try:
            runtime.offload(fails, "mine")
        except LookupError as error:
            assert error.args == ("mine",)
        else:
            raise AssertionError("the error was lost")
    said: list[int] = []
    fiber = runtime.isolated(lambda: said.append(runtime.offload(len, "abc")), name="offload")
    until(runtime, lambda: said == [3])
    fiber.join(5.0)


def an_event_wakes_all_who_wait_and_times_out_the_others(runtime: Runtime) -> None:
    event = runtime.event()
    woken: list[int] = []

    def wait(number: int) -> None:
        assert event.wait() is True
        woken.append(number)

    assert not event.is_set()
    began = time.monotonic()
    assert event.wait(0.2) is False
    assert 0.15 < time.monotonic() - began < SLACK
    fibers = [runtime.spawn(wait, number, name=f"waiter{number}") for number in range(10)]
    runtime.sleep(0.05)
    assert woken == []
    event.set()
    until(runtime, lambda: len(woken) == 10)
    for fiber in fibers:
        fiber.join(5.0)
    assert event.is_set()
    assert event.wait(0.0) is True
    event.clear()
    assert not event.is_set()
    assert event.wait(0.0) is False


def a_lock_keeps_fibers_and_threads_apart(runtime: Runtime) -> None:
    lock = runtime.lock()
    inside: list[int] = []
    overlaps: list[int] = []
    rounds: list[int] = []

    def enter(number: int) -> None:
        for _ in range(10):
            with lock:
                inside.append(number)
                runtime.sleep(0.001)
                if len(inside) > 1:
                    overlaps.append(number)
                inside.remove(number)
            rounds.append(number)
            runtime.sleep(0)

    fibers = [runtime.spawn(enter, number, name=f"fiber{number}") for number in range(4)]
    fibers += [runtime.isolated(lambda n=n: enter(n), name=f"thread{n}") for n in (10, 11)]  # type: ignore[misc]
    until(runtime, lambda: len(rounds) == 60, 20.0)
    for fiber in fibers:
        fiber.join(5.0)
    assert overlaps == []


def the_locks_of_the_standard_library_keep_fibers_and_threads_apart(runtime: Runtime) -> None:
    """Every library has some, and logging has one that each thread takes."""
    for lock in (threading.Lock(), threading.RLock()):
        inside: list[int] = []
        overlaps: list[int] = []
        rounds: list[int] = []

        def enter(number: int, lock: Any = lock, inside: Any = inside, overlaps: Any = overlaps) -> None:
            for turn in range(40):
                with lock:
                    inside.append(number)
                    if turn % 4 == 0:
                        runtime.sleep(0.0005)
                    else:
                        compute(0.0005)
                    if len(inside) > 1:
                        overlaps.append(number)
                    inside.remove(number)
                rounds.append(number)  # noqa: B023  (waited for at once)

        fibers = [runtime.spawn(enter, number, name=f"fiber{number}") for number in range(3)]
        fibers += [runtime.isolated(lambda n=n: enter(n), name=f"thread{n}") for n in (10, 11)]  # type: ignore[misc]
        until(runtime, lambda: len(rounds) == 200, 20.0)  # noqa: B023
        for fiber in fibers:
            fiber.join(5.0)
        assert overlaps == []
        assert not getattr(lock, "locked", lambda: False)()


def threads_that_log_at_once_lose_no_line(runtime: Runtime) -> None:
    class Waits(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.args).endswith("0)"):
                runtime.sleep(0.001)  # as a handler does that writes to a socket
            lines.append(record.getMessage())

    lines: list[str] = []
    logger = logging.getLogger("somebody")
    logger.addHandler(Waits())

    def log(who: str) -> None:
        for number in range(200):
            logger.warning("%s %d", who, number)

    fibers = [runtime.isolated(lambda who=who: log(who), name=who) for who in ("x", "y")]  # type: ignore[misc]
    fibers += [runtime.spawn(log, who, name=who) for who in ("a", "b")]
    for fiber in fibers:
        fiber.join(20.0)
        assert not fiber.alive(), len(lines)
    assert len(lines) == 800


def a_fiber_that_is_ended_while_it_waits_for_a_lock_holds_up_nobody(runtime: Runtime) -> None:
    if not runtime.green:
        return  # nothing ends a thread
    green: GreenRuntime = runtime  # type: ignore[assignment]
    lock = runtime.lock()
    taken: list[str] = []

    def want(name: str) -> None:
        try:
            with lock:
                taken.append(name)
        except ValueError:
            taken.append(f"{name} ended")

    with lock:
        victims = [green.greenlet(want, f"victim{number}") for number in range(3)]
        others = [green.greenlet(want, f"other{number}") for number in range(2)]
        for one in (victims[0], others[0], victims[1], others[1], victims[2]):
            green.wake(one)
        runtime.sleep(0.01)
        for victim in victims[:2]:
            runtime.call_soon(victim.throw, ValueError())
        until(runtime, lambda: len(taken) == 2)
    runtime.call_soon(victims[2].throw, ValueError())
    until(runtime, lambda: len(taken) == 5)
    assert sorted(taken)[:2] == ["other0", "other1"]
    with lock:
        pass


def an_isolated_fiber_leaves_no_descriptor_behind(runtime: Runtime) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def body() -> None:
        runtime.sleep(0.001)
        inner = runtime.spawn(runtime.sleep, 0.001, name="inner")
        inner.join(5.0)
        with lock:
            runtime.sleep(0.001)

    lock = runtime.lock()
    for _ in range(2):  # what is made once and kept is made in the first round
        before = opened()
        fibers = [runtime.isolated(body, name="short") for _ in range(20)]
        for fiber in fibers:
            fiber.join(10.0)
            assert not fiber.alive()
    until(runtime, lambda: opened() <= before)


def a_native_thread_has_an_identity_of_its_own_and_fibers_of_a_hub_share_theirs(runtime: Runtime) -> None:
    seen: dict[str, int] = {}
    fibers = [
        runtime.spawn(lambda: seen.update(fiber=runtime.thread()), name="fiber"),
        runtime.isolated(lambda: seen.update(isolated=runtime.thread()), name="isolated"),
    ]
    until(runtime, lambda: len(seen) == 2)
    for fiber in fibers:
        fiber.join(5.0)
    assert seen["isolated"] != runtime.thread()
    assert (seen["fiber"] == runtime.thread()) is runtime.green


def after_a_fork_no_fiber_of_the_parent_runs_in_the_child(runtime: Runtime) -> None:
    ticks: list[int] = []
    over: list[bool] = []

    def tick() -> None:
        while not over:
            ticks.append(os.getpid())
            runtime.sleep(0.01)

    fiber = runtime.spawn(tick, name="tick")
    until(runtime, lambda: ticks)
    child = os.fork()
    if child == 0:
        runtime.alone()
        time.sleep(0.3)
        os._exit(os.getpid() in ticks)
    until(runtime, lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
    assert fiber.alive()
    over.append(True)
    fiber.join(5.0)


def a_child_that_ends_before_its_parent_looks_is_waited_for(runtime: Runtime) -> None:
    """The first child of a process: nobody has asked to hear of children yet."""
    os.register_at_fork(after_in_parent=lambda: compute(0.2))
    pid = os.fork()
    if not pid:
        os._exit(7)
    codes: list[int] = []
    runtime.spawn(lambda: codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), name="waiting")
    until(runtime, lambda: codes)
    assert codes == [7]


def a_parked_greenlet_goes_on_when_it_is_woken(runtime: Runtime) -> None:
    if not runtime.green:
        assert not hasattr(runtime, "park"), "only a green runtime has bare greenlets"
        return
    green: GreenRuntime = runtime  # type: ignore[assignment]
    steps: list[Any] = []

    def body(value: str) -> None:
        steps.append(value)
        green.park()
        steps.append("woken")
        green.pause()
        steps.append(green.current())

    made = green.greenlet(body, "started")
    runtime.sleep(0.02)
    assert steps == []
    green.wake(made)
    assert steps == []
    until(runtime, lambda: steps == ["started"])
    runtime.sleep(0.05)
    assert steps == ["started"]
    green.wake(made)
    until(runtime, lambda: len(steps) == 3)
    assert steps == ["started", "woken", made]


def timers_go_off_in_order_never_early_and_not_once_cancelled(runtime: Runtime) -> None:
    timers = Timers(runtime)
    timers.start()
    fired: list[tuple[str, float]] = []
    now = time.monotonic()

    def at(delay: float, name: str) -> Timer:
        return timers.at(now + delay, lambda: fired.append((name, time.monotonic() - now - delay)))

    at(0.4, "third")
    at(0.2, "first")
    at(0.3, "never").cancel()
    at(0.2, "second")
    runtime.sleep(0.02)
    fiber = runtime.isolated(lambda: at(0.1, "from a thread"), name="other")
    assert timers.pending() >= 3
    until(runtime, lambda: len(fired) == 4)
    assert [name for name, _ in fired] == ["from a thread", "first", "second", "third"]
    assert all(0 <= late < SLACK for _, late in fired), fired
    assert timers.pending() == 0
    fiber.join(5.0)
    at(0.0, "late")
    until(runtime, lambda: len(fired) == 5)
    timers.stop()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        a_spawned_fiber_runs_beside_its_caller_and_can_be_joined,
        fibers_of_one_hub_switch_only_when_they_wait_if_green,
        a_sleep_lets_others_run_and_lasts_as_long_as_said,
        an_exception_in_a_spawned_fiber_is_logged_and_told,
        an_exception_in_an_isolated_fiber_is_logged_and_told,
        an_exception_in_a_posted_call_is_logged_and_the_next_ones_run,
        isolated_goes_on_while_the_main_hub_computes,
        calls_posted_from_any_thread_run_on_the_main_hub_in_order,
        a_posted_call_wakes_a_hub_that_waits,
        an_offloaded_call_returns_its_value_without_blocking_the_hub,
        an_offloaded_call_raises_what_the_call_raised,
        an_event_wakes_all_who_wait_and_times_out_the_others,
        a_lock_keeps_fibers_and_threads_apart,
        the_locks_of_the_standard_library_keep_fibers_and_threads_apart,
        threads_that_log_at_once_lose_no_line,
        a_fiber_that_is_ended_while_it_waits_for_a_lock_holds_up_nobody,
        an_isolated_fiber_leaves_no_descriptor_behind,
        a_native_thread_has_an_identity_of_its_own_and_fibers_of_a_hub_share_theirs,
        after_a_fork_no_fiber_of_the_parent_runs_in_the_child,
        a_child_that_ends_before_its_parent_looks_is_waited_for,
        a_parked_greenlet_goes_on_when_it_is_woken,
        timers_go_off_in_order_never_early_and_not_once_cancelled,
    )
}

if __name__ == "__main__":
    if sys.argv[2] == "list":
        print("\n".join(SCENARIOS))
    else:
        SCENARIOS[sys.argv[2]](make())
        print("kept")
