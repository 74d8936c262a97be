"""The demo's project: one app, one task. No broker is configured, so greenq brings its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from greenq import GreenQ

app = GreenQ("demo")


def note(line: str) -> None:
    """Append a line to the ledger beside this file; one write, so that lines never mix."""
    ledger = os.open(Path(__file__).with_name("ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, f"{line}\n".encode())
    finally:
        os.close(ledger)


@app.task
def wait(number: int, seconds: float) -> int:
    """Wait as a task does that asks a server: no CPU, one slot."""
    note(f"start {number}")
    time.sleep(seconds)
    note(f"done {number}")
    return number
