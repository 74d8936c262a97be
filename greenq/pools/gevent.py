"""`-P gevent`: green slots on gevent's hub."""

from __future__ import annotations

from greenq.pools.base import PoolOptions, refuse_recycling
from greenq.pools.green import GreenPool
from greenq.runtime.gevent import GeventRuntime


def make_runtime() -> GeventRuntime:
    """Make the runtime; the process must have been patched."""
    return GeventRuntime()


def make_pool(options: PoolOptions, runtime: GeventRuntime) -> GreenPool:
    """Make the pool."""
    refuse_recycling("gevent", options)
    return GreenPool("gevent", options.size, runtime)
