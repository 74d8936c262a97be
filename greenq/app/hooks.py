"""Hooks: functions of the user's, called when a worker and its children start and stop, and around each task."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, overload

from greenq.context import TaskContext
from greenq.exceptions import HookFailed, Interrupt, SoftTimeLimitExceeded

logger = logging.getLogger(__name__)

X = TypeVar("X")
R = TypeVar("R")

ENDINGS = (Interrupt, SoftTimeLimitExceeded)  # what limits, terminate and a cold stop raise in a task
AGAIN_AFTER = 60.0  # seconds between two log lines about the same failure


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What `worker_start` and `worker_stop` are told."""

    hostname: str
    pool: str
    concurrency: int  # slots at the start
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What `child_start` and `child_stop` are told of the process they run in."""

    hostname: str
    pool: str
    index: int  # 0: tasks run in the worker's own process; else the child's number, from 1


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a run ended, for `after_task`."""

    state: str  # one of model.State: SUCCESS, FAILURE, RETRY, REJECTED, IGNORED, REVOKED, CANCELLED
    value: Any = None  # what the task returned
    error: BaseException | None = None  # what it raised, or what ended it from outside
    runtime: float = 0.0  # seconds


class Hook(NamedTuple):
    """One registered function."""

    function: Callable[..., object]
    name: str
    takes: int  # how many of the offered arguments


class Moment:
    """The hooks of one moment, in the order in which they are called.

    Registered while modules are imported, called by whatever greenlet or thread comes to that moment; the tuple
    is replaced, never changed, so a hook may register another.
    """

    def __init__(self, name: str, offered: int = 1, *, backwards: bool = False) -> None:
        self.name = name
        self.hooks: tuple[Hook, ...] = ()
        self._offered = offered
        self._backwards = backwards  # what ends something undoes in reverse what its beginning did in order
        self._clock: Callable[[], float] = time.monotonic
        self._said: dict[tuple[str, str, str], tuple[float, int]] = {}  # failure: when logged, how often since

    def _add(self, function: Callable[..., object]) -> None:
        hook = Hook(function, name_of(function), _taken(self.name, function, self._offered))
        self.hooks = (hook, *self.hooks) if self._backwards else (*self.hooks, hook)

    def _call(self, *offered: object) -> None:
        process = os.getpid()
        for hook in self.hooks:
            try:
                hook.function(*offered[: hook.takes])
            except BaseException as error:  # noqa: BLE001  (a hook's SystemExit may not end the worker)
                _stay_alone(process)
                self._failed(hook, error, offered)
            else:
                _stay_alone(process)

    def _failed(self, hook: Hook, error: BaseException, offered: tuple[object, ...]) -> None:
        """Log it; a hook that fails at every task writes one line a minute, with how often it was."""
        key = (hook.name, type(error).__qualname__, _place(error))
        now = self._clock()
        said, unsaid = self._said.get(key, (-AGAIN_AFTER, 0))
        if now - said < AGAIN_AFTER:
            self._said[key] = (said, unsaid + 1)
            return
        self._said[key] = (now, 0)
        more = f", and {unsaid} times more since it was last logged" if unsaid else ""
        # A log whose handler raises may not make a task fail that succeeded.
        with contextlib.suppress(Exception):
            logger.error(
                "The %s hook %s failed: %s%s",
                self.name,
                hook.name,
                _said_of(error),
                more,
                exc_info=error,
                extra={"event": "hook.failed"},
            )


class About(Moment, Generic[X]):
    """A moment whose hooks are told one thing: `f()` or `f(info)`."""

    @overload
    def __call__(self, function: Callable[[], R], /) -> Callable[[], R]: ...
    @overload
    def __call__(self, function: Callable[[X], R], /) -> Callable[[X], R]: ...
    @overload
    def __call__(self, /) -> About[X]: ...
    def __call__(self, function: Callable[..., object] | None = None, /) -> Any:
        """Register a function: `@app.hooks.child_start`, with or without parentheses.

        Raises:
            TypeError: an async def, a generator, a class, or wrong parameters.
        """
        if function is None:
            return self
        self._add(function)
        return function

    def run(self, about: X) -> None:
        """Call the hooks; blocks as long as they do."""
        self._call(about)


class Start(About[X]):
    """A moment that decides whether the process is fit."""

    def _failed(self, hook: Hook, error: BaseException, offered: tuple[object, ...]) -> None:
        place = _place(error)
        where = f" ({place})" if place else ""
        raise HookFailed(f"the {self.name} hook {hook.name} failed: {_said_of(error)}{where}") from error


