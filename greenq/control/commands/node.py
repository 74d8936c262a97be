"""Commands that ask about the node itself."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from greenq import __version__, hostinfo
from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.control.taskinfo import showable
from greenq.exceptions import BadArgument

_DRIVERS = ("redis", "amqp", "gevent", "eventlet")  # of these, what is loaded


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
        "control": panel.hearing.info(),
        "elections": panel.elections.info(),
        **({"autoscaler": autoscaler} if autoscaler is not None else {}),
        "broker": panel.broker(),
        "prefetch_count": panel.prefetch_count(),
        "messages": panel.vitals.messages(),
        "connections": panel.vitals.connections(),
        "rusage": hostinfo.rusage(),
    }


def conf(panel: Panel, *, with_defaults: bool = False) -> dict[str, Any]:
    """Show the settings, secrets hidden; those that somebody set, or all."""
    settings = panel.app.conf
    shown = settings.masked()
    return {
        name: showable(value)
        for name, value in shown.items()
        if with_defaults or settings.is_set(name) or name in {"broker_url", "result_backend"}
    }


def _revokes(_panel: Panel, arguments: Mapping[str, Any]) -> str:
    return "with something to revoke" if arguments.get("revoked") or arguments.get("stamps") else ""


def hello(
    panel: Panel,
    *,
    from_node: str,
    revoked: list[str] | dict[str, Any] | None = None,
    stamps: dict[str, list[str]] | None = None,
    **_ignored: Any,
) -> dict[str, Any] | None:
    """Exchange what is revoked with a node that has just started."""
    if from_node == panel.hostname:
        return None
    # Peers before Celery 5.7 send {id: [stamp, id]} (wire.md 13); its keys are the ids.
    panel.revokes.learn(list(revoked or ()), stamps or {})
    told = {"revoked": panel.revokes.ids(), "clock": panel.clock.forward()}
    if known := panel.revokes.stamps():
        told["stamps"] = known  # greenq's own; Celery's nodes pass over it
    return told


def election(
    panel: Panel, *, id: str, topic: str, action: dict[str, Any] | None = None  # noqa: A002  (Celery's name)
) -> None:
    """Have one of the nodes that are asked do something: of the topic `task`, send the signature `action`."""
    panel.elections.hold(id, topic, action)


def report(panel: Panel) -> dict[str, str]:
    """Describe software, platform and settings as text."""
    settings = conf(panel)
    system = os.uname()  # the platform module starts a process, which only the main hub may
    python = ".".join(map(str, sys.version_info[:3]))
    drivers = " ".join(f"{name}:{version(name)}" for name in _DRIVERS if name in sys.modules)
    results = settings["result_backend"] or "disabled"
    lines = [
        "",
        f"software -> greenq:{__version__} kombu:{version('kombu')} py:{python}",
        f"            {drivers}",
        f"platform -> system:{system.sysname} arch:{system.machine}",
        f"            kernel version:{system.release} imp:{sys.implementation.name}",
        f"loader   -> {panel.app.module or panel.app.main or 'none'}",
        f"settings -> transport:{panel.broker().get('transport')} results:{results}",
        "",
        *(f"{name}: {value!r}" for name, value in sorted(settings.items())),
    ]
    return {"ok": "\n".join(lines) + "\n"}


def memsample(panel: Panel) -> str:
    """Show the node's resident memory, and remember it for memdump."""
    return panel.memory.sample()


def memdump(panel: Panel, *, samples: int = 10) -> str:
    """Show what memsample has seen since the last time, and the resident memory now."""
    if samples < 1:
        raise BadArgument(f"memdump: samples must be at least 1, not {samples}")
    return panel.memory.dump(samples)


def objgraph(
    _panel: Panel, *, type: str = "Request", num: int = 200, max_depth: int = 10  # noqa: A002  (Celery's name)
) -> dict[str, str]:
    """Write what keeps objects of a type alive to a file of the node's, as a graph for Graphviz.

    The library objgraph has to be installed where the node runs. Looking at all objects takes a while, in which
    no task gets on.
    """
    for name, number in (("num", num), ("max_depth", max_depth)):
        if number < 1:
            raise BadArgument(f"objgraph: {name} must be at least 1, not {number}")
    try:
        library = importlib.import_module("objgraph")
    except ImportError:
        return {"error": repr(ImportError("Requires the objgraph library"))}
    objects = library.by_type(type)[:num]
    if not objects:
        raise BadArgument(f"objgraph: the garbage collector knows no objects of a type {type!r}; name another")
    chosen = set(map(id, objects))
    # As text: to have a picture drawn starts a process, which only the main hub may.
    with tempfile.NamedTemporaryFile("w", prefix="greenq-objgraph-", suffix=".dot", delete=False) as file:
        library.show_backrefs(objects, max_depth=max_depth, highlight=lambda each: id(each) in chosen, output=file)
    return {"filename": file.name}


COMMANDS = (
    make_command(ping, "inspect", instant=True),
    make_command(clock, "inspect", instant=True),
    make_command(stats, "inspect", instant=True),
    make_command(conf, "inspect", alias="dump_conf", instant=True),
    make_command(hello, "inspect", visible=False, instant=True, beyond=_revokes),
    make_command(
        election,
        "control",
        args=[("id", str), ("topic", str)],
        visible=False,
        instant=True,
    ),
    make_command(report, "inspect", instant=True),
    make_command(memsample, "inspect", instant=True),
    make_command(memdump, "inspect", args=[("samples", int)], signature="[SAMPLES=10]", instant=True),
    make_command(
        objgraph,
        "inspect",
        args=[("type", str), ("num", int), ("max_depth", int)],
        signature="[TYPE=Request [NUM=200 [MAX_DEPTH=10]]]",
        default_timeout=60.0,
        access="full",  # it writes a file
    ),
)
