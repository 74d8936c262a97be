"""A task: a function, its options, and the ways to call and to send it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from greenq.app import eager
from greenq.app.arguments import ArgumentCheck
from greenq.app.options import KNOWN, annotated, checked, resolved
from greenq.app.results import AsyncResult, EagerResult
from greenq.app.retrying import Wanted, autoretry_of, retry_of
from greenq.app.signature import Signature
from greenq.context import TaskContext, current
from greenq.exceptions import Retry
from greenq.model import Record
from greenq.wire.results import encode_state

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenq.app.base import GreenQ
    from greenq.app.publishing import SendOptions

P = ParamSpec("P")
R = TypeVar("R")
_NO_OPTIONS: SendOptions = {}


class DirectCall(TaskContext):
    """What `self.request` is while a task is called as a function; `outer` is the run around the call."""

    __slots__ = ("outer",)

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], outer: TaskContext | None) -> None:
        super().__init__(None, args, kwargs, {})
        self.outer = outer


class Task(Generic[P, R]):
    """One registered function. Its options are attributes, with the value in force.

    `explicit` holds the options somebody wrote for this task; the others follow the settings. Setting an
    option attribute makes it explicit, and goes over `task_annotations` too: it is `assigned`.
    """

    __name__: str
    name: str
    app: GreenQ
    function: Callable[..., Any]
    bound: bool
    explicit: dict[str, Any]
    assigned: dict[str, Any]
    run_here: Callable[..., R]
    _check: ArgumentCheck

    typing: bool
    ignore_result: bool
    store_errors_even_if_ignored: bool
    store_eager_result: bool
    acks_late: bool
    acks_on_failure_or_timeout: bool
    acks_on_failure: bool
    acks_on_timeout: bool
    reject_on_worker_lost: bool
    rate_limit: str | float | None
    time_limit: float | None
    soft_time_limit: float | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: tuple[type[BaseException], ...]
    dont_autoretry_for: tuple[type[BaseException], ...]
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    expires: float | None
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    delivery_mode: int
    serializer: str
    compression: str | None
    throws: tuple[type[BaseException], ...]
    track_started: bool

    def __init__(
        self, app: GreenQ, function: Callable[..., Any], name: str, options: Mapping[str, Any], *, bound: bool
    ) -> None:
        refuse_async(function, name)
        state = self.__dict__
        state.update(
            name=name,
            app=app,
            function=function,
            bound=bound,
            explicit=checked(name, options),
            assigned={},
            run_here=MethodType(function, self) if bound else function,
            _check=ArgumentCheck(name, function, bound=bound),
            __wrapped__=function,
            __doc__=function.__doc__,
            __module__=function.__module__,
            __name__=function.__name__,
            __qualname__=function.__qualname__,
        )
        self.resolve()

    def resolve(self) -> None:
        """Work out the options in force; the app calls it when settings change.

        Raises:
            ConfigError: if task_annotations cannot be understood.
        """
        over = annotated(self.app.conf, self.name)
        self.__dict__.update(resolved(self.app.conf, {**self.explicit, **over, **self.assigned}))

    def options_in_force(self) -> Mapping[str, Any]:
        """All options by name."""
        return {name: self.__dict__[name] for name in KNOWN}

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in KNOWN:
            self.__dict__[name] = value
            return
        self.assigned.update(checked(self.name, {name: value}))
        self.explicit.update(self.assigned)
        self.resolve()
        self.app.producer.forget_plan(self.name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here, as a function; nothing is sent."""
        token = current.set(DirectCall(args, kwargs, current.get()))
        try:
            return self.run_here(*args, **kwargs)
        finally:
            current.reset(token)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task with these arguments."""
        return self._send(args, kwargs, _NO_OPTIONS)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[R]:
        """Send the task, with options.

        Blocks until the broker has the message.

        Raises:
            TypeError: the function takes no such arguments, no such option exists, or a serializer refuses.
            ConfigError: an address or a limit makes no sense.
            BrokerUnreachable: it could not be sent, after the retries the settings allow.
            PublishUncertain: it may or may not have been sent.
        """
        return self._send(args or (), kwargs or {}, options)

    def _send(self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> AsyncResult[R]:
        self.check_arguments(args, kwargs)
        app = self.app
        if app.conf.task_always_eager:
            throw = app.conf.task_eager_propagates
            return eager.apply(self, args, kwargs, options, throw=throw)
        outgoing = app.producer.build(self.name, args, kwargs, options)
        app.producer.deliver((outgoing,), options)
        return AsyncResult(outgoing.task_id, app)

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError if the function takes no such arguments, unless `typing` is off."""
        if self.typing:
            self._check(args, kwargs)

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool | None = None,
        **options: Unpack[SendOptions],
    ) -> EagerResult[R]:
        """Run the task at once in this process, with its retries; `throw` lets its exceptions out."""
        args, kwargs = args or (), kwargs or {}
        self.check_arguments(args, kwargs)
        throw = self.app.conf.task_eager_propagates if throw is None else throw
        return eager.apply(self, args, kwargs, options, throw=bool(throw))

    @property
    def request(self) -> TaskContext:
        """What is known of the run this is read in (wire.md 10.2); empty outside any."""
        return current.get() or TaskContext(None, (), {}, {})

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002  (Celery's signature, which user code calls)
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Have this run done again later: same id, one retry on.

        Raises Retry, which the worker turns into the new message, sent in one batch with the end of this run;
        user code writes `raise self.retry(...)` so that readers see that nothing follows. With `throw=False`
        the message is sent at once and the Retry returned.

        Raises:
            MaxRetriesExceeded: the retries are used up and there is no `exc`; else `exc` is raised.
        """
        request = self.request
        if request.called_directly:
            raise exc if exc is not None else Retry("a task called as a function is not retried")
        wanted = Wanted(args, kwargs, exc, eta, countdown, max_retries)
        retry = retry_of(self, request, wanted, options)
        if throw:
            raise retry
        if request.is_eager:
            again = retry.follow_up
            eager.apply(self, again.args, again.kwargs, {"retries": again.retries}, throw=False)
        else:
            self.app.producer.publish([retry.follow_up])
        retry.follow_up = None
        return retry

    def autoretry(self, error: BaseException) -> Retry | None:
        """The retry that the autoretry options ask for after `error`; None if they do not apply.

        Raises:
            BaseException: `error`, once the retries are used up.
        """
        return autoretry_of(self, self.request, error)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Store a state of the user's own (such as "PROGRESS") and its data; blocks until it is stored.

        Raises:
            ValueError: outside a run, without `task_id`.
            ResultError: the store failed.
        """
        request = self.request
        task_id = task_id or request.id
        if not task_id:
            raise ValueError(f"task {self.name}: update_state outside a run needs a task_id")
        conf = self.app.conf
        payload = encode_state(task_id, state or "PROGRESS", meta, serializer=conf.result_serializer)
        expires = conf.result_expires or None
        record = Record(task_id, state or "PROGRESS", payload, request.reply_to or "", expires)
        self.app.results.store([record])

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature with these arguments; more may come in front when it is sent."""
        return Signature(self.name, args, kwargs, app=self.app)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """A signature that takes no more arguments."""
        return Signature(self.name, args, kwargs, immutable=True, app=self.app)

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature:
        """A signature with options."""
        return Signature(self.name, args, kwargs, options, immutable=immutable, app=self.app)

    def AsyncResult(self, task_id: str) -> AsyncResult[R]:  # noqa: N802  (Celery's name)
        """A handle on the result of one sending of this task."""
        return AsyncResult(task_id, self.app)

    def __repr__(self) -> str:
        return f"<task {self.name} of {self.app.main or 'app'}>"


def refuse_async(function: Callable[..., Any], name: str) -> None:
    """Raise TypeError for what would give a coroutine or a generator in place of a result."""
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"task {name} is an async def, which this version does not run: write a plain def; on green "
            "threads its blocking calls already let other tasks run (or call asyncio.run(...) inside it)"
        )
    if not callable(function):
        raise TypeError(f"task {name}: {function!r} is not a function")
    if isinstance(function, type):
        raise TypeError(f"task {name} is a class: class-based tasks are not part of this version")
