"""Replies as a person reads them: tables for lists of tasks, key and value for the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from greenq.log import printable

_WIDEST = 60  # characters of one column but the last
_INDENT = "    "


def render(command: str, data: Any, width: int | None = None) -> str:
    """The reply of one node, indented, without a newline at the end.

    A table's lines are cut to `width` columns, those of the terminal; None cuts nothing, for a file or a pipe.
    What a node or a sender has put into a value never steers the terminal.
    """
    if isinstance(data, dict) and set(data) in ({"ok"}, {"error"}):
        text = str(next(iter(data.values())))
    else:
        text = _shown(command, data)
        if width is not None and command in _RENDERERS:
            most = max(20, width - len(_INDENT))
            text = "\n".join(map(partial(_cut, most=most), text.split("\n")))
    return "\n".join(_INDENT + printable(line.expandtabs()) if line else line for line in text.splitlines())


def _shown(command: str, data: Any) -> str:
    try:
        return _RENDERERS[command](data)
    except (AttributeError, KeyError, TypeError, ValueError):
        # No table for it, or not what workers reply: shown as it came.
        return plain(data)


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
    lines = [[*(_cut(_cell(cell), _WIDEST) for cell in row[:-1]), _cell(row[-1])] for row in rows]
    if not lines:
        return "- empty -"
    widths = [max(len(line[i]) for line in [list(headings), *lines]) for i in range(len(headings))]
    laid = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [list(headings), *lines]
    ]
    return "\n".join(laid)


def _cell(value: object) -> str:
    return "-" if value is None else " ".join(str(value).split())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


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


def _found(data: Any) -> str:
    rows = [(task_id, state, info.get("name"), _call(info)) for task_id, (state, info) in sorted(data.items())]
    return table(("ID", "STATE", "TASK", "ARGUMENTS"), rows)


def _clock(data: Any) -> str:
    return str(data["clock"])


def _conf(data: Any) -> str:
    return _lines(sorted((name, as_json(value, indent=None)) for name, value in data.items()))


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
    text = _lines(lines)
    counts = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return f"{text}\n\n{table(('TASK', 'STARTED'), counts)}" if counts else text


def _lines(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values, a line each, the values below each other."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


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
    "clock": _clock,
    "conf": _conf,
    "query_task": _found,
    "registered": _registered,
    "reserved": _reserved,
    "scheduled": _scheduled,
    "stats": _stats,
}
