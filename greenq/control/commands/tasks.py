"""Commands that ask about tasks."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.control.taskinfo import info_of

DEFAULT_ATTRIBUTES = ("exchange", "routing_key", "rate_limit")
_SHOWN = (str, int, float, bool, tuple, list)
_ETA_PRIORITY = 6  # the priority of Celery's timer entries, which clients have always been shown


def active(panel: Panel, *, safe: bool = False) -> list[dict[str, Any]]:
    """List the tasks that run now."""
    return [info_of(panel, request, safe=safe) for request in panel.active()]


def reserved(panel: Panel) -> list[dict[str, Any]]:
    """List the tasks received and waiting for a slot or their rate limit."""
    return [info_of(panel, request) for request in panel.reserved()]


def scheduled(panel: Panel) -> list[dict[str, Any]]:
    """List the tasks that wait for their ETA."""
    return [
        {
            "eta": datetime.fromtimestamp(entry.eta, timezone.utc).isoformat(),
            "priority": _ETA_PRIORITY,
            "request": info_of(panel, entry.request),
        }
        for entry in sorted(panel.scheduled(), key=lambda entry: entry.eta)
    ]


def revoked(panel: Panel) -> list[str]:
    """List the ids of revoked tasks."""
    return panel.revokes.ids()


def query_task(panel: Panel, *, ids: str | list[str]) -> dict[str, list[Any]]:
    """Find tasks by id: where they are, and what they are."""
    wanted = [ids] if isinstance(ids, str) else ids
    return {task_id: [state, info_of(panel, request)] for task_id, (state, request) in panel.find(wanted).items()}


def registered(panel: Panel, *, taskinfoitems: list[str] | None = None, builtins: bool = False) -> list[str]:
    """List the tasks the node knows, each with some of its attributes."""
    wanted = [item for item in taskinfoitems or DEFAULT_ATTRIBUTES if not item.startswith("_")]
    tasks = panel.app.tasks
    return [
        _described(name, tasks[name], wanted) for name in sorted(tasks) if builtins or not name.startswith("celery.")
    ]


def _described(name: str, task: object, wanted: list[str]) -> str:
    # Attribute names come over the wire: plain values only, so that nobody reads the app out of a task.
    shown = [(item, getattr(task, item, None)) for item in wanted]
    fields = " ".join(f"{item}={value}" for item, value in shown if isinstance(value, _SHOWN))
    return f"{name} [{fields}]" if fields else name


COMMANDS = (
    make_command(active, "inspect", alias="dump_active", instant=True),
    make_command(reserved, "inspect", alias="dump_reserved", instant=True),
    make_command(scheduled, "inspect", alias="dump_schedule", instant=True),
    make_command(revoked, "inspect", alias="dump_revoked", instant=True),
    make_command(query_task, "inspect", variadic="ids", instant=True),
    make_command(registered, "inspect", alias="dump_tasks", variadic="taskinfoitems", instant=True),
)
