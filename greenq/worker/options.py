"""What the command line decides about one worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from greenq.app.loader import AppSource


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Options of one worker; None means: as the settings say.

    What is a setting too, such as a time limit, is not here: it goes over the app's settings (`AppSource`).
    """

    pool: str = "gevent"
    concurrency: int | Literal["auto"] | None = None
    hostname: str = ""
    queues: Sequence[str] = ()
    exclude_queues: Sequence[str] = ()
    loglevel: str = "WARNING"
    logfile: str | None = None
    prefetch_multiplier: int | None = None
    purge: bool = False
    without_mingle: bool = False  # start without asking the neighbours what is revoked
    without_gossip: bool = False  # take no part in elections
    heartbeat_interval: float | None = 2.0  # seconds between two heartbeat events; None: none
    optimization: str = "fair"  # or "default": prefork hands a busy child the next task already
    autoscale: tuple[int, ...] | None = None  # the most and the least slots, in any order; or the most only
    zygote: Any = None  # of prefork: `greenq.pools._prefork.zygote.Zygote`, forked before anything was patched
    source: AppSource | None = None  # of prefork: how a child process loads the app
    quiet: bool = False
