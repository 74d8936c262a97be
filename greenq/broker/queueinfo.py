"""A consumed queue as `inspect active_queues` shows it: the QUEUE_INFO object (wire.md 3.4)."""

from __future__ import annotations

from typing import Any


def queue_info(
    name: str,
    *,
    exchange: str | None = None,
    exchange_type: str = "direct",
    routing_key: str | None = None,
    queue_arguments: dict[str, Any] | None = None,
    max_priority: int | None = None,
) -> dict[str, Any]:
    """Every key must be there: Flower reads them by index."""
    return {
        "name": name,
        "exchange": {
            "name": name if exchange is None else exchange,
            "type": exchange_type,
            "arguments": None,
            "durable": True,
            "passive": False,
            "auto_delete": False,
            "delivery_mode": None,
            "no_declare": False,
        },
        "routing_key": name if routing_key is None else routing_key,
        "queue_arguments": queue_arguments,
        "binding_arguments": None,
        "consumer_arguments": None,
        "durable": True,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "alias": None,
        "bindings": [],
        "no_declare": None,
        "expires": None,
        "message_ttl": None,
        "max_length": None,
        "max_length_bytes": None,
        "max_priority": max_priority,
    }
