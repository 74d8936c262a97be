"""Tasks: names, options, what is refused at decoration, and how they are called."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest

from greenq import GreenQ, Retry, shared_task
from greenq.app.options import KNOWN
from greenq.app.task import Task
from greenq.exceptions import ConfigError, NotRegistered


def plain(x: int, y: int = 1) -> int:
    """Add."""
    return x + y


def test_a_task_is_still_the_function(app: GreenQ) -> None:
    task = app.task(plain)
    assert task(2, y=3) == 5
    assert task.__name__ == "plain"
    assert task.__doc__ == "Add."
    assert task.run_here(1) == 2
    assert repr(task) == f"<task {__name__}.plain of proj>"


def test_the_default_name_is_module_and_function(app: GreenQ) -> None:
    assert app.task(plain).name == f"{__name__}.plain"
    assert app.task(name="other")(plain).name == "other"
    assert set(app.tasks) == {f"{__name__}.plain", "other"}


def test_the_main_name_stands_for_main(app: GreenQ) -> None:
    def function() -> None: ...

    function.__module__ = "__main__"
    assert app.task(function).name == "proj.function"


def test_a_second_function_under_a_name_warns_and_the_same_one_does_not(
    app: GreenQ, caplog: pytest.LogCaptureFixture
) -> None:
    app.task(name="t")(plain)
    with caplog.at_level(logging.WARNING):
        assert app.task(name="t")(plain) is app.tasks["t"]
        assert not caplog.records
        second = app.task(name="t")(lambda: None)
    assert "t is defined twice" in caplog.text
    assert Path(__file__).name in caplog.text
    assert app.tasks["t"] is second


def test_an_unknown_task_is_a_key_error_that_names_it(app: GreenQ) -> None:
    app.task(name="proj.add")(plain)
    with pytest.raises(NotRegistered, match="proj.ad"):
        app.tasks["proj.ad"]
    with pytest.raises(KeyError):
        app.tasks["proj.ad"]
    assert app.tasks.nearest("proj.ad") == "proj.add"


async def coroutine() -> None: ...


async def async_generator() -> Any:
    yield 1


@functools.wraps(coroutine)
def wrapped(*args: Any) -> Any:
    return coroutine(*args)


@pytest.mark.parametrize("function", [coroutine, async_generator, wrapped])
def test_async_def_is_refused_at_decoration(app: GreenQ, function: Any) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__} is an async def, .*: write a plain def"):
        app.task(function)
    assert not app.tasks


@pytest.mark.parametrize(("function", "why"), [(3, "is not a function"), (dict, "class-based tasks")])
def test_what_is_no_function_is_refused(app: GreenQ, function: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        app.task(name="t")(function)


def test_a_task_is_not_made_a_task_again(app: GreenQ) -> None:
    with pytest.raises(TypeError, match="is a task already"):
        app.task(app.task(plain))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rate_limits": 1}, TypeError, "no option 'rate_limits': did you mean rate_limit?"),
        ({"bin": True}, TypeError, "did you mean bind?"),
        ({"base": object}, TypeError, "class-based tasks are not part of this version"),
        ({"pydantic_strict": True}, TypeError, "arguments are not converted"),
        ({"rate_limit": "-1/s"}, ConfigError, "rate limit '-1/s' is not understood"),
        ({"rate_limit": "fast"}, ConfigError, "option rate_limit = 'fast'"),
        ({"soft_time_limit": 5, "time_limit": 2}, ConfigError, "soft_time_limit 5 is above time_limit 2"),
        ({"max_retries": "x"}, ConfigError, "option max_retries = 'x': expected a whole number"),
        ({"acks_late": "perhaps"}, ConfigError, "expected true or false"),
        ({"throws": "KeyError"}, ConfigError, "takes exception classes, not 'KeyError'"),
        ({"autoretry_for": (KeyError, 3)}, ConfigError, "takes exception classes, not 3"),
        ({"reject_on_worker_lost": "perhaps"}, ConfigError, "expected true or false"),
        ({"retry_on_worker_lost": True}, TypeError, "reject_on_worker_lost says whether"),
        ({"default_retry_delay": None}, ConfigError, "default_retry_delay may not be None"),
    ],
)
def test_a_wrong_option_is_refused_at_decoration(
    app: GreenQ, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        app.register(plain, {"name": "t", **options})
    assert "task t: " in str(caught.value)
    assert text in str(caught.value)


def test_bind_needs_a_first_parameter(app: GreenQ) -> None:
    with pytest.raises(TypeError, match="task t: bind=True passes the task as first argument"):
        app.task(name="t", bind=True)(lambda: None)  # type: ignore[arg-type,misc]  # the mistake itself


def test_options_follow_the_settings_until_they_are_given(app: GreenQ) -> None:
    follows = app.task(name="follows")(plain)
    given = app.task(name="given", acks_late=False, rate_limit="1/s", serializer="yaml")(plain)
    assert (follows.acks_late, follows.rate_limit, follows.serializer) == (True, None, "json")
    app.conf.update(task_acks_late=False, task_default_rate_limit="9/s", task_serializer="pickle")
    assert (follows.acks_late, follows.rate_limit, follows.serializer) == (False, "9/s", "pickle")
    assert (given.acks_late, given.rate_limit, given.serializer) == (False, "1/s", "yaml")


def test_every_option_has_a_value(app: GreenQ) -> None:
    assert set(app.task(plain).options_in_force()) == KNOWN


def test_acks_on_failure_and_timeout_fall_back_to_the_pair(app: GreenQ) -> None:
    task = app.task(name="t", acks_on_failure_or_timeout=False)(plain)
    assert (task.acks_on_failure, task.acks_on_timeout) == (False, False)
    task = app.task(name="u", acks_on_failure_or_timeout=False, acks_on_timeout=True)(plain)
    assert (task.acks_on_failure, task.acks_on_timeout) == (False, True)


def test_an_option_may_be_changed_while_it_runs(app: GreenQ) -> None:
    task = app.task(name="t")(plain)
    task.rate_limit = "5/m"
    app.conf.task_default_rate_limit = "1/s"
    assert task.rate_limit == "5/m"
    with pytest.raises(ConfigError, match="is not understood"):
        task.rate_limit = "x"
    task.queue = "q"
    assert app.build_message("t", (1,)).routing_key == "q"


def test_annotations_lay_options_over_tasks(app: GreenQ) -> None:
    one = app.task(name="one", rate_limit="1/s")(plain)
    two = app.task(name="two")(plain)
    app.conf.task_annotations = {"*": {"max_retries": 7}, "one": {"rate_limit": "2/s"}}
    assert (one.rate_limit, one.max_retries, two.rate_limit, two.max_retries) == ("2/s", 7, None, 7)
    one.rate_limit = "3/s"  # as the command does: what is said last counts
    assert one.rate_limit == "3/s"
    one.rate_limit = None
    assert one.rate_limit is None
    with pytest.raises(ConfigError, match="task_annotations: task one: there is no option 'rate'"):
        app.conf.task_annotations = {"one": {"rate": 1}}


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1, 2), {"y": 1})],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    app: GreenQ, sent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    task = app.task(name="t")(plain)
    with pytest.raises(TypeError, match=r"task t\(x: .*\)"):
        task.delay(*args, **kwargs)
    with pytest.raises(TypeError):
        task.apply_async(args, kwargs)
    with pytest.raises(TypeError):
        app.send_tasks([(task, (1,)), (task, args, kwargs)])
    assert sent() == []


def test_typing_off_sends_whatever_it_is_given(app: GreenQ, sent: Any) -> None:
    task = app.task(name="t", typing=False)(plain)
    task.delay()  # type: ignore[call-arg]  # the mistake itself
    assert len(sent()) == 1


def test_a_bound_task_does_not_count_itself(app: GreenQ) -> None:
    @app.task(name="t", bind=True)
    def bound(self: Task[..., int], x: int, *, k: int) -> int:
        assert self is app.tasks["t"]
        return x + k

    assert bound(1, k=2) == 3
    bound.delay(1, k=2)
    with pytest.raises(TypeError, match="missing a required .*argument: 'k'"):
        bound.delay(1)  # type: ignore[call-arg]  # the mistake itself


def test_a_direct_call_has_a_request_that_says_so(app: GreenQ) -> None:
    @app.task(bind=True)
    def bound(self: Task[..., Any], x: int) -> Any:
        return self.request.called_directly, self.request.args, self.request.id, self.request.retries

    assert bound(4) == (True, (4,), None, 0)
    assert bound.request.id is None


def test_a_direct_call_is_not_retried(app: GreenQ) -> None:
    @app.task(bind=True)
    def bound(self: Task[..., Any], exc: Exception | None) -> None:
        raise self.retry(exc=exc)

    with pytest.raises(ValueError, match="boom"):
        bound(ValueError("boom"))
    with pytest.raises(Retry):
        bound(None)


def test_a_shared_task_belongs_to_apps_before_and_after_it(app: GreenQ) -> None:
    @shared_task(name="lib.double", max_retries=9)
    def double(x: int) -> int:
        return 2 * x

    later = GreenQ("later", broker="sqlite:////tmp/unused.db")
    assert app.tasks["lib.double"].max_retries == later.tasks["lib.double"].max_retries == 9
    assert double.app is later
    app.set_current()
    assert double.app is app
    assert double(4) == 8
    assert double.name == "lib.double"
    assert double.delay(1).app is app
    assert isinstance(double, Task)
    assert "shared task" in repr(double)


def test_a_shared_task_may_be_bound(app: GreenQ) -> None:
    @shared_task(bind=True)
    def named(self: Task[..., Any], x: int) -> str:
        return f"{self.name} {x}"

    assert named(1) == f"{__name__}.named 1"
