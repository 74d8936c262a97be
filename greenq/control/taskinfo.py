"""What a command shows of one request: the TASK_INFO object (wire.md 3.4)."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from greenq.control.panel import Panel
from greenq.exceptions import MessageError
from greenq.model import Request

_SCALARS = (
    str,
    int,
    float,
    bool,
    type(None),
    bytes,
    dt.date,
    dt.time,
    decimal.Decimal,
    uuid.UUID,
)
_DEPTH = 32  # levels of an argument that are shown; what is deeper becomes text


def task_info(
    request: Request,
    args: Any,
    kwargs: Any,
    safe: bool = False,  # noqa: FBT001, FBT002  (Celery's)
    *,
    hostname: str = "",
    acknowledged: bool = False,
    worker_pid: int | None = None,
) -> dict[str, Any]:
    """Build the TASK_INFO object of a request; `safe` gives args and kwargs as text."""
    return {
        "id": request.id,
        "name": request.display_name,
        "args": repr(args) if safe else showable(args),
        "kwargs": repr(kwargs) if safe else showable(kwargs),
        "type": request.name,
        "hostname": hostname,
        "time_start": request.started or None,
        "acknowledged": acknowledged,
        "delivery_info": {
            "exchange": request.exchange,
            "routing_key": request.routing_key,
            "priority": request.priority,
            "redelivered": request.redelivered,
        },
        "worker_pid": worker_pid,
    }


def info_of(panel: Panel, request: Request, *, safe: bool = False) -> dict[str, Any]:
    """The same, with everything read from the panel.

    Arguments that cannot be decoded are shown as the text their sender made of them.
    """
    args: Any
    kwargs: Any
    try:
        args, kwargs = panel.arguments(request)
    except MessageError:
        args, kwargs = request.argsrepr or "?", request.kwargsrepr or "?"
    return task_info(
        request,
        args,
        kwargs,
        safe,
        hostname=panel.hostname,
        acknowledged=panel.acknowledged(request),
        worker_pid=panel.worker_pid(request),
    )


def showable(value: Any, depth: int = _DEPTH) -> Any:
    """The value with everything that a JSON reply cannot carry replaced by its text."""
    if isinstance(value, _SCALARS):
        return value
    if depth == 0:
        return repr(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): showable(each, depth - 1) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [showable(each, depth - 1) for each in value]
    return repr(value)
