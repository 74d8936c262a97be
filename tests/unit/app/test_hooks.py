"""Hooks: what may be one, in which order they are called, and what becomes of their errors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenq import ChildInfo, GreenQ, Ignore, Reject, SoftTimeLimitExceeded, Task, TaskContext, TaskEnd, WorkerInfo
from greenq.context import current
from greenq.exceptions import HookFailed, Killed
from greenq.model import State

WORKER = WorkerInfo("w@h", "gevent", 10, ("celery",))
CHILD = ChildInfo("w@h", "prefork", 1)
STARTS = ("worker_start", "child_start")
STOPS = ("worker_stop", "child_stop")


@pytest.fixture
def log() -> list[Any]:
    return []


def told(moment: str) -> tuple[Any, ...]:
    context = TaskContext(None, (), {}, {})
    return {
        "before_task": (context,),
        "after_task": (context, TaskEnd(State.SUCCESS, 1)),
    }.get(moment, (WORKER,) if moment.startswith("worker") else (CHILD,))


MOMENTS = (*STARTS, *STOPS, "before_task", "after_task")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_hook_takes_as_many_arguments_as_it_has_parameters(app: GreenQ, log: list[Any], moment: str) -> None:
    at, given = getattr(app.hooks, moment), told(moment)
    at(lambda: log.append(()))
    at(lambda one: log.append((one,)))
    at(lambda *all_of_them: log.append(all_of_them))
    at(lambda **options: log.append(options))
    at(lambda conn=None: log.append((conn,)))
    if len(given) > 1:
        at(lambda one, two: log.append((one, two)))
    at.run(*given)
    expected: list[Any] = [(), given[:1], given, {}, (None,), *([given] if len(given) > 1 else [])]
    assert log == (expected[::-1] if "stop" in moment or moment == "after_task" else expected)


def test_what_starts_is_called_in_order_and_what_stops_in_reverse(app: GreenQ, log: list[Any]) -> None:
    for moment in MOMENTS:
        for number in range(3):
            getattr(app.hooks, moment)(functools.partial(log.append, number))
        getattr(app.hooks, moment).run(*told(moment))
        assert log == ([0, 1, 2] if "start" in moment or moment == "before_task" else [2, 1, 0])
        log.clear()


def test_the_decorator_may_be_called_and_gives_the_function_back(app: GreenQ) -> None:
    def connect() -> str:
        return "a connection"

    assert app.hooks.child_start(connect) is connect
    assert app.hooks.child_start()(connect) is connect
    assert [hook.function for hook in app.hooks.child_start.hooks] == [connect, connect]


def test_a_method_of_an_object_may_be_a_hook(app: GreenQ, log: list[Any]) -> None:
    class Database:
        def connect(self, child: ChildInfo) -> None:
            log.append(child.index)

    app.hooks.child_start(Database().connect)
    app.hooks.child_start.run(CHILD)
    assert log == [1]


def test_each_app_has_hooks_of_its_own(app: GreenQ, log: list[Any]) -> None:
    app.hooks.child_start(lambda: log.append(1))
    with GreenQ("other") as other:
        other.hooks.child_start.run(CHILD)
    assert log == []


async def coroutine() -> None: ...


async def coroutines() -> Any:
    yield 1


def generator() -> Iterator[int]:
    yield 1


class Caller:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (coroutine, "async def.*write a plain def"),
        (coroutines, "async def"),
        (functools.partial(coroutine), "async def"),
        (Caller(), "async def"),
        (generator, "is a generator"),
        (Caller, "is not a function"),
        ("connect", "is not a function"),
        (lambda a, b: None, r"\(a, b\): it is called with at most 1 positional argument;"),
        (lambda *, name: None, "give the others a default"),
        (isinstance, "at most 1"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_where_it_is_written(app: GreenQ, function: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=f"^child_start hook.*{reason}"):
        app.hooks.child_start(function)
    assert app.hooks.child_start.hooks == ()


@pytest.mark.parametrize("error", [OSError("no  such\nhost"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", STARTS)
def test_a_start_hook_that_fails_says_which_and_why_in_one_line(
    app: GreenQ, log: list[Any], moment: str, error: BaseException
) -> None:
    def connect() -> None:
        raise error

    at = getattr(app.hooks, moment)
    at(connect)
    at(lambda: log.append("later"))
    with pytest.raises(HookFailed, match=rf"^the {moment} hook .*test_hooks.*connect failed: ") as caught:
        at.run(*told(moment))
    text = str(caught.value)
    assert type(error).__name__ in text
    assert " ".join(str(error).split()) in text
    assert "\n" not in text
    assert "test_hooks.py:" in text
    assert caught.value.__cause__ is error
    assert log == []


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3), KeyboardInterrupt(), Killed(), BaseException()])
@pytest.mark.parametrize("moment", [*STOPS, "after_task"])
def test_a_hook_at_the_end_that_fails_is_logged_and_the_others_run(
    app: GreenQ, log: list[Any], caplog: pytest.LogCaptureFixture, moment: str, error: BaseException
) -> None:
    def close() -> None:
        raise error

    at = getattr(app.hooks, moment)
    at(lambda: log.append("other"))
    at(close)
    at.run(*told(moment))
    assert log == ["other"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"The {moment} hook" in record.getMessage()
    assert "close failed: " + type(error).__name__ in record.getMessage()
    assert record.exc_info
    assert record.exc_info[1] is error


@pytest.mark.parametrize("ending", [Killed(), SoftTimeLimitExceeded(1)])
def test_a_hook_before_a_task_that_fails_is_logged_but_an_ending_of_the_task_goes_through(
    app: GreenQ, caplog: pytest.LogCaptureFixture, ending: BaseException
) -> None:
    failures: list[BaseException] = [ValueError("a"), SystemExit(), Ignore(), Reject()]
    for error in (*failures, ending):
        app.hooks.before_task(functools.partial(_raise, error))
    with pytest.raises(type(ending)):
        app.hooks.before_task.run(*told("before_task"))
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == failures


def _raise(error: BaseException) -> None:
    raise error


def test_the_same_failure_is_logged_once_a_minute_with_how_often_it_was(
    app: GreenQ, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    errors: list[Exception] = [OSError("a")]

    def before() -> None:
        raise errors[0]

    at = app.hooks.before_task
    at._clock = lambda: now
    at(before)
    for _ in range(5):
        at.run(*told("before_task"))
    assert len(caplog.records) == 1
    errors[0] = KeyError("another kind")
    at.run(*told("before_task"))
    assert len(caplog.records) == 2
    now += 61
    errors[0] = OSError("b")
    at.run(*told("before_task"))
    at.run(*told("before_task"))
    assert len(caplog.records) == 3
    assert "OSError: b, and 4 times more since" in caplog.records[2].getMessage()


def test_neither_a_broken_text_nor_a_broken_log_gets_out(app: GreenQ, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil(Exception):
        def __str__(self) -> str:
            raise SystemExit

    app.hooks.after_task(functools.partial(_raise, Evil()))
    app.hooks.after_task.run(*told("after_task"))
    app.hooks.child_start(functools.partial(_raise, Evil()))
    with pytest.raises(HookFailed, match="Evil: its text cannot be read"):
        app.hooks.child_start.run(CHILD)

    def broken(record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")

    monkeypatch.setattr(logging.getLogger("greenq.app.hooks"), "filter", broken)
    app.hooks.child_stop(functools.partial(_raise, ValueError()))
    app.hooks.child_stop.run(CHILD)


# Eager runs: the same hooks around each.


@pytest.fixture
def ends(app: GreenQ) -> list[tuple[str, str, object, str]]:
    found: list[tuple[str, str, object, str]] = []

    @app.hooks.after_task
    def after(request: TaskContext, end: TaskEnd) -> None:
        assert current.get() is request
        assert end.runtime >= 0
        found.append((request.task, end.state, end.value, type(end.error).__name__))

    return found


def test_an_eager_run_has_the_hooks_around_it(app: GreenQ, log: list[Any], ends: list[Any]) -> None:
    @app.hooks.before_task
    def before(request: TaskContext) -> None:
        log.append((request.task, request.is_eager, request.args))

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        log.append("runs")
        return x + y

    assert add.apply((1, 2)).get() == 3
    assert log == [("add", True, (1, 2)), "runs"]
    assert ends == [("add", "SUCCESS", 3, "NoneType")]
    add(1, 2)
    assert log[2:] == ["runs"], "a task called as a function is a function"


def test_every_eager_run_ends_once_whatever_becomes_of_it(app: GreenQ, ends: list[Any]) -> None:
    @app.task(name="t", bind=True, max_retries=1, autoretry_for=(OSError,))
    def task(self: Task[..., Any], error: BaseException | None) -> None:
        if error is not None:
            raise error

    task.apply((ValueError("x"),))
    with pytest.raises(ValueError, match="x"):
        task.apply((ValueError("x"),), throw=True)
    task.apply((Ignore(),))
    task.apply((Reject(),))
    task.apply((OSError(),))
    with pytest.raises(KeyboardInterrupt):
        task.apply((KeyboardInterrupt(),))
    assert ends == [
        ("t", "FAILURE", None, "ValueError"),
        ("t", "FAILURE", None, "ValueError"),
        ("t", "IGNORED", None, "Ignore"),
        ("t", "REJECTED", None, "Reject"),
        ("t", "RETRY", None, "OSError"),
        ("t", "FAILURE", None, "OSError"),
        ("t", "FAILURE", None, "KeyboardInterrupt"),
    ]


@pytest.mark.parametrize("moment", ["before_task", "after_task"])
def test_a_failing_hook_changes_nothing_for_an_eager_run_but_ctrl_c_and_endings_go_through(
    app: GreenQ, moment: str
) -> None:
    @app.task
    def task() -> int:
        return 7

    raised: list[BaseException] = [ValueError("a hook's")]
    getattr(app.hooks, moment)(lambda: _raise(raised[0]))
    assert task.apply(throw=True).get() == 7
    # A terminate or a limit of the task around the eager run, or Ctrl-C at the prompt: not this run's to swallow.
    for error in (Killed(), KeyboardInterrupt(), SystemExit()):
        raised[0] = error
        with pytest.raises(type(error)):
            task.apply()


def test_what_a_hook_sets_is_seen_by_the_task_and_gone_after_it(app: GreenQ) -> None:
    from contextvars import ContextVar

    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[str] = []
    app.hooks.before_task(lambda: tenant.set("me"))
    app.hooks.after_task(lambda: seen.append(tenant.get()))

    @app.task
    def task() -> str:
        return tenant.get()

    assert task.apply().get() == "me"
    assert seen == ["me"]
    assert tenant.get() == "nobody"


def test_a_hook_may_register_another(app: GreenQ, log: list[Any]) -> None:
    def register() -> Callable[[], None]:
        return app.hooks.child_stop(lambda: log.append("late"))

    app.hooks.child_start(register)
    app.hooks.child_start.run(CHILD)
    app.hooks.child_stop.run(CHILD)
    assert log == ["late"]
