"""The application under the attack on prefork's processes; each task writes down that it ran, and as which child."""

from __future__ import annotations

import multiprocessing
import os
import time

from greenq import GreenQ
from tests.support.ledger import Ledger

app = GreenQ("prefork_tasks")
ledger = Ledger.from_env() if Ledger.VARIABLE in os.environ else None


def note(word: str, what: str) -> None:
    assert ledger is not None
    getattr(ledger, word)(what)


@app.task
def short(what: str, seconds: float, load: str = "", size: int = 0) -> str:
    """Sleeps; `load` is what makes its message large, `size` its result."""
    note("start", what)
    time.sleep(seconds)
    note("done", what)
    return "x" * size


@app.task
def sends(what: str, seconds: float) -> str:
    """Publishes another task, of a fixed id, over a connection of the child's own."""
    note("start", what)
    short.apply_async((f"{what}-sent", seconds), task_id=f"{what}-sent")
    note("done", what)
    return what


@app.task
def after(value: str, what: str) -> str:
    """What follows another task."""
    note("start", what)
    note("done", what)
    return value[:10]


@app.task
def deadly(what: str, number: int) -> None:
    """Ends its own process, each time."""
    note("start", what)
    os.kill(os.getpid(), number)


@app.task
def index() -> int:
    """The number of the child that runs this."""
    return int(multiprocessing.current_process().name.rpartition("-")[2])
