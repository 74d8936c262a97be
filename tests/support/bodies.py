"""What the tasks of several test applications do: plain functions, which each application registers as its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from greenq import GreenQ, Task
from tests.support.ledger import Ledger

P = ParamSpec("P")
R = TypeVar("R")

ledger = Ledger.from_env() if Ledger.VARIABLE in os.environ else None


def task_of(app: GreenQ, module: str, body: Callable[P, R]) -> Task[P, R]:
    """A task as if `body` had been written in that module of the application."""
    return app.task(name=f"{module}.{body.__name__}")(body)


def note(word: str, what: object) -> None:
    """Into the ledger."""
    assert ledger is not None
    getattr(ledger, word)(what)


def add(x: int, y: int) -> int:
    return x + y


def nap(what: str, seconds: float) -> str:
    note("start", what)
    time.sleep(seconds)
    note("done", what)
    return what


def compute(what: str, seconds: float) -> str:
    note("start", what)
    spin(seconds)
    note("done", what)
    return what


def spin(seconds: float) -> None:
    """Python that lets nobody else run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


def linger(how: str) -> None:
    """Half a minute, in which only an exception ends it: asleep first, or computing from the start."""
    if how == "sleep":
        time.sleep(30)
    spin(30)
