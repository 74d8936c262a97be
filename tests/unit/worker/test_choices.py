"""What settings and command line make of the pool, and what they may not ask of it."""

from __future__ import annotations

from typing import Any

import pytest

from greenq import hostinfo
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.pools import table
from greenq.pools.base import refuse_recycling
from greenq.worker.choices import bounds, most_by_command, multiplier_of, pool_options, size_of
from greenq.worker.options import WorkerOptions

CPUS = hostinfo.cpus()


def conf(**settings: Any) -> Settings:
    made = Settings({})
    made.update(settings)
    return made


@pytest.mark.parametrize(
    ("pool", "given", "settings", "size"),
    [
        ("gevent", None, {}, 100),
        ("eventlet", None, {}, 100),
        ("solo", None, {}, 1),
        ("prefork", None, {}, CPUS),
        ("gevent", "auto", {"worker_concurrency": 7}, 100),
        ("prefork", "auto", {"worker_concurrency": 7}, CPUS),
        ("solo", "auto", {"worker_concurrency": 7}, 1),
        ("gevent", 0, {"worker_concurrency": 7}, 7),
        ("gevent", None, {"worker_concurrency": "auto"}, 100),
        ("prefork", 0, {"worker_concurrency": 0}, CPUS),
        ("prefork", 3, {"worker_concurrency": 7}, 3),
    ],
)
def test_the_size_comes_from_the_line_then_the_settings_then_the_pool(
    pool: str, given: Any, settings: dict[str, Any], size: int
) -> None:
    found = size_of(WorkerOptions(pool=pool, concurrency=given), conf(**settings))
    assert (found.first, found.most, found.least, found.scales) == (size, size, size, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "prefork"}, f"{CPUS} child{'ren' if CPUS > 1 else ''} (one per CPU)"),
        ({"pool": "prefork", "concurrency": 1}, "1 child"),
        ({"pool": "gevent"}, "100 slots"),
        ({"pool": "solo"}, "1 slot"),
        ({"pool": "gevent", "autoscale": (200, 2)}, "2 to 200 slots (autoscale)"),
        ({"pool": "prefork", "autoscale": (4,)}, "1 to 4 children (autoscale)"),
    ],
)
def test_the_banner_says_how_many_and_why(options: dict[str, Any], words: str) -> None:
    assert size_of(WorkerOptions(**options), conf()).words == words


@pytest.mark.parametrize(
    ("given", "most_least"),
    [((10, 3), (10, 3)), ((3, 10), (10, 3)), ((10,), (10, 1)), ((10, 0), (10, 1)), ((5, 5), (5, 5))],
)
def test_the_bounds_come_in_any_order(given: tuple[int, ...], most_least: tuple[int, int]) -> None:
    assert bounds(given) == most_least
    size = size_of(WorkerOptions(autoscale=given), conf())
    assert (size.first, size.most, size.least, size.scales) == (most_least[1], *most_least, True)


@pytest.mark.parametrize("given", [(), (1, 2, 3), (0,), (0, 0), (-1,), (5, -1)])
def test_bounds_that_cannot_be_are_refused(given: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--autoscale takes one or two numbers"):
        bounds(given)


@pytest.mark.parametrize(
    ("pool", "given", "why"), [("solo", (4, 2), "exactly one slot"), ("prefork", (10**6, 2), "at most")]
)
def test_a_pool_that_cannot_scale_so_refuses(pool: str, given: tuple[int, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        size_of(WorkerOptions(pool=pool, autoscale=given), conf())


@pytest.mark.parametrize("pool", sorted(table.POOLS))
def test_every_pool_has_a_usual_size_and_a_bound_for_commands(pool: str) -> None:
    usual = size_of(WorkerOptions(pool=pool), conf()).first
    assert 1 <= usual <= most_by_command(pool) <= 50_000


@pytest.mark.parametrize(("given", "multiplier"), [(None, 4), (0, 4), (2, 2)])
def test_a_multiplier_of_0_on_the_line_is_what_the_settings_say(given: int | None, multiplier: int) -> None:
    assert multiplier_of(WorkerOptions(prefetch_multiplier=given), conf()) == multiplier


def test_a_multiplier_of_0_in_the_settings_is_no_limit() -> None:
    assert multiplier_of(WorkerOptions(), conf(worker_prefetch_multiplier=0)) == 0


def test_prefork_gets_what_was_asked_for() -> None:
    settings = conf(worker_max_tasks_per_child=5, worker_max_memory_per_child=9000, worker_proc_alive_timeout=2.5)
    made = pool_options(WorkerOptions(pool="prefork"), settings, 3)
    assert (made.size, made.max_tasks, made.max_memory, made.alive_timeout) == (3, 5, 9000, 2.5)


@pytest.mark.parametrize(
    ("optimization", "multiplier", "ahead"),
    [("fair", 4, 0), ("default", 4, 3), ("default", 1, 0), ("default", 0, 3)],
)
def test_only_the_default_optimization_hands_over_ahead(optimization: str, multiplier: int, ahead: int) -> None:
    options = WorkerOptions(pool="prefork", optimization=optimization)
    assert pool_options(options, conf(worker_prefetch_multiplier=multiplier), 1).ahead == ahead


@pytest.mark.parametrize(
    ("pool", "options", "settings", "why"),
    [
        ("gevent", {"optimization": "default"}, {}, "-O default hands a busy child process its next task"),
        ("solo", {"optimization": "default"}, {}, "leave -O out"),
        ("gevent", {}, {"task_soft_time_limit": 10, "task_time_limit": 5}, r"10 s \(app.conf\), is above"),
        ("prefork", {}, {"worker_pool_start_method": "spawn"}, "there is only 'fork'"),
        ("gevent", {}, {"worker_pool_start_method": "spawn"}, "there is only 'fork'"),
        ("prefork", {}, {"worker_max_tasks_per_child": -1}, "write a positive number, or None"),
        ("prefork", {}, {"worker_max_memory_per_child": -1}, "write a positive number, or None"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_cure(
    pool: str, options: dict[str, Any], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        pool_options(WorkerOptions(pool=pool, **options), conf(**settings), 1)


@pytest.mark.parametrize("setting", ["worker_max_tasks_per_child", "worker_max_memory_per_child"])
def test_a_pool_without_children_refuses_to_recycle_them(setting: str) -> None:
    wanted = pool_options(WorkerOptions(pool="gevent"), conf(**{setting: 100}), 1)
    with pytest.raises(ConfigError, match=f"{setting}.*use -P prefork"):
        refuse_recycling("gevent", wanted)
