"""Being asked: remote commands, their registry, the listener and the client. Never imports `worker`."""

from __future__ import annotations

from greenq.control.panel import Accepted, MainHub, Panel, Scheduled
from greenq.control.registry import (
    Command,
    Registry,
    control_command,
    default_registry,
    inspect_command,
    user_commands,
)

__all__ = [
    "Accepted",
    "Command",
    "MainHub",
    "Panel",
    "Registry",
    "Scheduled",
    "control_command",
    "default_registry",
    "inspect_command",
    "user_commands",
]
