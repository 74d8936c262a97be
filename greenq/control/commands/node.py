"""Commands that ask about the node itself."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Any

from greenq import __version__, hostinfo
from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.control.taskinfo import showable


def ping(_panel: Panel, **_ignored: Any) -> dict[str, str]:
    """Ask whether the node is there."""
    return {"ok": "pong"}


def clock(panel: Panel) -> dict[str, int]:
    """Show the node's logical clock."""
    return {"clock": panel.clock.value}


def stats(panel: Panel) -> dict[str, Any]:
    """Show counters, pool, broker and resource usage."""
    autoscaler = panel.slots.autoscaler()
    return {
        "total": dict(panel.totals()),
        "pid": os.getpid(),
        "clock": str(panel.clock.value),
        "uptime": int(panel.uptime()),
        "pool": panel.pool(),
        "hub": panel.hub(),
        **({"autoscaler": autoscaler} if autoscaler is not None else {}),
        "broker": panel.broker(),
        "prefetch_count": panel.prefetch_count(),
        "rusage": hostinfo.rusage(),
    }


def active_queues(panel: Panel) -> list[dict[str, Any]]:
    """List the queues the node consumes from."""
    return panel.queues()


def conf(panel: Panel, *, with_defaults: bool = False) -> dict[str, Any]:
    """Show the settings, secrets hidden; those that somebody set, or all."""
    settings = panel.app.conf
    shown = settings.masked()
    return {
        name: showable(value)
        for name, value in shown.items()
        if with_defaults or settings.is_set(name) or name in {"broker_url", "result_backend"}
    }


def hello(
    panel: Panel, *, from_node: str, revoked: list[str] | dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Exchange revoked ids with a node that has just started."""
    if from_node == panel.hostname:
        return None
    if revoked:
        # Peers before Celery 5.7 send {id: [stamp, id]} (wire.md 13); its keys are the ids.
        panel.revoke(list(revoked))
    return {"revoked": panel.revoked(), "clock": panel.clock.forward()}


def report(panel: Panel) -> dict[str, str]:
    """Describe software, platform and settings as text."""
    settings = conf(panel)
    broker = panel.broker()
    system = os.uname()  # the platform module starts a process, which only the main hub may
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [
        "",
        f"software -> greenq:{__version__} kombu:{version('kombu')} py:{python}",
        f"platform -> {system.sysname} {system.release} {system.machine} imp:{sys.implementation.name}",
        f"settings -> transport:{broker.get('transport')} results:{settings['result_backend'] or 'disabled'}",
        "",
        *(f"{name}: {value!r}" for name, value in sorted(settings.items())),
    ]
    return {"ok": "\n".join(lines) + "\n"}


def memsample(_panel: Panel) -> str:
    """Show the node's resident memory."""
    return f"{hostinfo.memory() / 2**20:.3f}MB"


COMMANDS = (
    make_command(ping, "inspect", instant=True),
    make_command(clock, "inspect", instant=True),
    make_command(stats, "inspect", instant=True),
    make_command(active_queues, "inspect", instant=True),
    make_command(conf, "inspect", alias="dump_conf", instant=True),
    make_command(hello, "inspect", visible=False, instant=True),
    make_command(report, "inspect", instant=True),
    make_command(memsample, "inspect", instant=True),
)
