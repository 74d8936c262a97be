"""The autoscaler's rule, against a pool that only counts, on a clock the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from greenq import Autoscaler
from greenq.exceptions import BadArgument, ConfigError
from greenq.worker import autoscale
from greenq.worker.autoscale import autoscaler_class, keepalive_of

SUBCLASS = "tests.unit.worker.test_autoscale"


class Slots:
    """As much of a pool as an autoscaler sees."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0

    def free(self) -> int:
        return max(0, self.size - self.busy)

    def resize(self, size: int) -> None:
        self.size = size


class Demand(Autoscaler):
    """Says of itself how much is wanted."""

    wanted = 0

    @property
    def qty(self) -> int:
        return self.wanted


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(autoscale, "time", clock)
    return clock


def make(most: int = 20, least: int = 2, **options: Any) -> Demand:
    pool: Any = Slots(least)
    return Demand(pool, most, least, **options)


def step(scaler: Demand, clock: Clock, wanted: int, seconds: float = 1.0) -> int:
    """A second goes by with so many wanting a slot; returns the size."""
    clock.now += seconds
    scaler.wanted = wanted
    scaler.maybe_scale()
    return scaler.processes


def test_it_grows_at_once_to_what_is_wanted_and_no_further_than_its_maximum(clock: Clock) -> None:
    scaler = make()
    assert [step(scaler, clock, wanted) for wanted in (0, 1, 5, 19, 50)] == [2, 2, 5, 19, 20]


def test_it_shrinks_only_after_the_keepalive_and_to_what_was_needed_meanwhile(clock: Clock) -> None:
    scaler = make(keepalive=10.0)
    assert step(scaler, clock, 15) == 15
    sizes = [step(scaler, clock, 4 if second == 5 else 1) for second in range(1, 22)]
    # The burst is out of sight 10 s after it was, the one of four then 10 s after that one.
    assert sizes[:10] == [15] * 10
    assert sizes[10:15] == [4] * 5
    assert sizes[15:] == [2] * 6


def test_a_trickle_does_not_keep_a_grown_pool_large(clock: Clock) -> None:
    scaler = make(keepalive=5.0)
    step(scaler, clock, 20)
    for second in range(100):
        step(scaler, clock, second % 2, seconds=0.1)
    assert scaler.processes == 2


def test_what_is_needed_all_the_time_stays(clock: Clock) -> None:
    scaler = make(keepalive=3.0)
    assert {step(scaler, clock, 9) for _ in range(20)} == {9}


def test_a_rule_may_not_shrink_soon_after_it_grew_nor_leave_the_bounds(clock: Clock) -> None:
    scaler = make(keepalive=10.0)
    scaler.scale_up(100)
    assert scaler.processes == 20
    scaler.scale_down(5)
    assert scaler.processes == 20
    clock.now += 10.1
    scaler.scale_down(5)
    assert scaler.processes == 15
    scaler.scale_down(100)
    assert scaler.processes == 2


def test_new_bounds_count_at_once(clock: Clock) -> None:
    scaler = make()
    step(scaler, clock, 20)
    assert scaler.update(max=8) == (8, 2)
    assert scaler.processes == 8
    assert scaler.update(min=10, max=30) == (30, 10)
    assert scaler.processes == 10
    assert scaler.update() == (30, 10)
    assert step(scaler, clock, 40) == 30


@pytest.mark.parametrize("bounds", [{"max": 1}, {"min": 21}, {"min": 0}, {"max": 0, "min": 0}, {"max": 3, "min": 5}])
def test_bounds_that_cannot_be_change_nothing(bounds: dict[str, int]) -> None:
    scaler = make()
    with pytest.raises(BadArgument, match="1 <= min <= max"):
        scaler.update(**bounds)
    assert (scaler.max_concurrency, scaler.min_concurrency, scaler.processes) == (20, 2, 2)


def test_info_is_what_stats_shows() -> None:
    scaler = make(8, 2)
    scaler.wanted = 6
    assert scaler.info() == {"max": 8, "min": 2, "current": 2, "qty": 6}


def test_its_appetite_doubles_the_pool_and_ends_at_the_maximum() -> None:
    scaler = make(20, 2)
    sizes = []
    while scaler.appetite():
        scaler.pool.resize(scaler.processes + scaler.appetite())
        sizes.append(scaler.processes)
    assert sizes == [4, 8, 16, 20]


def test_a_minimum_of_none_is_one() -> None:
    pool: Any = Slots(1)
    assert Autoscaler(pool, 5).min_concurrency == 1
    assert Autoscaler(pool, 5, 0).min_concurrency == 1


def test_without_a_worker_it_counts_the_busy_slots() -> None:
    pool: Any = Slots(5)
    pool.busy = 3
    assert Autoscaler(pool, 5, 1).qty == 3


@pytest.mark.parametrize(("environ", "seconds"), [({}, 30.0), ({"AUTOSCALE_KEEPALIVE": "2.5"}, 2.5)])
def test_the_keepalive_comes_from_the_environment(environ: dict[str, str], seconds: float) -> None:
    assert keepalive_of(environ) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_keepalive_that_is_no_number_of_seconds_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="AUTOSCALE_KEEPALIVE="):
        keepalive_of({"AUTOSCALE_KEEPALIVE": text})


@pytest.mark.parametrize("path", ["celery.worker.autoscale:Autoscaler", "greenq:Autoscaler"])
def test_the_default_of_the_setting_is_our_own_class(path: str) -> None:
    assert autoscaler_class(path) is Autoscaler


@pytest.mark.parametrize("path", [f"{SUBCLASS}:Demand", f"{SUBCLASS}.Demand"])
def test_a_subclass_is_found_in_both_spellings(path: str) -> None:
    assert autoscaler_class(path).__name__ == "Demand"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nosuchmodule:X", "No module named 'nosuchmodule'"),
        (f"{SUBCLASS}:Nothing", "has no attribute 'Nothing'"),
        ("plain", "write module:Class"),
        ("", "write module:Class"),
        (f"{SUBCLASS}:Slots", "is no subclass of `greenq.Autoscaler`"),
        (f"{SUBCLASS}:make", "is no subclass of `greenq.Autoscaler`"),
        ("time.monotonic", "is no subclass of `greenq.Autoscaler`"),
    ],
)
def test_what_is_no_autoscaler_is_refused_by_name(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match="setting worker_autoscaler = ") as caught:
        autoscaler_class(path)
    assert why in str(caught.value)
