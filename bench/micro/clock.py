"""Timing functions in a loop: two sides in turn, or one by itself. Each line is the best of seven rounds."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 7
SECONDS = 0.05  # a round, about


def compare(name: str, here: Callable[[], object], there: Callable[[], object], against: str) -> None:
    """Time both in turn and print the line: here, there, and how many times faster."""
    ours, theirs = _best(here, there)
    print(f"{name:34} {ours:8.2f} us  {theirs:8.2f} us  {theirs / ours:5.1f}x  {against}")


def alone(name: str, side: Callable[[], object], each: int = 1) -> None:
    """Time one and print the line; it does `each` things a call."""
    print(f"{name:34} {_best(side)[0] / each:8.2f} us")


def _best(*sides: Callable[[], object]) -> list[float]:
    best = [float("inf")] * len(sides)
    loops = [_loops(side) for side in sides]
    for _ in range(ROUNDS):
        for number, side in enumerate(sides):
            began = time.perf_counter()
            for _ in range(loops[number]):
                side()
            best[number] = min(best[number], (time.perf_counter() - began) / loops[number] * 1e6)
    return best


def _loops(side: Callable[[], object]) -> int:
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        side()
        done += 1
    return max(done, 10)
