"""What watchers hear: events and the messages that carry them (wire.md 7)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

BATCH_KEY = "task.multi"  # of a message whose body is a list of events
Event = dict[str, Any]


def event(kind: str, hostname: str, pid: int, fields: Mapping[str, Any]) -> Event:
    """One event as it goes over the wire, but for its `clock`, which it gets when it is sent.

    `kind` is such as "task-received". Receivers take `utcoffset`, in hours west of UTC, off the `timestamp`.
    """
    return {
        "type": kind,
        "hostname": hostname,
        "pid": pid,
        "timestamp": time.time(),
        "utcoffset": _hours_west(),
        **fields,
    }


def routing_key(kind: str) -> str:
    """What a receiver's binding is matched with: "task-received" goes out under "task.received"."""
    return kind.replace("-", ".")


def _hours_west() -> float:
    return (time.altzone if time.localtime().tm_isdst > 0 else time.timezone) / 3600
