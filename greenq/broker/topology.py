"""How a queue is described to those who ask: the QUEUE_INFO object of `inspect active_queues`."""

from __future__ import annotations

from typing import Any


def queue_info(
    name: str,
    *,
    exchange: str | None = None,
    exchange_type: str = "direct",
    routing_key: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A queue as Celery describes it (wire.md 3.4); `changes` are fields that differ from the defaults."""
    info: dict[str, Any] = {
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
        "queue_arguments": None,
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
        "max_priority": None,
    }
    return {**info, **changes}
