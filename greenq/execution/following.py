"""What comes next: the messages a finished task makes, and the errbacks that are called at once."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextvars import Context
from typing import Any

from greenq.app.base import GreenQ
from greenq.app.publishing import message_from_signature
from greenq.app.signature import Signature
from greenq.app.task import Task
from greenq.context import TaskContext, current
from greenq.log import printable
from greenq.model import TaskMessage

logger = logging.getLogger(__name__)


def after_success(app: GreenQ, context: TaskContext, value: Any) -> list[TaskMessage]:
    """The callbacks with the value in front of their arguments, and the next step of a chain."""
    if context.embed.get("chord"):
        logger.warning(
            "Task %s[%s] is part of a chord, and chords are not part of this version: its body will not run.",
            printable(context.task),
            printable(context.id),
        )
    messages = [
        message_from_signature(app, signature, (value,), context=context)
        for signature in context.embed.get("callbacks") or ()
    ]
    chain = context.embed.get("chain")
    if chain:
        # The chain stands in reverse: its last element runs next and takes the rest along (wire.md 5.3).
        messages.append(
            message_from_signature(app, chain[-1], (value,), context=context, chain=list(chain[:-1]))
        )
    return messages


def after_failure(app: GreenQ, context: TaskContext, error: BaseException, traceback: str) -> list[TaskMessage]:
    """Call the errbacks that want to see the failure; the messages of the others, each with the task's id.

    Both kinds are told apart as Celery does (wire.md 5.3): one that this app knows, that is not bound and that
    has more than one argument left to fill is called here as `errback(request, error, traceback)`, because an
    exception does not travel. What an errback raises is logged and changes nothing.
    """
    messages = []
    for signature in context.embed.get("errbacks") or ():
        try:
            task = app.tasks.get(signature.get("task"))
            if task is not None and _wants_failure(task, signature):
                Context().run(_call, task, signature, context, (context, error, traceback))
            else:
                messages.append(message_from_signature(app, signature, (context.id,), context=context))
        except BaseException:  # an errback that exits must not take the failed task's outcome along
            logger.exception("The errback %s of %s failed.", signature.get("task"), context.id)
    return messages


def _wants_failure(task: Task[..., Any], signature: Mapping[str, Any]) -> bool:
    if task.bound:
        return False
    kinds = inspect.Parameter
    open_ended = False
    names = []
    for parameter in inspect.signature(task.function).parameters.values():
        open_ended = open_ended or parameter.kind is kinds.VAR_POSITIONAL
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    if signature.get("immutable"):
        return open_ended or len(names) > 1
    left = names[len(signature.get("args") or ()) :]
    return open_ended or len([name for name in left if name not in (signature.get("kwargs") or {})]) > 1


def _call(task: Task[..., Any], signature: Mapping[str, Any], context: TaskContext, failure: tuple[Any, ...]) -> None:
    current.set(context)  # what an errback sends are children of the task that failed
    args, kwargs, _ = Signature(signature).merged(failure)
    task(*args, **kwargs)
