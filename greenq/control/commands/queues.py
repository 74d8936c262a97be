"""Commands about the queues the node consumes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenq.control.client import known_queues
from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.exceptions import BrokerError

Reply = dict[str, str]


def active_queues(panel: Panel) -> list[dict[str, Any]]:
    """List the queues the node consumes from."""
    return panel.consuming.queues()


# What the profile "standard" allows no more: reading from other people's queues.
def _elsewhere(panel: Panel, arguments: Mapping[str, Any]) -> str:
    if arguments["queue"] not in known_queues(panel.app.conf):
        return "for a queue that task_queues does not name"
    given = {name for name, value in arguments.items() if value is not None}
    # Both clients always name a type; it says nothing about a queue that is known.
    return "with an address or options" if given - {"queue", "exchange_type"} else ""


def add_consumer(
    panel: Panel,
    *,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> Reply:
    """Consume from one more queue.

    More options are those of a queue in `task_queues`, such as `queue_durable` or `queue_arguments`.
    """
    address = {"exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key}
    given = {name: value for name, value in {**address, **options}.items() if value is not None}
    try:
        panel.consuming.add(queue, given)
    except BrokerError as exc:
        return {"error": repr(exc)}
    return {"ok": f"add consumer {queue}"}


def cancel_consumer(panel: Panel, *, queue: str) -> Reply:
    """Stop consuming from a queue; what was taken from it already runs on."""
    panel.consuming.cancel(queue)
    return {"ok": f"no longer consuming from {queue}"}


COMMANDS = (
    make_command(active_queues, "inspect", instant=True),
    make_command(
        add_consumer,
        "control",
        args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
        signature="QUEUE [EXCHANGE [TYPE [ROUTING_KEY]]]",
        access="limits",
        beyond=_elsewhere,
    ),
    make_command(cancel_consumer, "control", args=[("queue", str)]),
)
