"""The guard of the hub, with threads: what it takes for a stall, and how it counts."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator

import pytest

from greenq._speedups import HoldWatch
from greenq.exceptions import ConfigError
from greenq.runtime.threads import ThreadsRuntime
from greenq.worker.stall import StallWatch
from tests.support.processes import wait_for


class Hub(ThreadsRuntime):
    """A main hub that turns when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[Callable[[], object]] = []

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        self.posted.append(lambda: fn(*args))

    def turn(self) -> None:
        while self.posted:
            self.posted.pop(0)()


@pytest.fixture
def hub() -> Hub:
    return Hub()


def test_each_stall_is_said_and_counted_once(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    watch = StallWatch(hub, 0.3)
    for stalls in (1, 2):
        watch.look()
        assert watch.stalled_for() == 0.0
        until = time.monotonic() + 0.4
        wait_for(lambda: time.monotonic() > until, 5)  # noqa: B023  (at once)
        assert watch.stalled_for() >= 0.4
        for _ in range(3):
            watch.look()
        assert watch.stats()["stalls"] == stalls
        hub.turn()
        watch.look()
        assert watch.stats()["stalls"] == stalls
        assert watch.stalled_for() == 0.0
        hub.turn()
    assert watch.stats()["longest"] >= 0.4
    said = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert len(said) == 4 and said[1::2] == ["The main hub turns again."] * 2
    assert all("the main hub does not yield" in line for line in said[::2])


def test_a_stall_nobody_looked_at_meanwhile_is_counted_too(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    watch = StallWatch(hub, 0.3)
    watch.look()
    until = time.monotonic() + 0.4
    wait_for(lambda: time.monotonic() > until, 5)
    hub.turn()
    watch.look()
    assert watch.stats()["stalls"] == 1
    hub.turn()
    watch.look()
    assert watch.stats()["stalls"] == 1
    assert watch.stats()["longest"] < 1.0


def test_off_is_off(hub: Hub) -> None:
    watch = StallWatch(hub, 0)
    watch.start()
    watch.look()
    watch.stop()
    assert not hub.posted
    assert watch.stats() == {"stalls": 0, "longest": 0.0, "stalled_for": 0.0}


@pytest.mark.parametrize("seconds", [0.01, 0.29])
def test_a_threshold_below_the_pace_of_the_looks_is_refused(hub: Hub, seconds: float) -> None:
    with pytest.raises(ConfigError, match="at least 0.3"):
        StallWatch(hub, seconds)


@pytest.fixture
def holds(hub: Hub) -> Iterator[tuple[HoldWatch, list[float]]]:
    told: list[float] = []
    watch = HoldWatch(0.3, told.append)
    thread = hub.isolated(watch.serve, name="holds")
    feeding = [True]

    def feed() -> None:
        while feeding:
            watch.feed()
            time.sleep(0.05)

    feeder = hub.isolated(feed, name="feed")
    yield watch, told
    feeding.clear()
    watch.stop()
    thread.join(2.0)
    feeder.join(2.0)
    assert not thread.alive()


def test_c_code_that_keeps_the_lock_is_noticed_where_it_returns(holds: tuple[HoldWatch, list[float]]) -> None:
    _, told = holds
    for times in (1, 2):
        ctypes.PyDLL(None).usleep(600_000)
        wait_for(lambda: len(told) == times, 2)  # noqa: B023  (at once)
        assert told[-1] == pytest.approx(0.6, abs=0.2)


def test_python_that_computes_and_c_code_that_lets_go_are_no_holds(holds: tuple[HoldWatch, list[float]]) -> None:
    _, told = holds
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        sum(range(100))
    time.sleep(0.5)  # in C, with the lock free
    assert not told


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        HoldWatch(limit, print)


def test_log_records_name_the_event(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    watch = StallWatch(hub, 0.3)
    watch.look()
    until = time.monotonic() + 0.35
    wait_for(lambda: time.monotonic() > until, 5)
    watch.look()
    assert [record.__dict__["event"] for record in caplog.records] == ["hub.stalled"]
