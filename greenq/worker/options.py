"""What the command line decides about one worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from greenq.app.loader import AppSource


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Options of one worker; None means: as the settings say."""

    pool: str = "gevent"
    concurrency: int | None = None
    hostname: str = ""
    queues: Sequence[str] = ()
    exclude_queues: Sequence[str] = ()
    loglevel: str = "WARNING"
    logfile: str | None = None
    prefetch_multiplier: int | None = None
    purge: bool = False
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None  # KiB
    optimization: str = "fair"  # or "default": prefork hands a busy child the next task already
    autoscale: tuple[int, int] | None = None  # (most, least)
    zygote: Any = None  # of prefork: `greenq.pools._prefork.zygote.Zygote`, forked before anything was patched
    source: AppSource | None = None  # of prefork: how a child process loads the app
    quiet: bool = False
