"""Every error greenq raises, in one tree.

GreenqError
├── ConfigError               found at start, never later
│   ├── UnknownSetting        no such setting; names the nearest one
│   ├── AppNotFound           -A, GREENQ_APP and the usual files lead nowhere
│   └── UnsupportedByPool     names the pool and the capability it lacks
├── HookFailed                a worker_start or child_start hook raised: the process is not fit to run tasks
├── BrokerError               the network's or the broker's fault; retried by whoever owns the connection
│   ├── BrokerUnreachable     no connection
│   ├── BrokerPaused          connected, but the broker cannot serve now (LOADING, READONLY, OOM, ...)
│   └── PublishUncertain      the broker may or may not have taken the message; carries its id
├── MessageError              the sender's fault; the message is rejected, once, with a reason code
│   ├── MalformedMessage      envelope, header or body is not what the protocol says
│   ├── ContentRefused        a content type that accept_content does not let in
│   └── UnknownTask           no task of that name in this app (NotRegistered on the wire)
├── EncodeError               a value that the chosen serializer cannot write; the caller's fault
├── PoolError
│   ├── PoolFull              submit() without a free slot
│   ├── PoolClosed            submit() after drain() or stop()
│   └── PoolCannot            what this pool has not: resize() of solo, restart() without child processes
├── ResultError               the result store's fault
│   └── ResultTimeout         get() waited long enough
├── ControlError
│   ├── UnknownCommand
│   ├── BadArgument
│   ├── CommandRefused        this node does not obey that command, or not from just anybody
│   └── NoReply               nobody answered in time
├── TaskError                 what a stored result says about a task that did not succeed
│   ├── TaskRevokedError
│   ├── TimeLimitExceeded
│   ├── WorkerLostError
│   ├── MaxRetriesExceeded
│   └── NotRegistered
└── TaskControl               raised by user code on purpose: Retry, Ignore, Reject
SoftTimeLimitExceeded         an Exception: the task may catch it and tidy up
Interrupt (BaseException)     Killed, HardTimeLimit, ColdStop: a task may not swallow these by accident

An error says whose fault it is and what to do next.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any


class GreenqError(Exception):
    """The root of everything greenq raises on its own account."""


class ConfigError(GreenqError):
    """Something in the configuration is wrong; the message names it and the cure."""


class UnknownSetting(ConfigError):
    """A setting of that name does not exist."""


class AppNotFound(ConfigError):
    """The application could not be found; the message says what was tried, and where."""


class UnsupportedByPool(ConfigError):
    """The chosen pool cannot keep what was asked of it."""


class HookFailed(GreenqError):
    """A hook that makes a process ready has failed; the message names the hook and what it raised."""


class BrokerError(GreenqError):
    """The broker or the network failed; the owner of the connection tries again."""


class BrokerUnreachable(BrokerError):
    """There is no connection to the broker."""


class BrokerPaused(BrokerError):
    """The broker answers, but cannot serve now: loading, read-only, full. Wait; do not exit."""


class PublishUncertain(BrokerError):
    """A publish was cut short: the message may or may not be in the broker.

    Sending again with the same id is safe when the task is idempotent.
    """

    def __init__(self, message: str, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class MessageError(GreenqError):
    """A message cannot be run as it is; it is rejected once.

    `reason` is a stable code: envelope, body_encoding, no_id, bad_header, content_type, body_shape,
    body_decode, compression, unknown_task.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class MalformedMessage(MessageError):
    """The bytes are not a task message of protocol 1 or 2."""


class ContentRefused(MessageError):
    """The content type is not among `accept_content`; nothing was decoded."""


class UnknownTask(MessageError):
    """No task of that name is registered here."""


class EncodeError(GreenqError, TypeError):
    """A value cannot be written with the chosen serializer; the message names both."""


class PoolError(GreenqError):
    """A pool was asked for something it cannot do now."""


class PoolFull(PoolError):
    """No slot is free; submit again when one is."""


class PoolClosed(PoolError):
    """The pool takes nothing new."""


class PoolCannot(PoolError):
    """The pool has no such thing; the message says which pool has."""


class ResultError(GreenqError):
    """The result store failed or has no such result."""


class ResultTimeout(ResultError, TimeoutError):
    """The result was not there in time; the task may still be running."""


class ControlError(GreenqError):
    """A remote command could not be served."""


class UnknownCommand(ControlError):
    """No command of that name."""


class BadArgument(ControlError):
    """An argument of a command is missing or of the wrong kind; the message names it."""


class CommandRefused(ControlError):
    """The node does not obey this command; the message names what would have to change for it."""


class NoReply(ControlError):
    """No worker answered in time."""


class TaskError(GreenqError):
    """What a stored result says about a task that did not succeed."""


class TaskRevokedError(TaskError):
    """The task was revoked, terminated or had expired."""


class TimeLimitExceeded(TaskError):
    """The task ran past its hard time limit (seconds)."""


class WorkerLostError(TaskError):
    """The process that ran the task died."""


class MaxRetriesExceeded(TaskError):
    """The task used up its retries."""


class NotRegistered(TaskError, KeyError):
    """No worker of this app knows a task of that name."""

    def __str__(self) -> str:
        return self.args[0] if self.args else ""


class TaskControl(GreenqError):
    """Raised by a task on purpose; never a failure."""


class Retry(TaskControl):
    """The task asked to be run again; raised by `Task.retry`.

    `when` is a number of seconds from now, a moment, or None. `follow_up` is the message that runs it again
    (a `model.TaskMessage`), published by the worker together with the ack; None if there is none to publish.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: float | datetime | None = None,
    ) -> None:
        super().__init__(message, exc, when)
        self.message = message
        self.exc = exc
        self.when = when
        self.follow_up: Any = None

    def __str__(self) -> str:
        if self.message:
            return self.message
        moment = f"in {self.when}s" if isinstance(self.when, (int, float)) else f"at {self.when}"
        return f"Retry {moment}: {self.exc!r}" if self.exc else f"Retry {moment}"


class Ignore(TaskControl):
    """The task ends without an outcome being stored; its message is acknowledged."""


class Reject(TaskControl):
    """The task's message goes back to the broker (`requeue`) or to the dead queue."""

    def __init__(self, reason: object = None, *, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __str__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class SoftTimeLimitExceeded(Exception):  # Celery's name, which user code catches
    """The task ran past its soft time limit; catch it to tidy up, then return or raise."""


class Interrupt(BaseException):
    """Ends a task from outside. Not an Exception: `except Exception` must not swallow it."""


class Killed(Interrupt):
    """The task was terminated by a command."""


class HardTimeLimit(Interrupt):
    """The task ran past its hard time limit."""


class ColdStop(Interrupt):
    """The worker ends now; the task's message goes back to the broker."""
