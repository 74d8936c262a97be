"""Handles on results, over a real store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from greenq import AsyncResult, GreenQ, ResultTimeout, Task, TaskRevokedError, allow_join_result
from greenq.app.results import GroupResult
from greenq.context import TaskContext, current
from greenq.exceptions import ResultError
from greenq.model import Record, State
from greenq.wire.results import encode_exception, encode_state, encode_success
from tests.unit.app.test_publishing import running

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.fixture(params=["sqlite", "redis"])
def app(request: pytest.FixtureRequest) -> Iterator[GreenQ]:
    url: str = request.getfixturevalue(f"{request.param}_url")
    with GreenQ("proj", broker=url, backend=url) as app:
        yield app


@pytest.fixture
def succeed(app: GreenQ) -> Callable[..., None]:
    def store(task_id: str, value: Any, **fields: Any) -> None:
        payload = encode_success(task_id, value, date_done=NOW, **fields)
        app.results.store([Record(task_id, State.SUCCESS, payload)])

    return store


@pytest.fixture
def fail(app: GreenQ) -> Callable[..., None]:
    def store(task_id: str, error: BaseException, state: str = State.FAILURE) -> None:
        payload = encode_exception(task_id, state, error, traceback="Traceback ...", date_done=NOW)
        app.results.store([Record(task_id, state, payload)])

    return store


def test_a_result_nobody_stored_is_pending(app: GreenQ) -> None:
    result = app.AsyncResult("none")
    assert result.state == result.status == "PENDING"
    assert not result.ready()
    assert not result.successful()
    assert not result.failed()
    assert [result.result, result.info, result.traceback, result.date_done] == [None] * 4
    assert result.children == []


def test_a_success_gives_its_value(app: GreenQ, succeed: Any) -> None:
    succeed("id", {"a": 1}, children=["child-1"])
    result = app.AsyncResult("id")
    assert result.get(5) == result.result == {"a": 1}
    assert result.ready()
    assert result.successful()
    assert result.date_done == NOW
    assert [child.id for child in result.children] == ["child-1"]


def test_get_waits_for_the_result(app: GreenQ, succeed: Any) -> None:
    timer = threading.Timer(0.2, succeed, ("id", 42))
    timer.start()
    try:
        assert app.AsyncResult("id").get(10) == 42
    finally:
        timer.join()


def test_a_state_in_between_does_not_end_the_wait(app: GreenQ, succeed: Any) -> None:
    app.results.store([Record("id", "PROGRESS", encode_state("id", "PROGRESS", {"done": 3}))])
    result = app.AsyncResult("id")
    assert (result.state, result.info) == ("PROGRESS", {"done": 3})
    with pytest.raises(ResultTimeout):
        result.get(0.1)
    succeed("id", 1)
    assert result.get(5) == 1


def test_get_raises_what_the_task_raised(app: GreenQ, fail: Any) -> None:
    fail("id", ValueError("boom", 42))
    result = app.AsyncResult("id")
    with pytest.raises(ValueError, match="boom") as caught:
        result.get(5)
    assert caught.value.args == ("boom", 42)
    assert isinstance(result.get(5, propagate=False), ValueError)
    assert result.failed()
    assert result.traceback == "Traceback ..."
    fail("revoked", TaskRevokedError("terminated"), State.REVOKED)
    with pytest.raises(Exception, match="terminated"):
        app.AsyncResult("revoked").get(5)


def test_a_timeout_is_both_ours_and_pythons(app: GreenQ) -> None:
    with pytest.raises(TimeoutError):
        app.AsyncResult("none").get(0.05)


def test_a_forgotten_result_is_pending_again(app: GreenQ, succeed: Any) -> None:
    succeed("id", 1)
    result = app.AsyncResult("id")
    assert result.ready()
    result.forget()
    assert result.state == "PENDING"


def test_waiting_inside_a_task_is_refused_unless_allowed(app: GreenQ, succeed: Any) -> None:
    succeed("id", 1)
    token = current.set(running())
    try:
        with pytest.raises(RuntimeError, match="must not wait for another task's result"):
            app.AsyncResult("id").get(1)
        with allow_join_result():
            assert app.AsyncResult("id").get(1) == 1
        with pytest.raises(RuntimeError):
            app.AsyncResult("id").get(1)
    finally:
        current.reset(token)


def test_reading_a_state_inside_a_task_is_no_wait(app: GreenQ, succeed: Any) -> None:
    succeed("id", 1)
    token = current.set(running())
    try:
        assert app.AsyncResult("id").ready()
    finally:
        current.reset(token)


def test_results_compare_by_id(app: GreenQ) -> None:
    one, same, other = app.AsyncResult("a"), AsyncResult[Any]("a"), app.AsyncResult("b")
    assert one == same == "a"
    assert one != other
    assert len({one, same, other}) == 2
    assert str(one) == "a"
    with pytest.raises(ValueError, match="a task id is text"):
        app.AsyncResult("")


def test_a_handle_without_an_app_uses_the_current_one(app: GreenQ, succeed: Any) -> None:
    succeed("id", 5)
    app.set_current()
    assert AsyncResult[int]("id").get(5) == 5


def test_without_a_store_asking_says_what_to_set() -> None:
    with GreenQ("proj", broker="redis://unused") as app, pytest.raises(ResultError, match="set result_backend"):
        app.AsyncResult("id").get(1)


def test_update_state_is_seen_by_the_caller(app: GreenQ) -> None:
    @app.task(bind=True)
    def task(self: Task[..., Any]) -> None:
        self.update_state(state="PROGRESS", meta={"done": 1})

    context: TaskContext = running(id="the-id")
    token = current.set(context)
    try:
        task.update_state(state="PROGRESS", meta={"done": 1})
    finally:
        current.reset(token)
    assert app.AsyncResult("the-id").state == "PROGRESS"
    assert app.AsyncResult("the-id").info == {"done": 1}
    with pytest.raises(ValueError, match="needs a task_id"):
        task.update_state(state="PROGRESS")


def test_a_group_waits_for_all_within_one_timeout(app: GreenQ, succeed: Any, fail: Any) -> None:
    succeed("a", 1)
    succeed("b", 2)
    results = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")])
    assert results.get(5) == [1, 2]
    assert results.ready()
    assert results.successful()
    assert (len(results), results[1].id, results.completed_count()) == (2, "b", 2)
    fail("c", ValueError("boom"))
    results = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("c")])
    assert results.failed()
    with pytest.raises(ValueError, match="boom"):
        results.get(5)
    results = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("none"), app.AsyncResult("nor")])
    with pytest.raises(ResultTimeout, match="group g: 1 of 3 tasks succeeded within 0.1 s"):
        results.get(0.1)


def test_what_results_may_hold_is_a_setting(app: GreenQ, succeed: Any) -> None:
    succeed("id", {1, 2}, serializer="pickle")
    with pytest.raises(Exception, match="JSON|json|body_decode|accept_content"):
        app.AsyncResult("id").get(1)
    app.conf.update(result_serializer="pickle", result_accept_content=["pickle"])
    assert app.AsyncResult("id").get(1) == {1, 2}
