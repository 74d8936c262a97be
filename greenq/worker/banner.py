"""What a worker says of itself when it starts."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import greenq

MOST_TASKS = 12
NOTES = {"eventlet": "eventlet is in maintenance upstream: prefer -P gevent"}


def banner(
    *,
    hostname: str,
    app: str,
    broker: str,
    reason: str,
    backend: str,
    pool: str,
    size: str,
    queues: Sequence[str],
    tasks: Sequence[str],
    warnings: Sequence[str],
) -> str:
    """The lines, for a terminal."""
    shown = ", ".join(tasks[:MOST_TASKS]) or "none"
    more = f" and {len(tasks) - MOST_TASKS} more" if len(tasks) > MOST_TASKS else ""
    lines = [
        f"greenq {greenq.__version__}   {hostname}   pid {os.getpid()}   Python {platform.python_version()}",
        f"  app      {app}",
        f"  broker   {broker}" + (f"   ({reason})" if reason else ""),
        f"  results  {backend}",
        f"  pool     {pool}, {size}",
        f"  queues   {', '.join(queues)}",
        f"  tasks    {shown}{more}",
        "  Ctrl-C ends it warmly; a second one now.",
    ]
    if pool in NOTES:
        lines.append(f"  note     {NOTES[pool]}")
    lines += [f"  warning  {warning}" for warning in warnings]
    return "\n".join(lines)
