"""Opening a publisher for a broker URL."""

from __future__ import annotations

from greenq.broker.base import Publisher
from greenq.broker.batched_publisher import BatchedPublisher
from greenq.broker.kombu_publisher import KombuPublisher
from greenq.broker.stores import is_batched
from greenq.config import Settings

__all__ = ["Publisher", "open_publisher"]


def open_publisher(url: str, conf: Settings) -> Publisher:
    """Make the publisher for that broker; it connects at first use."""
    return BatchedPublisher(url, conf) if is_batched(url) else KombuPublisher(url, conf)
