"""Commands that change the pool: its size, its bounds, its processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.exceptions import BadArgument, ConfigError, PoolCannot

Reply = dict[str, str]

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


# What the profile "standard" allows no more.
def _to_more_than_twice(panel: Panel, arguments: Mapping[str, Any]) -> str:
    first, now = panel.slots.sizes()
    return f"to more than {2 * first} slots" if now + arguments.get("n", 1) > 2 * first else ""


def _to_less_than_half(panel: Panel, arguments: Mapping[str, Any]) -> str:
    first, now = panel.slots.sizes()
    return f"to less than {-(-first // 2)} slots" if 2 * (now - arguments.get("n", 1)) < first else ""


def pool_grow(panel: Panel, *, n: int = 1) -> Reply:
    """Add slots (or child processes) to the pool."""
    return _resize(panel, "pool_grow", n, n)


def pool_shrink(panel: Panel, *, n: int = 1) -> Reply:
    """Take slots away, as they become free; one stays. Refused whole if there are not so many."""
    return _resize(panel, "pool_shrink", n, -n)


def _resize(panel: Panel, name: str, n: int, by: int) -> Reply:
    if n < 1:
        raise BadArgument(f"{name}: n must be at least 1, not {n}")
    if panel.slots.autoscaler() is not None:
        return {"error": f"{name} is not supported with autoscale. Adjust autoscale range instead."}
    try:
        panel.slots.resize(by)
    except PoolCannot as exc:
        return {"error": repr(exc)}
    return {"ok": "pool will grow" if by > 0 else "pool will shrink"}


def autoscale(panel: Panel, *, max: int | None = None, min: int | None = None) -> Reply:  # noqa: A002  (Celery's)
    """Change the bounds of --autoscale; one that is not given stays."""
    if panel.slots.autoscaler() is None:
        return {"error": repr(ValueError("Autoscale not enabled"))}
    most, least = panel.slots.autoscale(max, min)
    return {"ok": f"autoscale now max={most} min={least}"}


def pool_restart(
    panel: Panel, *, modules: list[str] | None = None, reload: bool = False, reloader: None = None  # noqa: ARG001
) -> Reply:
    """Replace child processes by new ones with fresh code, each after its task.

    `modules` are imported first, and with `reload` imported anew; without them `reload` means the app's own.
    Celery's client always sends a `reloader`, which can only be null.
    """
    if not panel.app.conf.worker_pool_restarts:
        return {"error": repr(ValueError("Pool restarts not enabled"))}
    for name in modules or ():
        if not _MODULE.fullmatch(name):
            raise BadArgument(f"pool_restart: {name[:100]!r} is not the name of a module")
    try:
        panel.slots.restart(modules, reload=reload)
    except (PoolCannot, ConfigError) as exc:
        return {"error": repr(exc)}
    return {"ok": "reload started"}


COMMANDS = (
    make_command(
        pool_grow, "control", args=[("n", int)], signature="[N=1]", access="limits", beyond=_to_more_than_twice
    ),
    make_command(
        pool_shrink, "control", args=[("n", int)], signature="[N=1]", access="limits", beyond=_to_less_than_half
    ),
    make_command(autoscale, "control", args=[("max", int), ("min", int)], signature="[MAX [MIN]]"),
    make_command(pool_restart, "control", args=[]),
)
