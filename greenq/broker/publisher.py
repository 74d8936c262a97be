"""Opening a publisher for a broker URL."""

from __future__ import annotations

from greenq.broker.base import Publisher
from greenq.broker.batched_publisher import BatchedPublisher
from greenq.broker.stores import is_batched, is_leased
from greenq.config import Settings

__all__ = ["Publisher", "open_publisher", "store_options"]


def open_publisher(url: str, conf: Settings) -> Publisher:
    """Make the publisher for that broker; it connects at first use."""
    if is_batched(url):
        retry = conf.task_publish_retry_policy if conf.task_publish_retry else None
        return BatchedPublisher(url, store_options(url, conf), retry)
    from greenq.broker.kombu_publisher import KombuPublisher

    return KombuPublisher(url, conf)


def store_options(url: str, conf: Settings) -> dict[str, object]:
    """What a batched store needs from the settings."""
    lease = {"lease": conf.broker_lease} if is_leased(url) else {}
    return {**lease, **conf.broker_transport_options}
