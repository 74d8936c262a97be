"""How often and how much a row runs, and the alternating of its two sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bench.measure import Run


@dataclass(frozen=True)
class Plan:
    """How often and how much. Celery gets fewer messages: its rate does not depend on how many there are."""

    runs: int = 3
    noops: int = 50_000
    celery_noops: int = 5_000
    waits: int = 10_000
    celery_waits: int = 3_000
    amqp_noops: int = 20_000

    def alternating(self) -> Iterator[str]:
        """greenq, celery, greenq, celery, ...: what disturbs the machine disturbs both."""
        for _ in range(self.runs):
            yield "greenq"
            yield "celery"


def both(plan: Plan, run: Callable[[str], Run]) -> tuple[list[Run], list[Run]]:
    """The runs of greenq and those of Celery."""
    ours, theirs = alternate(plan.runs, {library: partial(run, library) for library in ("greenq", "celery")})
    return ours, theirs


def alternate(runs: int, sides: dict[str, Callable[[], Run]]) -> list[list[Run]]:
    """Run the named sides in turn, `runs` times each; returns the runs of each side, in the order given."""
    found: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, run in sides.items():
            done = run()
            found[name].append(done)
            print(
                f"    {name:16} {done.tasks_per_second:9,.0f} tasks/s {done.cpu_us:8,.1f} us"
                f"  parent {done.parent_us:6.1f} us  wall {done.wall:6.2f} s  broker {done.broker_us:6.1f} us"
                f"  rss {done.rss:4.0f} MB  others {done.foreign:5.2f} of a core",
                flush=True,
            )
    return list(found.values())


def each(runs: list[Run], field: str) -> list[float]:
    """One figure of every run."""
    return [getattr(run, field) for run in runs]
