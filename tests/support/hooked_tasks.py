"""An application with a hook at every moment; each hook and task writes a line to a file of notes.

The connection of `child_start` is SQLite's, which refuses to be used in another thread than its own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from greenq import ChildInfo, GreenQ, Ignore, Reject, Task, TaskContext, TaskEnd, WorkerInfo
from greenq.context import current

NOTES = "GREENQ_TEST_NOTES"  # the file
FAILING = "GREENQ_TEST_FAILING"  # moments whose hook raises, and what: "before_task=ValueError worker_stop=..."
BROKEN = "GREENQ_TEST_BROKEN"  # a file: while it is there, the database of child_start is not
HANGING = "GREENQ_TEST_HANGING"  # moments whose hook takes its time, and how many seconds

app = GreenQ("hooked_tasks")
connections: dict[int, sqlite3.Connection] = {}  # by process; a fork may not inherit one
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
raises = dict(each.split("=") for each in os.environ.get(FAILING, "").split())
hangs = dict(each.split("=") for each in os.environ.get(HANGING, "").split())


def note(moment: str, **facts: object) -> None:
    line = json.dumps({"moment": moment, "pid": os.getpid(), **facts}) + "\n"
    descriptor = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def notes(path: Path) -> list[dict[str, Any]]:
    """For the test: what was written so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def misbehave(moment: str) -> None:
    time.sleep(float(hangs.get(moment, 0)))
    if moment in raises:
        note("raises", at=moment)
        raise {"SystemExit": SystemExit, "ValueError": ValueError}[raises[moment]](f"{moment} is out of order")


@app.hooks.worker_start
def begin(worker: WorkerInfo) -> None:
    note("worker_start", pool=worker.pool, concurrency=worker.concurrency, hostname=worker.hostname)
    misbehave("worker_start")
    if os.environ.get("GREENQ_TEST_SENDING"):
        value.delay("sent by worker_start")


@app.hooks.worker_stop()
def end(worker: WorkerInfo) -> None:
    note("worker_stop", queues=worker.queues)
    if os.environ.get("GREENQ_TEST_SENDING"):
        value.delay("sent by worker_stop")
    misbehave("worker_stop")


@app.hooks.child_start
def connect(child: ChildInfo) -> None:
    note("child_start", index=child.index, pool=child.pool)
    misbehave("child_start")
    if Path(os.environ.get(BROKEN, "/none")).exists():
        raise ConnectionError("the database is down")
    connections[os.getpid()] = sqlite3.connect(":memory:")


@app.hooks.child_stop
def disconnect() -> None:
    connections.pop(os.getpid()).close()
    note("child_stop")
    misbehave("child_stop")


@app.hooks.before_task
def enter(request: TaskContext) -> None:
    tenant.set(f"{tenant.get()}+{request.id}")
    note("before_task", task=request.id, current=current.get() is request)
    misbehave("before_task")


@app.hooks.after_task
def leave(request: TaskContext, ended: TaskEnd) -> None:
    note(
        "after_task",
        task=request.id,
        state=ended.state,
        value=ended.value if isinstance(ended.value, (str, int)) else None,
        error=type(ended.error).__name__,
        tenant=tenant.get(),
    )
    misbehave("after_task")


@app.task(bind=True)
def query(self: Task[..., Any], number: int) -> int:
    """Its argument, by way of the process's own connection."""
    note("runs", task=self.request.id)
    (answer,) = connections[os.getpid()].execute("SELECT ?", (number,)).fetchone()
    return int(answer)


@app.task
def who() -> str:
    return tenant.get()


@app.task
def value(text: str) -> str:
    note("value", text=text)
    return text


@app.task
def nap(seconds: float) -> None:
    note("naps")
    time.sleep(seconds)
    note("slept")


@app.task
def fail() -> None:
    raise ValueError("as asked")


@app.task
def ignored() -> None:
    raise Ignore


@app.task
def rejected() -> None:
    raise Reject("no")


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def retried(self: Task[..., Any]) -> str:
    if not self.request.retries:
        raise self.retry()
    return "second"


@app.task(autoretry_for=(OSError,), max_retries=1, retry_backoff=0.01)
def autoretried() -> None:
    raise OSError("always")


@app.task
def unsendable() -> object:
    return object()


@app.task(time_limit=0.5)
def overdue() -> None:
    time.sleep(30)


@app.task
def left() -> None:
    raise SystemExit(3)
