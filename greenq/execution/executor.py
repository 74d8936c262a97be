"""The life of one task beside its user code: from a request to its one outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextvars import Context
from datetime import datetime, timezone
from typing import Any

from greenq.app.base import GreenQ
from greenq.app.hooks import BeforeTask, TaskEnd
from greenq.app.task import Task
from greenq.context import TaskContext, current
from greenq.exceptions import Interrupt, MessageError
from greenq.execution import failures
from greenq.execution.following import after_success
from greenq.execution.limits import Limits
from greenq.model import Outcome, Record, Request, State
from greenq.wire.body import decode_body
from greenq.wire.results import encode_state, encode_success
from greenq.wire.serializers import Accept

Judge = Callable[["Executor", Task[..., Any], TaskContext, Request, BaseException], Outcome]


class Executor:
    """Runs requests; one instance a process, called in whatever greenlet or thread has the slot."""

    def __init__(
        self, app: GreenQ, hostname: str, accept: Accept, limits: Limits | None, *, keep_results: bool, store: Any
    ) -> None:
        """`store(record)` hands over a record that is not an outcome (STARTED); it may not block.

        `limits` is None where another process keeps the clocks.
        """
        self.app = app
        self.hostname = hostname
        self.serializer: str = app.conf.result_serializer
        self.expires: float | None = app.conf.result_expires or None
        self.failure_expires: float | None = app.conf.result_failure_expires or self.expires
        self.compression: str | None = app.conf.result_compression
        self._tasks = app.tasks
        self._before = app.hooks.before_task
        self._after = app.hooks.after_task
        self._accept = accept
        self._limits = limits
        self.keeps_any = keep_results
        self._store = store
        self._pid = os.getpid()

    def run(self, request: Request) -> Outcome:
        """Run to the one outcome; never raises for anything user code does."""
        try:
            return self._run(request)
        except BaseException as error:
            # Given back, the message would come and fail again without end.
            return failures.defect(self, request, error)

    def _run(self, request: Request) -> Outcome:
        began = time.perf_counter()
        request.started = time.time()
        try:
            task = self._tasks[request.name]
            args, kwargs, embed = decode_body(request, self._accept)
        except KeyError:
            return failures.not_registered(self, request)
        except MessageError as error:
            return failures.undecodable(self, request, error)
        context = TaskContext(request, args, kwargs, embed, hostname=self.hostname)
        if task.track_started and self.keeps(task, request):
            self._note_start(request)
        scope = Context()
        if self._limits is not None:
            self._limits.begin(task, request)
        value, raised = self._call_task(scope, task, context, request)
        if self._limits is not None:
            self._limits.end(request)
        if os.getpid() != self._pid:
            _leave_child(raised)
        if raised is not None:
            outcome = self._judged(failures.outcome_of, task, context, request, raised)
        else:
            outcome, raised = self._succeeded(task, context, request, value)
        self._ended(began, scope, context, outcome, raised)
        return outcome

    def _call_task(
        self, scope: Context, task: Task[..., Any], context: TaskContext, request: Request
    ) -> tuple[Any, BaseException | None]:
        """The value, or what was raised. Endings strike in the state "running", so nowhere but here.

        Whatever a task raises, SystemExit and KeyboardInterrupt included, ends the task and not the worker; a
        worker that died of a task would take its neighbours along.
        """
        try:
            try:
                request.state = "running"
                value = scope.run(_call, task, context, self._before)
                request.state = "finishing"
            except BaseException as error:
                request.state = "finishing"
                return None, error
        except BaseException as ending:
            # It struck just as the task raised something of its own.
            request.state = "finishing"
            return None, ending
        return value, None

    def _judged(
        self, judge: Judge, task: Task[..., Any], context: TaskContext, request: Request, error: BaseException
    ) -> Outcome:
        """What `judge` makes of the error, or a defect: an `after_task` hook hears of every run."""
        try:
            return judge(self, task, context, request, error)
        except BaseException as broken:
            return failures.defect(self, request, broken)

    def _ended(
        self, began: float, scope: Context, context: TaskContext, outcome: Outcome, error: BaseException | None
    ) -> None:
        """Tell the hooks, in the task's own context: what those before the task have set is there."""
        outcome.runtime = time.perf_counter() - began
        if self._after.hooks:
            end = TaskEnd(outcome.state, outcome.value, error, outcome.runtime)
            scope.run(self._after.run, context, end)

    def epitaph(self, request: Request, error: BaseException) -> Outcome:
        """The outcome of a run that `error` ended from outside, in a process that is no more."""
        try:
            task = self._tasks[request.name]
            args, kwargs, embed = decode_body(request, self._accept)
        except (KeyError, MessageError) as unreadable:
            return failures.defect(self, request, unreadable)
        context = TaskContext(request, args, kwargs, embed, hostname=self.hostname)
        judge = failures.outcome_of if isinstance(error, Interrupt) else failures.failed
        return self._judged(judge, task, context, request, error)

    def keeps(self, task: Task[..., Any], request: Request) -> bool:
        """Is the result of this run to be stored?"""
        ignored = request.ignore_result
        return self.keeps_any and not (task.ignore_result if ignored is None else ignored)

    def record(self, request: Request, state: str, payload: bytes) -> Record:
        """Address an encoded result."""
        expires = self.failure_expires if state == State.FAILURE else self.expires
        return Record(request.id, state, payload, request.reply_to, expires)

    def extended(self, context: TaskContext | None, request: Request) -> dict[str, Any] | None:
        """What `result_extended` adds to a stored result (wire.md 6.2)."""
        if not self.app.conf.result_extended:
            return None
        return {
            "name": request.name,
            "args": list(context.args) if context is not None else None,
            "kwargs": context.kwargs if context is not None else None,
            "worker": self.hostname,
            "retries": request.retries,
            "queue": request.routing_key or request.queue,
        }

    def _note_start(self, request: Request) -> None:
        payload = encode_state(request.id, State.STARTED, {"pid": os.getpid(), "hostname": self.hostname})
        self._store(self.record(request, State.STARTED, payload))

    def _succeeded(
        self, task: Task[..., Any], context: TaskContext, request: Request, value: Any
    ) -> tuple[Outcome, BaseException | None]:
        """The outcome, and the error if the value cannot be sent."""
        outcome = Outcome(request, State.SUCCESS)
        try:
            if context.embed:
                outcome.follow_ups = after_success(self.app, context, value)
            if self.keeps(task, request):
                payload = encode_success(
                    request.id,
                    value,
                    serializer=self.serializer,
                    children=context.children,
                    date_done=datetime.now(timezone.utc),
                    group_id=request.group,
                    parent_id=request.parent_id,
                    extended=self.extended(context, request),
                    compression=self.compression,
                )
                outcome.record = self.record(request, State.SUCCESS, payload)
        except BaseException as error:
            # A value that no serializer takes, or whose own hooks raise, is the task's failure, not the worker's.
            return self._judged(failures.failed, task, context, request, error), error
        outcome.value = value
        return outcome, None


def _leave_child(error: BaseException | None) -> None:
    """User code forked, and its child came back here: it ends, for the task and every connection are its parent's."""
    code = error.code if isinstance(error, SystemExit) else error
    os._exit(code if isinstance(code, int) else int(code is not None))


def _call(task: Task[..., Any], context: TaskContext, before: BeforeTask) -> Any:
    current.set(context)
    if before.hooks:
        before.run(context)
    return task.run_here(*context.args, **context.kwargs)
