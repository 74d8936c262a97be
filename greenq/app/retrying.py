"""What `self.retry` and the autoretry options make of a failed run (wire.md 8.9)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.app.publishing import build, moment
from greenq.context import TaskContext
from greenq.exceptions import Ignore, MaxRetriesExceeded, Reject, Retry
from greenq.model import TaskMessage

if TYPE_CHECKING:
    from greenq.app.task import Task


class Wanted(NamedTuple):
    """What the caller of `Task.retry` asked for; None stands for "as before"."""

    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    exc: BaseException | None = None
    eta: datetime | None = None
    countdown: float | None = None
    max_retries: int | None = None


class Rerun(NamedTuple):
    """What an eager retry asks for in place of a message."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    retries: int


def retry_of(task: Task[..., Any], request: TaskContext, wanted: Wanted, options: Mapping[str, Any]) -> Retry:
    """Make the Retry of one run, with the message that follows it.

    Raises:
        MaxRetriesExceeded: the retries are used up and no `exc` was given; else `exc` itself.
    """
    args, kwargs, exc, eta, countdown, max_retries = wanted
    limit = task.max_retries if max_retries is None else max_retries
    retries = (request.retries or 0) + 1
    if limit is not None and retries > limit:
        if exc is not None:
            raise exc
        raise MaxRetriesExceeded(f"task {task.name}[{request.id}] has used up its {limit} retries")
    when: float | datetime
    if eta is not None:
        when = due = moment(task.app, eta, f"retry of {task.name}: eta")
    else:
        when = task.default_retry_delay if countdown is None else countdown
        due = moment(task.app, when, f"retry of {task.name}: countdown")
    args = request.args if args is None else args
    kwargs = request.kwargs if kwargs is None else kwargs
    retry = Retry(exc=exc, when=when)
    if request.is_eager:
        retry.follow_up = Rerun(args, kwargs, retries)
    else:
        retry.follow_up = _message(task, request, args, kwargs, retries, due, options)
    return retry


def _message(
    task: Task[..., Any],
    request: TaskContext,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    retries: int,
    due: datetime,
    options: Mapping[str, Any],
) -> TaskMessage:
    """The same task once more: same id, root and group, one retry on, back to the queue it came from."""
    message = request.message
    assert message is not None
    passed_on: dict[str, Any] = {
        "queue": message.queue or None,
        "priority": message.properties.get("priority"),
        "shadow": message.shadow,
        "ignore_result": message.ignore_result,
        "reply_to": message.reply_to or None,
        "group_id": message.group,
        "group_index": message.group_index,
        "time_limit": message.hard_limit,
        "soft_time_limit": message.soft_limit,
    }
    if message.expires is not None:
        passed_on["expires"] = datetime.fromtimestamp(message.expires, timezone.utc)
    if {"queue", "exchange", "routing_key"} & options.keys():
        del passed_on["queue"]
    fixed = {
        "task_id": message.id,
        "root_id": message.root_id or message.id,
        "parent_id": message.id,
        "retries": retries,
        "eta": due,
        # All of them: build_task_message leaves out those that belong to one message or to the broker.
        "headers": {**message.headers, **(options.get("headers") or {})},
        "add_to_parent": False,
    }
    options = {**passed_on, **options, **fixed}
    return build(task.app, message.name, args, kwargs, options, request.embed).message


def autoretry_of(task: Task[..., Any], request: TaskContext, error: BaseException) -> Retry | None:
    """The retry that the task's autoretry options ask for after `error`, or None if they do not apply.

    Raises:
        BaseException: `error`, once the retries are used up.
    """
    if isinstance(error, (Ignore, Reject, Retry)) or not isinstance(error, task.autoretry_for):
        return None
    if isinstance(error, task.dont_autoretry_for):
        return None
    options = dict(task.retry_kwargs)
    if task.retry_backoff:
        options["countdown"] = backoff(
            task.retry_backoff, request.retries or 0, task.retry_backoff_max, jitter=task.retry_jitter
        )
    named = {field: options.pop(field, None) for field in Wanted._fields}
    return retry_of(task, request, Wanted(**{**named, "exc": error}), options)


def backoff(factor: float, retries: int, most: float, *, jitter: bool) -> float:
    """Seconds to wait before the next attempt: `factor` doubled with each retry, at most `most`."""
    # 2**retries of a task that is retried for ever would grow without end; no wait is that long.
    seconds: float = min(most, max(1.0, float(factor)) * 2 ** min(retries, 64))
    if jitter:
        return float(random.randrange(int(seconds) + 1))  # noqa: S311  (spreads load, keeps no secret)
    return seconds
