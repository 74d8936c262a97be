"""greenq: a task-queue worker on green threads that speaks Celery's wire protocols.

Importing the package loads nothing but this page; each name brings its own module at its first use.
"""

from __future__ import annotations

# Not from typing: importing that would be most of what `import greenq` costs. Checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from greenq.app.base import GreenQ
    from greenq.app.hooks import ChildInfo, TaskEnd, WorkerInfo
    from greenq.app.results import AsyncResult, EagerResult, allow_join_result
    from greenq.app.shared import shared_task
    from greenq.app.signature import Signature, group, signature
    from greenq.app.task import Task
    from greenq.context import TaskContext
    from greenq.exceptions import (
        GreenqError,
        Ignore,
        MaxRetriesExceeded,
        Reject,
        ResultTimeout,
        Retry,
        SoftTimeLimitExceeded,
        TaskRevokedError,
        TimeLimitExceeded,
    )
    from greenq.worker.autoscale import Autoscaler

__version__ = "0.1.0"

__all__ = [
    "AsyncResult",
    "Autoscaler",
    "ChildInfo",
    "EagerResult",
    "GreenQ",
    "GreenqError",
    "Ignore",
    "MaxRetriesExceeded",
    "Reject",
    "ResultTimeout",
    "Retry",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "TaskContext",
    "TaskEnd",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "WorkerInfo",
    "allow_join_result",
    "group",
    "shared_task",
    "signature",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = {
        "AsyncResult": "greenq.app.results",
        "Autoscaler": "greenq.worker.autoscale",
        "ChildInfo": "greenq.app.hooks",
        "EagerResult": "greenq.app.results",
        "GreenQ": "greenq.app.base",
        "Signature": "greenq.app.signature",
        "Task": "greenq.app.task",
        "TaskContext": "greenq.context",
        "TaskEnd": "greenq.app.hooks",
        "WorkerInfo": "greenq.app.hooks",
        "allow_join_result": "greenq.app.results",
        "group": "greenq.app.signature",
        "shared_task": "greenq.app.shared",
        "signature": "greenq.app.signature",
    }
    if name in home:
        value = getattr(import_module(home[name]), name)
    elif name in __all__:
        value = getattr(import_module("greenq.exceptions"), name)
    else:
        raise AttributeError(f"module 'greenq' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
