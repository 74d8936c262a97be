"""What a raised exception makes of a request: failed, retried, rejected, ignored, revoked, or given back."""

from __future__ import annotations

import traceback
from contextvars import Context
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenq.app.task import Task
from greenq.context import TaskContext, current
from greenq.exceptions import (
    ColdStop,
    HardTimeLimit,
    Ignore,
    Killed,
    MessageError,
    NotRegistered,
    Reject,
    Retry,
    TaskError,
    TaskRevokedError,
    TimeLimitExceeded,
)
from greenq.execution.following import after_failure
from greenq.model import Outcome, Record, Request, Settle, State
from greenq.wire.reprs import encodable, shortened
from greenq.wire.results import encode_exception

if TYPE_CHECKING:
    from greenq.execution.executor import Executor

PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"
TRACEBACK_CHARACTERS = 64 * 1024


def outcome_of(
    executor: Executor, task: Task[..., Any], context: TaskContext, request: Request, error: BaseException
) -> Outcome:
    """Name the outcome of a run that raised."""
    if isinstance(error, ColdStop):
        return Outcome(request, State.CANCELLED, Settle.REQUEUE)
    if isinstance(error, Killed):
        outcome = revoked(executor, request, "terminated")
        outcome.signum = next((each for each in error.args if isinstance(each, int)), None)
        return outcome
    if isinstance(error, Ignore):
        return Outcome(request, State.IGNORED)
    if isinstance(error, Reject):
        return _rejected(executor, task, context, request, error)
    if isinstance(error, HardTimeLimit):
        return _end(executor, task, context, request, TimeLimitExceeded(*error.args), text="", on_timeout=True)
    if not isinstance(error, Retry):
        retry = _autoretry(task, context, error)
        if retry is None:
            return failed(executor, task, context, request, error)
        error = retry
    if isinstance(error, Retry):
        return _retried(executor, task, context, request, error)
    return failed(executor, task, context, request, error)


def failed(
    executor: Executor, task: Task[..., Any], context: TaskContext, request: Request, error: BaseException
) -> Outcome:
    """FAILURE, with the traceback of user code."""
    return _end(executor, task, context, request, error, text=_traceback(error))


def revoked(executor: Executor, request: Request, why: str) -> Outcome:
    """REVOKED: revoked, terminated or expired."""
    outcome = Outcome(request, State.REVOKED, reason=why)
    _attach(executor, None, None, outcome, TaskRevokedError(why), "")
    return outcome


def not_registered(executor: Executor, request: Request) -> Outcome:
    """Nobody here knows the task: to the dead queue, and FAILURE for whoever waits."""
    outcome = Outcome(request, State.FAILURE, Settle.DEAD, reason="unknown_task")
    _attach(executor, None, None, outcome, NotRegistered(request.name), "")
    outcome.result_text = f"no task {request.name!r} in this app"
    return outcome


def undecodable(executor: Executor, request: Request, error: MessageError) -> Outcome:
    """The body cannot be read: to the dead queue, and FAILURE for whoever waits."""
    outcome = Outcome(request, State.FAILURE, Settle.DEAD, reason=error.reason)
    _attach(executor, None, None, outcome, error, "")
    outcome.result_text = str(error)
    return outcome


def defect(executor: Executor, request: Request, error: BaseException) -> Outcome:
    """Nothing could be made of the run: to the dead queue, since running it again would end the same way."""
    outcome = Outcome(request, State.FAILURE, Settle.DEAD, reason="worker_error", traceback=_traceback(error))
    _attach(executor, None, None, outcome, TaskError(shortened(error)), outcome.traceback)
    return outcome


def _end(
    executor: Executor,
    task: Task[..., Any],
    context: TaskContext,
    request: Request,
    error: BaseException,
    *,
    text: str,
    on_timeout: bool = False,
) -> Outcome:
    outcome = Outcome(request, State.FAILURE, traceback=text)
    outcome.expected = isinstance(error, tuple(task.throws))
    if on_timeout and not task.acks_on_timeout:
        outcome.how = Settle.REQUEUE
    elif not on_timeout and not task.acks_on_failure:
        outcome.how, outcome.reason = Settle.DEAD, "task_failed"
    _attach(executor, task, context, outcome, error, text)
    if outcome.record is not None:
        outcome.more_records = _of_chain(executor, context, request, error, text)
    outcome.follow_ups = after_failure(executor.app, context, error, text)
    return outcome


