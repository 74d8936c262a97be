"""`-P gevent`: green slots on gevent's hub."""

from __future__ import annotations

from greenq.pools.green import GreenPool
from greenq.runtime.gevent import GeventRuntime


def make_runtime() -> GeventRuntime:
    """Make the runtime; the process must have been patched."""
    return GeventRuntime()


def make_pool(size: int, runtime: GeventRuntime) -> GreenPool:
    """Make the pool."""
    return GreenPool("gevent", size, runtime)
