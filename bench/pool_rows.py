"""The rows that set pools beside each other: prefork beside Celery's, eventlet beside gevent, limits on and off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bench.macro.bare_pipes import measure_apart as measure_bare
from bench.macro.prefork_pool import measure_apart
from bench.measure import Run, Servers, drain_redis
from bench.plan import Plan, alternate, each
from bench.report import Row

_CHILDREN = 2
_WARM = 200  # tasks before the clock starts, so that every child has run some
_FAIR = ("-O", "fair")
_AHEAD = ("-O", "default", "--prefetch-multiplier", "50")
_LIMITS = ("--time-limit", "60", "--soft-time-limit", "50")


class _Sides(NamedTuple):
    """The runs of two ways to do the same, and the rows that set them beside each other."""

    name: str
    ours: list[Run]
    theirs: list[Run]
    other: str  # what the others are called

    def rate(self, ratio_at_least: float) -> Row:
        field = "tasks_per_second"
        ours, theirs = each(self.ours, field), each(self.theirs, field)
        return Row(self.name, "tasks/s", ours, theirs, self.other, ratio_at_least=ratio_at_least)

    def cpu(self, whose: str, field: str) -> Row:
        ours, theirs = each(self.ours, field), each(self.theirs, field)
        return Row(f"{self.name}, {whose}", "CPU us/task", ours, theirs, self.other, more_is_better=False)


def _noops(servers: Servers, library: str, count: int, pool: str, *arguments: str) -> Callable[[], Run]:
    concurrency = _CHILDREN if pool == "prefork" else 500
    return partial(
        drain_redis,
        servers,
        library,
        "noop",
        count,
        pool=pool,
        concurrency=concurrency,
        arguments=arguments,
        warm=_WARM,
    )


def prefork(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on Redis in two child processes: handed over one by one, as both do by default, and ahead."""
    fair, ahead, theirs = alternate(
        plan.runs,
        {
            "greenq fair": _noops(servers, "greenq", plan.noops, "prefork", *_FAIR),
            "greenq ahead": _noops(servers, "greenq", plan.noops, "prefork", *_AHEAD),
            "celery": _noops(servers, "celery", plan.celery_noops, "prefork", *_FAIR),
        },
    )
    name, other = f"{plan.noops:,} no-ops, prefork -c {_CHILDREN}", "celery prefork"
    for form, ours in (("-O fair", fair), ("-O default", ahead)):
        sides = _Sides(f"{name} {form}", ours, theirs, other)
        yield sides.rate(10)
        yield sides.cpu("parent", "parent_us")
        yield sides.cpu("children", "children_us")


def prefork_pool(_servers: Servers, plan: Plan) -> Iterator[Row]:
    """The prefork pool alone, without a broker: its share of what the parent spends (decision 0012)."""
    for form, ahead in (("-O fair", 0), ("-O default", 49)):
        found = [measure_apart(_CHILDREN, ahead) for _ in range(plan.runs)]
        bare = [measure_bare(_CHILDREN, 1 + ahead) for _ in range(plan.runs)]
        name = f"prefork pool alone, -c {_CHILDREN} {form}"
        cpu = [cpu for cpu, _ in found]
        yield Row(f"{name}, parent", "CPU us/task", cpu, bare, "bare pipes", more_is_better=False, at_most=10)
        yield Row(name, "tasks/s", [rate for _, rate in found])


def eventlet(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on Redis, greenq on eventlet beside greenq on gevent."""
    yield from _beside(
        plan,
        f"{plan.noops:,} no-ops, eventlet",
        "greenq gevent",
        _noops(servers, "greenq", plan.noops, "eventlet"),
        _noops(servers, "greenq", plan.noops, "gevent"),
        0.5,
    )


def limits(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on Redis, a soft and a hard time limit on every task, beside the same without."""
    for pool in ("gevent", "prefork"):
        yield from _beside(
            plan,
            f"{plan.noops:,} no-ops with limits, {pool}",
            "without",
            _noops(servers, "greenq", plan.noops, pool, *_LIMITS),
            _noops(servers, "greenq", plan.noops, pool),
            0.7,
        )


def _beside(
    plan: Plan, name: str, other: str, run: Callable[[], Run], run_other: Callable[[], Run], share: float
) -> Iterator[Row]:
    """Two ways of greenq: the first is to have at least that share of the other's throughput."""
    ours, theirs = alternate(plan.runs, {name.rpartition(", ")[2]: run, other: run_other})
    sides = _Sides(name, ours, theirs, other)
    yield sides.rate(share)
    yield sides.cpu("worker", "cpu_us")


POOL_ROWS: dict[str, Callable[[Servers, Plan], Iterator[Row]]] = {
    "prefork": prefork,
    "prefork-pool": prefork_pool,
    "eventlet": eventlet,
    "limits": limits,
}
