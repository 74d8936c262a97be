"""`-P eventlet`: green slots on eventlet's hub."""

from __future__ import annotations

from greenq.pools.base import PoolOptions, refuse_recycling
from greenq.pools.green import GreenPool
from greenq.runtime.eventlet import EventletRuntime


def make_runtime() -> EventletRuntime:
    """Make the runtime; the process must have been patched."""
    return EventletRuntime()


def make_pool(options: PoolOptions, runtime: EventletRuntime) -> GreenPool:
    """Make the pool."""
    refuse_recycling("eventlet", options)
    return GreenPool("eventlet", options.size, runtime)