class BeforeTask(About[TaskContext]):
    """The moment before a task, inside its limits."""

    def _failed(self, hook: Hook, error: BaseException, offered: tuple[object, ...]) -> None:
        # Meant for the task, which had only not begun: swallowed here, a limit or a terminate would be lost.
        if isinstance(error, ENDINGS) or _is_the_callers(error, offered[0]):
            raise error
        super()._failed(hook, error, offered)


class AfterTask(Moment):
    """The moment after a task: `f()`, `f(request)` or `f(request, end)`."""

    @overload
    def __call__(self, function: Callable[[], R], /) -> Callable[[], R]: ...
    @overload
    def __call__(self, function: Callable[[TaskContext], R], /) -> Callable[[TaskContext], R]: ...
    @overload
    def __call__(self, function: Callable[[TaskContext, TaskEnd], R], /) -> Callable[[TaskContext, TaskEnd], R]: ...
    @overload
    def __call__(self, /) -> AfterTask: ...
    def __call__(self, function: Callable[..., object] | None = None, /) -> Any:
        """See About."""
        if function is None:
            return self
        self._add(function)
        return function

    def run(self, request: TaskContext, end: TaskEnd) -> None:
        """Call the hooks; blocks as long as they do."""
        self._call(request, end)

    def _failed(self, hook: Hook, error: BaseException, offered: tuple[object, ...]) -> None:
        # On a worker no ending is raised into a run that is over: this one is the hook's own.
        if _is_the_callers(error, offered[0]):
            raise error
        super()._failed(hook, error, offered)


class Hooks:
    """`app.hooks`: one attribute for each moment, each a decorator.

    A hook takes as many of the offered arguments as it has parameters without a default.
    `run` of a start raises HookFailed at the first hook that fails, of anything else only logs.
    """

    def __init__(self) -> None:
        self.worker_start = Start[WorkerInfo]("worker_start")
        self.child_start = Start[ChildInfo]("child_start")
        self.before_task = BeforeTask("before_task")
        self.after_task = AfterTask("after_task", 2, backwards=True)
        self.child_stop = About[ChildInfo]("child_stop", backwards=True)
        self.worker_stop = About[WorkerInfo]("worker_stop", backwards=True)


def name_of(function: Callable[..., object]) -> str:
    """The function's name for people, with its module."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def _taken(moment: str, function: Callable[..., object], offered: int) -> int:
    """How many of the offered arguments the function takes; TypeError for what cannot be a hook."""
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"{moment} hook: {function!r} is not a function")
    name = name_of(function)
    inner = inspect.unwrap(function)
    for code in (inner, getattr(inner, "__call__", None)):  # noqa: B004  (the method, for objects that have one)
        if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(
                f"{moment} hook {name} is an async def, and no loop would run it: write a plain def "
                "(or call asyncio.run(...) inside it)"
            )
        if inspect.isgeneratorfunction(code):
            raise TypeError(f"{moment} hook {name} is a generator, whose body no call runs: take out its yield")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as exc:
        raise TypeError(f"{moment} hook {name}: its parameters cannot be read; wrap it in a def") from exc
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return offered
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(required) > offered or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise TypeError(
            f"{moment} hook {name}{inspect.signature(function)}: it is called with at most {offered} "
            f"positional argument{'s' if offered > 1 else ''}; give the others a default"
        )
    return len(required)


def _is_the_callers(error: BaseException, request: object) -> bool:
    """An eager run is part of a caller that goes on: Ctrl-C, or an ending of the task around it, is for that."""
    eager = isinstance(request, TaskContext) and request.is_eager
    return eager and (isinstance(error, ENDINGS) or not isinstance(error, Exception))


def _stay_alone(process: int) -> None:
    """A hook forked and its child came back: it ends here, for every connection and task is its parent's."""
    if os.getpid() != process:
        os._exit(0)


def _place(error: BaseException) -> str:
    """Where in the hook it was raised: the frame below ours."""
    frames = error.__traceback__
    frames = frames.tb_next if frames is not None else None
    return f"{frames.tb_frame.f_code.co_filename}:{frames.tb_lineno}" if frames is not None else ""


def _said_of(error: BaseException) -> str:
    """The error in one line, whatever its own `__str__` does."""
    try:
        text = " ".join(str(error).split())
    except BaseException as broken:  # noqa: BLE001  (SystemExit included)
        text = f"its text cannot be read ({type(broken).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
