"""The task that runs here: a context variable, and the view of it that user code sees as `self.request`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

from greenq.model import Request


class TaskContext:
    """What a task may know about its own run (wire.md 10.2, `request`).

    Built once per run, by the executor or by an eager call. Attributes not held here are read from the
    request it wraps, or from the embed part of the body.
    """

    __slots__ = ("args", "called_directly", "children", "embed", "hostname", "is_eager", "kwargs", "message")

    def __init__(
        self,
        message: Request | None,
        args: tuple[Any, ...] | list[Any],
        kwargs: dict[str, Any],
        embed: dict[str, Any],
        *,
        hostname: str = "",
        is_eager: bool = False,
    ) -> None:
        self.message = message
        self.args = args
        self.kwargs = kwargs
        self.embed = embed
        self.hostname = hostname
        self.is_eager = is_eager
        self.called_directly = message is None
        self.children: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        message = self.message
        if name in _EMBED:
            return self.embed.get(name)
        if message is None:
            return _DEFAULTS.get(name)
        field = _RENAMED.get(name, name)
        if field in _DERIVED:
            return _DERIVED[field](message)
        try:
            return getattr(message, field)
        except AttributeError:
            raise AttributeError(f"the task request has no attribute {name!r}") from None

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, or the header of that name, or `default`."""
        try:
            value = getattr(self, name)
        except AttributeError:
            value = self.message.headers.get(name) if self.message is not None else None
        return default if value is None else value

    def __repr__(self) -> str:
        return f"<TaskContext {self.id} {self.task}>"



def _iso(moment: float | None) -> str | None:
    """Moments stand in a request as text, as Celery has them; code that parses them moves unchanged."""
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat()


_EMBED = frozenset({"callbacks", "errbacks", "chain", "chord"})
_DEFAULTS: dict[str, Any] = {"retries": 0, "headers": {}, "properties": {}, "delivery_info": {}}
_RENAMED = {"task": "name"}
_DERIVED: dict[str, Callable[[Request], Any]] = {
    "delivery_info": lambda r: {
        "exchange": r.exchange,
        "routing_key": r.routing_key,
        "priority": r.priority,
        "redelivered": r.redelivered,
    },
    "eta": lambda r: _iso(r.eta),
    "expires": lambda r: _iso(r.expires),
    "timelimit": lambda r: [r.hard_limit, r.soft_limit],
    "time_limit": lambda r: r.hard_limit,
    "soft_time_limit": lambda r: r.soft_limit,
    "stamped_headers": lambda r: r.headers.get("stamped_headers"),
    "stamps": lambda r: r.headers.get("stamps") or {},
    "replaced_task_nesting": lambda r: r.headers.get("replaced_task_nesting") or 0,
    "utc": lambda r: True,
}

current: ContextVar[TaskContext | None] = ContextVar("greenq_task", default=None)
