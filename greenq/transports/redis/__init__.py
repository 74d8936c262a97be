"""Redis: messages claimed in batches, atomically and under a lease, in the layout kombu's workers share.

Never knows what a task is, and never makes a kombu worker on the same queues see anything new.
"""

from __future__ import annotations

from greenq.transports.redis.revoked import open_revoked_log
from greenq.transports.redis.store import RedisStore, open_store
from greenq.transports.redis.transport import Transport, register

__all__ = ["RedisStore", "Transport", "open_revoked_log", "open_store", "register"]
