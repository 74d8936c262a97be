"""Eager mode: apply, task_always_eager, propagation, retries, links, stored results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from greenq import AsyncResult, EagerResult, GreenQ, Ignore, MaxRetriesExceeded, Reject, Task, group
from greenq.context import current


@pytest.fixture
def log() -> list[Any]:
    return []


@pytest.fixture
def app(app: GreenQ, log: list[Any]) -> GreenQ:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        log.append((x, y))
        return x + y

    @app.task(name="fail")
    def fail(text: str) -> None:
        raise ValueError(text)

    @app.task(name="again", bind=True, max_retries=2)
    def again(self: Task[..., Any], good_at: int) -> int:
        log.append(self.request.retries)
        if self.request.retries < good_at:
            raise self.retry(countdown=100)
        return int(self.request.retries)

    return app


def test_apply_runs_here_and_sends_nothing(app: GreenQ, sent: Any) -> None:
    result = app.tasks["add"].apply((1,), {"y": 2})
    assert isinstance(result, EagerResult)
    assert (result.get(), result.state, result.ready(), result.successful()) == (3, "SUCCESS", True, True)
    assert sent() == []


def test_a_failure_is_kept_or_thrown(app: GreenQ) -> None:
    result = app.tasks["fail"].apply(("boom",))
    assert result.failed()
    assert result.state == "FAILURE"
    assert "ValueError: boom" in (result.traceback or "")
    with pytest.raises(ValueError, match="boom"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="boom"):
        app.tasks["fail"].apply(("boom",), throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="boom"):
        app.tasks["fail"].apply(("boom",))


def test_always_eager_reaches_every_way_of_sending(app: GreenQ, log: list[Any], sent: Any) -> None:
    app.conf.task_always_eager = True
    add = app.tasks["add"]
    assert add.delay(1, 2).get() == 3
    assert add.apply_async((2,), countdown=100, queue="q").get() == 2
    assert app.send_task("add", (3,)).get() == 3
    assert [each.get() for each in app.send_tasks([(add, (4,)), add.s(5)])] == [4, 5]
    assert add.s(6).delay(1).get() == 7
    assert group(add.s(i) for i in range(2)).delay().get() == [0, 1]
    assert len(log) == 8
    assert sent() == []


def test_options_are_checked_in_eager_mode_too(app: GreenQ) -> None:
    app.conf.task_always_eager = True
    with pytest.raises(TypeError, match="did you mean countdown"):
        app.tasks["add"].apply_async((1,), cuntdown=1)  # type: ignore[call-arg]  # the mistake itself
    with pytest.raises(TypeError, match="missing a required argument"):
        app.tasks["add"].delay()


def test_an_eager_retry_runs_again_at_once(app: GreenQ, log: list[Any]) -> None:
    assert app.tasks["again"].apply((2,)).get() == 2
    assert log == [0, 1, 2]
    log.clear()
    result = app.tasks["again"].apply((9,))
    assert isinstance(result.result, MaxRetriesExceeded)
    assert log == [0, 1, 2]


def test_an_eager_retry_may_change_its_arguments_and_go_on(app: GreenQ, log: list[Any]) -> None:
    @app.task(bind=True)
    def task(self: Task[..., Any], x: int) -> int:
        log.append(x)
        if x < 3:
            self.retry((x + 1,), throw=False)
        return x

    assert task.apply((1,)).get() == 1
    assert log == [1, 2, 3]


def test_an_eager_autoretry_runs_again(app: GreenQ, log: list[Any]) -> None:
    @app.task(autoretry_for=ValueError, max_retries=3, retry_backoff=True)
    def task() -> None:
        log.append(1)
        raise ValueError("always")

    result = task.apply()
    assert isinstance(result.result, ValueError)
    assert len(log) == 4


def test_the_request_says_that_it_is_eager(app: GreenQ) -> None:
    @app.task(name="look", bind=True)
    def look(self: Task[..., Any]) -> Any:
        request = self.request
        return request.is_eager, request.called_directly, request.id, request.task, request.headers["tenant"]

    result = look.apply(task_id="my-id", headers={"tenant": "a"})
    assert result.get() == (True, False, "my-id", "look", "a")
    assert result.id == "my-id"
    assert current.get() is None


def test_ignore_and_reject_are_no_failures(app: GreenQ) -> None:
    @app.task
    def task(error: Exception) -> None:
        raise error

    assert task.apply((Ignore(),)).state == "IGNORED"
    assert task.apply((Reject("no"),)).state == "REJECTED"


def test_links_run_too(app: GreenQ, log: list[Any]) -> None:
    app.conf.task_always_eager = True
    add, fail = app.tasks["add"], app.tasks["fail"]

    @app.task(name="note")
    def note(task_id: str) -> None:
        log.append(task_id)

    add.apply_async((1,), link=[add.s(10), note.si("immutable")])
    assert log == [(1, 0), (1, 10), "immutable"]
    result = fail.apply_async(("boom",), link=add.s(10), link_error=note.s())
    assert log[-1] == result.id


def test_an_eager_task_inside_a_task_is_its_child(app: GreenQ) -> None:
    @app.task(bind=True)
    def outer(self: Task[..., Any]) -> Any:
        return app.tasks["lineage"].apply().get(), self.request.id

    @app.task(name="lineage", bind=True)
    def lineage(self: Task[..., Any]) -> Any:
        return self.request.parent_id, self.request.root_id

    (parent, root), own = outer.apply().get()
    assert parent == root == own


@pytest.fixture(params=["sqlite", "redis"])
def storing(request: pytest.FixtureRequest) -> Iterator[GreenQ]:
    url: str = request.getfixturevalue(f"{request.param}_url")
    settings: dict[str, Any] = {"task_always_eager": True, "task_store_eager_result": True}
    with GreenQ("storing", broker=url, backend=url, **settings) as app:
        yield app


def test_eager_results_are_stored_if_the_settings_say_so(storing: GreenQ) -> None:
    @storing.task
    def good() -> int:
        return 4

    @storing.task
    def bad() -> None:
        raise ValueError("boom")

    @storing.task(ignore_result=True)
    def ignored() -> int:
        return 4

    assert AsyncResult(good.delay().id, storing).get(5) == 4
    failed: AsyncResult[Any] = AsyncResult(bad.delay().id, storing)
    with pytest.raises(ValueError, match="boom"):
        failed.get(5)
    assert "boom" in (failed.traceback or "")
    assert AsyncResult(ignored.delay().id, storing).state == "PENDING"
