"""Run a task at once in the calling process: `Task.apply` and `task_always_eager`."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from greenq._speedups import decode_parts
from greenq.app.hooks import TaskEnd
from greenq.app.options import suggestion
from greenq.app.publishing import KNOWN, new_id, tell
from greenq.app.results import EagerResult
from greenq.app.retrying import Rerun
from greenq.app.signature import as_signature
from greenq.context import TaskContext, current
from greenq.exceptions import Ignore, Reject, Retry
from greenq.model import Record, Request, State
from greenq.wire.results import encode_exception, encode_success

if TYPE_CHECKING:
    from greenq.app.task import Task


def apply(
    task: Task[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    throw: bool,
) -> EagerResult[Any]:
    """Run the task here and now, its retries without their delays included, with the task hooks around each run.

    What only makes sense on a broker (countdown, queue, priority, ...) is checked for its name and else has
    no effect: there is nothing to wait for and nowhere to go.

    Raises:
        BaseException: whatever the task raised, if `throw`.
    """
    for key in options:
        if key not in KNOWN:
            raise TypeError(f"applying {task.name}: there is no option {key!r}{suggestion(key, KNOWN)}")
    run = Rerun(args, kwargs, options.get("retries") or 0)
    task_id = options.get("task_id") or new_id()
    while True:
        context = _context(task, task_id, run, options)
        # A copy, so that what the task sets stays its own, as on a worker.
        result, again = copy_context().run(_attempt, task, context, throw=throw)
        if again is None:
            break
        run = again
    if task.store_eager_result and not _ignored(task, options):
        _store(task, context, result)
    _call_linked(context, result, options)
    return result


def _attempt(task: Task[..., Any], context: TaskContext, *, throw: bool) -> tuple[EagerResult[Any], Rerun | None]:
    """One run, with the hooks around it."""
    current.set(context)
    hooks, began = task.app.hooks, time.perf_counter()
    raised: BaseException | None = None
    try:
        hooks.before_task.run(context)
        value = task.run_here(*context.args, **context.kwargs)
    except Exception as error:  # noqa: BLE001  (whatever a task raises is its outcome)
        raised = error
        result, again = _failed(task, context, error)
    except BaseException as error:  # Ctrl-C, an exit: the caller's affair
        hooks.after_task.run(context, TaskEnd(State.FAILURE, None, error, time.perf_counter() - began))
        raise
    else:
        result, again = EagerResult(context.id, value, State.SUCCESS), None
    returned = None if raised is not None else result.result
    hooks.after_task.run(context, TaskEnd(result.state, returned, raised, time.perf_counter() - began))
    if throw and result.state == State.FAILURE:
        raise result.result
    return result, again


def _failed(
    task: Task[..., Any], context: TaskContext, failure: BaseException
) -> tuple[EagerResult[Any], Rerun | None]:
    task_id, text = context.id, traceback.format_exc()
    if isinstance(failure, Ignore):
        return EagerResult(task_id, None, State.IGNORED), None
    if isinstance(failure, Reject):
        return EagerResult(task_id, failure, State.REJECTED), None
    if not isinstance(failure, Retry):
        try:
            failure = task.autoretry(failure) or failure
        except Exception as exceeded:  # noqa: BLE001  (the same)
            failure = exceeded
    if isinstance(failure, Retry) and isinstance(failure.follow_up, Rerun):
        return EagerResult(task_id, failure, State.RETRY), failure.follow_up
    return EagerResult(task_id, failure, State.FAILURE, text), None


def _context(task: Task[..., Any], task_id: str, run: Rerun, options: Mapping[str, Any]) -> TaskContext:
    parent = current.get()
    outer = parent.message if parent is not None else None
    headers = {
        **(options.get("headers") or {}),
        "lang": "py",
        "task": task.name,
        "id": task_id,
        "retries": run.retries,
        "root_id": options.get("root_id") or (outer.root_id or outer.id if outer is not None else task_id),
        "parent_id": options.get("parent_id") or (outer.id if outer is not None else None),
        "group": options.get("group_id"),
        "group_index": options.get("group_index"),
        "shadow": options.get("shadow"),
        "ignore_result": _ignored(task, options),
        "origin": f"gen{os.getpid()}@{socket.gethostname()}",
    }
    properties = {"correlation_id": task_id, "delivery_info": {"exchange": "", "routing_key": ""}}
    request: Request = decode_parts(headers, properties, "application/json", "utf-8", b"", "", "")
    return TaskContext(request, tuple(run.args), dict(run.kwargs), {}, hostname=socket.gethostname(), is_eager=True)


def _ignored(task: Task[..., Any], options: Mapping[str, Any]) -> bool:
    given = options.get("ignore_result")
    return bool(task.ignore_result if given is None else given)


def _call_linked(context: TaskContext, result: EagerResult[Any], options: Mapping[str, Any]) -> None:
    """Send what was linked, as a worker would: eagerly too while task_always_eager is on."""
    if result.state == State.SUCCESS:
        linked, argument = options.get("link"), result.result
    elif result.state == State.FAILURE:
        linked, argument = options.get("link_error"), result.id
    else:
        return
    for each in linked if isinstance(linked, (list, tuple)) else [linked] if linked else []:
        sent = as_signature(each).apply_async((argument,), parent_id=result.id, root_id=context.root_id)
        tell(context, sent.id)


def _store(task: Task[..., Any], context: TaskContext, result: EagerResult[Any]) -> None:
    app = task.app
    conf = app.conf
    shared: dict[str, Any] = {
        "serializer": conf.result_serializer,
        "children": context.children,
        "date_done": app.now(),
        "group_id": context.group,
        "parent_id": context.parent_id,
    }
    if result.state == State.SUCCESS:
        payload = encode_success(result.id, result.result, **shared)
    elif result.state == State.FAILURE:
        text = result.traceback
        payload = encode_exception(result.id, State.FAILURE, result.result, traceback=text, **shared)
    else:
        return
    app.results.store([Record(result.id, result.state, payload, "", conf.result_expires or None)])
