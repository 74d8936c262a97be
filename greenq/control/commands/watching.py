"""Commands about what the node tells those who watch."""

from __future__ import annotations

from greenq.control.panel import Panel
from greenq.control.registry import make_command

Reply = dict[str, str]


def enable_events(panel: Panel) -> Reply:
    """Send task events."""
    return {"ok": f"task events {'enabled' if panel.watchers.enable() else 'already enabled'}"}


def disable_events(panel: Panel) -> Reply:
    """Send task events no longer."""
    return {"ok": f"task events {'disabled' if panel.watchers.disable() else 'already disabled'}"}


def heartbeat(panel: Panel) -> None:
    """Send a heartbeat event now."""
    panel.watchers.beat()


COMMANDS = (
    make_command(enable_events, "control", args=[], instant=True, access="limits"),
    make_command(disable_events, "control", args=[], instant=True, access="limits"),
    make_command(heartbeat, "control", args=[], instant=True, access="limits"),
)
