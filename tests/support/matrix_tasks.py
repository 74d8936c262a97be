"""The application under the pool matrix; what is to be measured of it stands in GREENQ_TEST_SETTINGS, as JSON."""

from __future__ import annotations

import importlib
import json
import os
import signal
import time

from greenq import ChildInfo, GreenQ, SoftTimeLimitExceeded, Task
from greenq.exceptions import Killed
from tests.support import bodies
from tests.support.bodies import linger, note, task_of

SETTINGS = "GREENQ_TEST_SETTINGS"

app = GreenQ("matrix_tasks")
app.conf.update(json.loads(os.environ.get(SETTINGS, "{}")), source=SETTINGS)
readied: list[tuple[int, str]] = []  # by child_start, in the process it ran in


@app.hooks.child_start
def ready(child: ChildInfo) -> None:
    readied.append((os.getpid(), child.pool))


@app.task
def where() -> dict[str, object]:
    """The process that runs tasks, and whether child_start made it ready."""
    return {"pid": os.getpid(), "ready": [pid for pid, _ in readied] == [os.getpid()]}


add = task_of(app, __name__, bodies.add)
nap = task_of(app, __name__, bodies.nap)
compute = task_of(app, __name__, bodies.compute)


@app.task
def total(numbers: list[int]) -> None:
    note("done", f"total-{sum(numbers)}")


@app.task
def stubborn(how: str) -> None:
    """Goes on for half a minute, whatever Exception comes."""
    _go_on(how)


@app.task(time_limit=0.5)
def stubborn_limited(how: str) -> None:
    _go_on(how)


@app.task
def tidy(how: str) -> str:
    return _tidied(how)


@app.task(soft_time_limit=0.3)
def tidy_limited(how: str) -> str:
    return _tidied(how)


def _go_on(how: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            linger(how)
        except Exception:
            continue


def _tidied(how: str) -> str:
    try:
        linger(how)
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "nothing happened"


@app.task
def signalled(what: str) -> None:
    """Notes which signal came: as a signal, in a process of its own, or as the number of what ends it."""
    if readied[-1][1] == "prefork":
        signal.signal(signal.SIGUSR2, lambda number, frame: note("done", f"{what}-{number}"))
    note("start", what)
    try:
        time.sleep(30)
    except Killed as killed:
        note("done", f"{what}-{killed.args[0]}")
        raise


@app.task
def swallow(megabytes: int) -> int:
    len(b"x" * (megabytes << 20))
    return os.getpid()


@app.task
def word() -> str:
    """What stands in a module that `pool_restart` is told to load again."""
    return str(importlib.import_module("matrix_word").WORD)


@app.task(rate_limit="5/s")
def limited() -> float:
    return time.time()


@app.task(bind=True, max_retries=2, default_retry_delay=0.05)
def retried(self: Task[..., object]) -> int:
    if self.request.retries < 2:
        raise self.retry(exc=RuntimeError("not yet"))
    return int(self.request.retries)
