"""The tasks of the bench, for greenq. BROKER and BACKEND name the servers; no BACKEND, no results."""

from __future__ import annotations

import os
import time

from greenq import GreenQ

app = GreenQ("bench", broker=os.environ["BROKER"], backend=os.environ.get("BACKEND"))
app.conf.task_ignore_result = "BACKEND" not in os.environ


@app.task(name="bench.noop")
def noop(number: int) -> int:
    """Do nothing."""
    return number


@app.task(name="bench.wait")
def wait(seconds: float) -> None:
    """Wait, as a task does that asks a server."""
    time.sleep(seconds)


@app.task(name="bench.spin")
def spin(seconds: float) -> None:
    """Compute in plain Python, and let nothing else run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
