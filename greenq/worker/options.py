"""What the command line decides about one worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    quiet: bool = False
