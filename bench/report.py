"""What a row of the bench is, the table in the terminal, and the JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OUT = Path(__file__).parent / "out"
_LIBRARIES = ("celery", "kombu", "gevent", "redis", "hiredis", "msgspec")


@dataclass
class Row:
    """One line: what was measured, greenq's values, the other's, and the goal.

    `at_most` and `at_least` bound greenq's median; `ratio_at_least` bounds how many times better it is,
    where better is more (`more_is_better`) or less.
    """

    name: str
    unit: str
    greenq: list[float]
    other: list[float] = field(default_factory=list)
    other_name: str = "celery gevent"
    more_is_better: bool = True
    at_most: float | None = None
    at_least: float | None = None
    ratio_at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better greenq's median is; None where one of them is nothing."""
        if not self.greenq or not self.other:
            return None
        ours, theirs = statistics.median(self.greenq), statistics.median(self.other)
        if not ours or not theirs:
            return None
        return ours / theirs if self.more_is_better else theirs / ours

    @property
    def goal(self) -> str:
        """The goal in words, or nothing where there is none."""
        if self.ratio_at_least is not None:
            return f">= {self.ratio_at_least:g}x"
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.ratio_at_least is not None:
            return (self.ratio or 0.0) >= self.ratio_at_least
        if self.at_most is not None:
            return statistics.median(self.greenq) <= self.at_most
        return statistics.median(self.greenq) >= self.at_least if self.at_least is not None else None


def number(value: float) -> str:
    """Three significant digits, thousands set apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return ""
    return f"{number(statistics.median(values))} ({number(min(values))}-{number(max(values))})"


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table that also reads well in a terminal."""
    head = ["what", "unit", "greenq", "beside it", "which", "times", "goal", ""]
    lines = [head]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        times = f"{number(row.ratio)}x" if row.ratio else ""
        other = row.other_name if row.other else ""
        lines.append([row.name, row.unit, spread(row.greenq), spread(row.other), other, times, row.goal, verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def environment() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    found["machine"] = platform.platform()
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def save(rows: list[Row]) -> Path:
    """Write rows and environment to bench/out and return the file."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    data = [asdict(row) | {"ratio": row.ratio, "goal": row.goal, "met": row.met} for row in rows]
    path.write_text(json.dumps({"environment": environment(), "rows": data}, indent=1))
    return path
