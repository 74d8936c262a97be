"""Replies as a person reads them: tables for lists of tasks, key and value for the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

_WIDEST = 60  # characters of one column
_INDENT = "    "


def render(command: str, data: Any) -> str:
    """The reply of one node, indented, without a newline at the end."""
    if isinstance(data, dict) and set(data) in ({"ok"}, {"error"}):
        text = str(next(iter(data.values())))
    elif command in _RENDERERS and isinstance(data, (list, dict)):
        text = _RENDERERS[command](data)
    else:
        text = plain(data)
    return "\n".join(_INDENT + line if line else line for line in text.splitlines())


def plain(data: Any) -> str:
    """Any reply: a list as lines with a star, an object as JSON, the rest as text (wire.md 2.2)."""
    if isinstance(data, (list, tuple)):
        if not data:
            return "- empty -"
        return "\n".join(f"* {item if isinstance(item, str) else as_json(item, indent=None)}" for item in data)
    if isinstance(data, dict):
        return as_json(data)
    return "-" if data is None else str(data)


def as_json(data: Any, indent: int | None = 4) -> str:
    """JSON with sorted keys; what JSON has no form for is written as text."""
    return json.dumps(data, sort_keys=True, indent=indent, default=str)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of equal width; the last is as wide as it needs to be."""
    lines = [[_cell(cell) for cell in row] for row in rows]
    if not lines:
        return "- empty -"
    widths = [max(len(line[i]) for line in [list(headings), *lines]) for i in range(len(headings))]
    laid = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [list(headings), *lines]
    ]
    return "\n".join(laid)


def _cell(value: object) -> str:
    text = "-" if value is None else " ".join(str(value).split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _call(info: Mapping[str, Any]) -> str:
    args, kwargs = info.get("args"), info.get("kwargs")
    shown = [repr(each) for each in args] if isinstance(args, (list, tuple)) else [str(args)]
    if isinstance(kwargs, dict):
        shown += [f"{name}={value!r}" for name, value in kwargs.items()]
    elif kwargs:
        shown.append(str(kwargs))
    return f"({', '.join(shown)})"


def _active(data: Any) -> str:
    rows = [
        (
            info.get("id"),
            info.get("name"),
            _since(info.get("time_start")),
            info.get("worker_pid"),
            _call(info),
        )
        for info in data
    ]
    return table(("ID", "TASK", "RUNNING", "PID", "ARGUMENTS"), rows)


def _since(started: Any) -> str:
    if not isinstance(started, (int, float)):
        return "-"
    return f"{max(0.0, time.time() - started):.1f} s"


def _reserved(data: Any) -> str:
    return table(("ID", "TASK", "ARGUMENTS"), [(info.get("id"), info.get("name"), _call(info)) for info in data])


def _scheduled(data: Any) -> str:
    rows = []
    for entry in data:
        info = entry.get("request") or {}
        rows.append((_local(entry.get("eta")), info.get("id"), info.get("name"), _call(info)))
    return table(("ETA", "ID", "TASK", "ARGUMENTS"), rows)


def _local(eta: Any) -> str:
    try:
        return datetime.fromisoformat(eta).astimezone().isoformat(sep=" ", timespec="seconds")
    except (TypeError, ValueError):
        return str(eta)


def _registered(data: Any) -> str:
    rows = []
    for entry in data:
        name, _, attributes = str(entry).partition(" ")
        rows.append((name, attributes.strip("[]")))
    return table(("TASK", "ATTRIBUTES"), rows)


def _queues(data: Any) -> str:
    rows = [
        (
            queue.get("name"),
            (queue.get("exchange") or {}).get("name"),
            queue.get("routing_key"),
            queue.get("durable"),
        )
        for queue in data
    ]
    return table(("QUEUE", "EXCHANGE", "ROUTING KEY", "DURABLE"), rows)


_SPARSE = frozenset({"pool", "broker", "rusage"})  # mostly of values that say nothing; a 0 of the others does


def _stats(data: Any) -> str:
    total = data.get("total") or {}
    lines = [(name, value) for name, value in data.items() if not isinstance(value, dict)]
    for group, value in data.items():
        if isinstance(value, dict) and group != "total":
            nothing: tuple[object, ...] = (None, [], {}, "", 0) if group in _SPARSE else ()
            lines += [(f"{group}.{name}", each) for name, each in _flat(value) if each not in nothing]
    width = max((len(name) for name, _ in lines), default=0)
    text = "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)
    counts = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return f"{text}\n\n{table(('TASK', 'STARTED'), counts)}" if counts else text


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, each in value.items():
        if isinstance(each, dict):
            found += _flat(each, f"{prefix}{name}.")
        else:
            found.append((prefix + name, each))
    return found


_RENDERERS: Mapping[str, Callable[[Any], str]] = {
    "active": _active,
    "active_queues": _queues,
    "registered": _registered,
    "reserved": _reserved,
    "scheduled": _scheduled,
    "stats": _stats,
}
