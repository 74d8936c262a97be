"""Opening a consumer for a broker URL."""

from __future__ import annotations

from collections.abc import Sequence

from greenq.broker.base import Consumer
from greenq.broker.batched import BatchedConsumer
from greenq.broker.connections import connect
from greenq.broker.pushed import PushedConsumer
from greenq.broker.stores import is_batched
from greenq.config import Settings
from greenq.runtime.base import Runtime


def open_consumer(
    url: str, conf: Settings, queues: Sequence[str], prefetch: int, runtime: Runtime
) -> Consumer:
    """Make the consumer for that broker; it connects at `start`."""
    if is_batched(url):
        return BatchedConsumer(url, conf, queues, prefetch, runtime)
    connect(url, conf)  # says now what no transport serves; the fiber that reaches the broker could only repeat it
    return PushedConsumer(url, conf, queues, prefetch, runtime)
