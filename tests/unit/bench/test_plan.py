"""Two sides of a row run in turn, and the CPU of a worker is told apart from that of its children."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from bench.measure import Run
from bench.plan import alternate, each
from bench.workers import MeasuredProcess
from tests.support.processes import ended, wait_for

# A parent that only waits; its grandchild computes.
FAMILY = """
import os, time
if not os.fork():
    if not os.fork():
        while True: sum(range(1000))
while True: time.sleep(1)
"""


def _run(order: list[str], name: str) -> Run:
    order.append(name)
    return Run(100.0 * len(order), 10.0, 1.0, 0.5, 50.0, 0.0, 7.0, 3.0)


def test_the_sides_of_a_row_run_in_turn() -> None:
    order: list[str] = []
    ours, theirs = alternate(2, {name: partial(_run, order, name) for name in ("a", "b")})
    assert order == ["a", "b", "a", "b"]
    assert each(ours, "tasks_per_second") == [100.0, 300.0]
    assert each(theirs, "tasks_per_second") == [200.0, 400.0]


def test_the_cpu_of_grandchildren_counts_and_is_not_the_parents(tmp_path: Path) -> None:
    family = MeasuredProcess([sys.executable, "-c", FAMILY], output=tmp_path / "log")
    with ended(family):
        wait_for(lambda: family.cpu_apart()[1] > 0.3, 30, "the grandchild to have computed for 0.3 s")
        parent, below = family.cpu_apart()
        assert parent < 0.3 < below
        assert family.cpu() >= parent + below