def _of_chain(
    executor: Executor, context: TaskContext, request: Request, error: BaseException, text: str
) -> list[Record]:
    """The same failure for every later step of the chain: who sent it waits for the last one (wire.md 5.3)."""
    records = []
    steps = list(context.embed.get("chain") or ())
    for step in steps:
        options = step.get("options") or {}
        if step.get("subtask_type") == "chord" and isinstance((step.get("kwargs") or {}).get("body"), dict):
            steps.append(step["kwargs"]["body"])  # later steps wait for the chord's body, not for its own id
        task_id = options.get("task_id")
        if not isinstance(task_id, str):
            continue
        payload = encode_exception(
            task_id,
            State.FAILURE,
            error,
            traceback=text or None,
            serializer=executor.serializer,
            date_done=datetime.now(timezone.utc),
            group_id=options.get("group_id"),
            compression=executor.compression,
        )
        reply_to = options.get("reply_to") or request.reply_to
        records.append(Record(task_id, State.FAILURE, payload, reply_to, executor.failure_expires))
    return records


def _rejected(
    executor: Executor, task: Task[..., Any], context: TaskContext, request: Request, error: Reject
) -> Outcome:
    if error.requeue:
        return Outcome(request, State.REJECTED, Settle.REQUEUE, result_text=shortened(error))
    outcome = Outcome(request, State.REJECTED, Settle.DEAD, reason="rejected", result_text=shortened(error))
    _attach(executor, task, context, outcome, error, "", state=State.FAILURE)
    return outcome


def _autoretry(task: Task[..., Any], context: TaskContext, error: BaseException) -> BaseException | None:
    """The retry the task's options ask for, what exceeding them raises, or None if they do not apply."""
    try:
        return Context().run(_asked, task, context, error)
    except BaseException as exceeded:
        return exceeded


def _asked(task: Task[..., Any], context: TaskContext, error: BaseException) -> BaseException | None:
    current.set(context)  # the run's own context is gone with it, and a retry is made of `self.request`
    return task.autoretry(error)


def _retried(
    executor: Executor, task: Task[..., Any], context: TaskContext, request: Request, error: Retry
) -> Outcome:
    outcome = Outcome(request, State.RETRY)
    if error.follow_up is not None:
        outcome.follow_ups = [error.follow_up]
    reason = error.exc if error.exc is not None else error
    text = _traceback(reason)
    _attach(executor, task, context, outcome, reason, text)
    outcome.result_text = shortened(error, str)
    outcome.traceback = text
    return outcome


def _attach(
    executor: Executor,
    task: Task[..., Any] | None,
    context: TaskContext | None,
    outcome: Outcome,
    error: BaseException,
    text: str,
    *,
    state: str = "",
) -> None:
    """Encode the exception as the outcome's record, where results are kept."""
    request = outcome.request
    outcome.result_text = shortened(error)
    state = state or outcome.state
    if task is not None:
        wanted = executor.keeps(task, request) or (
            state == State.FAILURE and executor.app.conf.task_store_errors_even_if_ignored
        )
    else:
        wanted = executor.keeps_any and request.ignore_result is not True
    if not wanted or not request.id:
        return
    encode = partial(
        encode_exception,
        request.id,
        state,
        traceback=text or None,
        serializer=executor.serializer,
        children=context.children if context is not None else (),
        date_done=datetime.now(timezone.utc) if state in State.READY else None,
        group_id=request.group,
        parent_id=request.parent_id,
        compression=executor.compression,
    )
    try:
        payload = encode(error, extended=executor.extended(context, request))
    except BaseException:
        # A hook of the user's (__json__, __reduce__, __repr__) raised what no encoder expects. Whoever waits for
        # the result gets at least its text.
        payload = encode(TaskError(outcome.result_text))
    outcome.record = executor.record(request, state, payload)


def _traceback(error: BaseException) -> str:
    """The traceback from user code on; greenq's own frames in front of it tell nobody anything."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(PACKAGE):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
    except BaseException as broken:
        text = f"{type(error).__name__}: its traceback cannot be formatted ({type(broken).__name__})\n"
    return encodable(text[-TRACEBACK_CHARACTERS:])
