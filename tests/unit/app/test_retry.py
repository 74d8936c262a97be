"""Retries: what the follow-up message holds, when they end, and how long they wait (wire.md 8.9)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from greenq import GreenQ, Ignore, MaxRetriesExceeded, Reject, Retry, Task
from greenq._speedups import Request, decode_envelope
from greenq.app.retrying import backoff
from greenq.context import TaskContext, current
from greenq.exceptions import SoftTimeLimitExceeded
from greenq.model import TaskMessage
from greenq.wire.body import decode_body
from greenq.wire.messages import to_envelope
from greenq.wire.serializers import Accept
from tests.unit.app.conftest import body_of


def received(message: TaskMessage, queue: str = "celery") -> TaskContext:
    """The context of a run on a worker that got this message."""
    request: Request = decode_envelope(to_envelope(message, "tag"), queue, "tag")
    args, kwargs, embed = decode_body(request, Accept.of(["json"]))
    return TaskContext(request, args, kwargs, embed, hostname="w@h")


def retried(task: Task[..., Any], context: TaskContext, *args: Any, **options: Any) -> Retry:
    token = current.set(context)
    try:
        with pytest.raises(Retry) as caught:
            task.retry(*args, **options)
    finally:
        current.reset(token)
    return caught.value


@pytest.fixture
def task(app: GreenQ) -> Task[..., Any]:
    @app.task(name="t")
    def function(x: int, y: int = 0) -> int:
        return x + y

    return function


def since_now(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime.now(timezone.utc)).total_seconds()


def test_a_retry_is_the_same_task_once_more(app: GreenQ, task: Task[..., Any], sent: Any) -> None:
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    first = app.build_message(
        "t",
        (1,),
        {"y": 2},
        task_id="id",
        root_id="root",
        parent_id="parent",
        group_id="g",
        group_index=3,
        priority=4,
        expires=expires,
        time_limit=9,
        soft_time_limit=8,
        shadow="shown",
        reply_to="me",
        ignore_result=True,
        headers={"tenant": "a", "x-death": [1]},
        link=task.s(5),
        chain=[{"task": "next"}],
        serializer="json",
        compression="gzip",
    )
    retry = retried(task, received(first, "where-it-came-from"), exc=ValueError("why"))
    again = retry.follow_up
    for header in (
        "task", "id", "root_id", "group", "group_index", "timelimit", "shadow", "ignore_result",
        "expires", "tenant",
    ):  # fmt: skip
        assert again.headers[header] == first.headers[header], header
    assert again.headers["retries"] == 1
    assert again.headers["parent_id"] == "id"
    assert "x-death" not in again.headers
    assert "compression" not in again.headers, "it was the task's default, which is none"
    assert 178 < since_now(again.headers["eta"]) <= 180
    assert again.properties["priority"] == 4
    assert again.properties["reply_to"] == "me"
    assert (again.exchange, again.routing_key) == ("", "where-it-came-from")
    assert body_of(again)[:2] == [[1], {"y": 2}]
    assert body_of(again)[2]["callbacks"][0]["args"] == [5]
    assert body_of(again)[2]["chain"] == [{"task": "next"}]
    assert retry.when == 180
    assert str(retry) == "Retry in 180s: ValueError('why')"
    assert sent("where-it-came-from") == [], "the worker publishes it, with the ack"


def test_a_retrys_own_options_win(app: GreenQ, task: Task[..., Any]) -> None:
    context = received(app.build_message("t", (1,)))
    again = retried(
        task, context, (7,), {"y": 8}, countdown=5, queue="elsewhere", priority=9, headers={"n": 1}
    ).follow_up
    assert body_of(again)[:2] == [[7], {"y": 8}]
    assert 4 < since_now(again.headers["eta"]) <= 5
    assert again.routing_key == "elsewhere"
    assert again.properties["priority"] == 9
    assert again.headers["n"] == 1
    moment = datetime.now(timezone.utc) + timedelta(minutes=1)
    assert datetime.fromisoformat(retried(task, context, eta=moment).follow_up.headers["eta"]) == moment
    assert since_now(retried(task, context, countdown=0).follow_up.headers["eta"]) <= 0


def test_a_callback_that_is_a_group_of_celerys_is_passed_on_as_it_came(app: GreenQ, task: Task[..., Any]) -> None:
    context = received(app.build_message("t", (1,)))
    group = {"task": "celery.group", "subtask_type": "group", "args": [], "kwargs": {"tasks": []}}
    context.embed["callbacks"] = [group]
    assert body_of(retried(task, context).follow_up)[2]["callbacks"] == [group]


def test_retries_end_after_max_retries_with_the_reason(app: GreenQ, task: Task[..., Any]) -> None:
    for retries in range(3):
        again = retried(task, received(app.build_message("t", (1,), retries=retries)))
        assert again.follow_up.headers["retries"] == retries + 1
    context = received(app.build_message("t", (1,), retries=3, task_id="id"))
    token = current.set(context)
    try:
        with pytest.raises(MaxRetriesExceeded, match=r"task t\[id\] has used up its 3 retries"):
            task.retry()
        with pytest.raises(ValueError, match="why"):
            task.retry(exc=ValueError("why"))
        with pytest.raises(Retry):
            task.retry(max_retries=4)
        task.max_retries = None
        with pytest.raises(Retry):
            task.retry()
    finally:
        current.reset(token)


def test_throw_false_sends_at_once_and_returns(app: GreenQ, task: Task[..., Any], sent: Any) -> None:
    token = current.set(received(app.build_message("t", (1,))))
    try:
        retry = task.retry(throw=False, countdown=1)
    finally:
        current.reset(token)
    assert isinstance(retry, Retry)
    assert retry.follow_up is None, "or the worker would send it a second time"
    (envelope,) = sent()
    assert envelope["headers"]["retries"] == 1


def autoretried(app: GreenQ, error: BaseException, retries: int = 0, **options: Any) -> Retry | None:
    task = app.register(lambda x: None, {"name": "auto", **options})
    token = current.set(received(app.build_message("auto", (1,), retries=retries)))
    try:
        retry: Retry | None = task.autoretry(error)
        return retry
    finally:
        current.reset(token)


def test_autoretry_answers_the_exceptions_it_is_for(app: GreenQ) -> None:
    for_lookup: dict[str, Any] = {"autoretry_for": LookupError, "dont_autoretry_for": (IndexError,)}
    retry = autoretried(app, KeyError("k"), **for_lookup)
    assert retry is not None
    assert isinstance(retry.exc, KeyError)
    assert retry.follow_up.headers["retries"] == 1
    assert autoretried(app, IndexError(), **for_lookup) is None
    assert autoretried(app, ValueError(), **for_lookup) is None
    assert autoretried(app, ValueError()) is None
    for control in (Ignore(), Reject(), Retry()):
        assert autoretried(app, control, autoretry_for=(Exception,)) is None
    assert autoretried(app, SoftTimeLimitExceeded(), autoretry_for=(Exception,)) is not None


def test_autoretry_ends_with_the_error_itself(app: GreenQ) -> None:
    error = KeyError("k")
    with pytest.raises(KeyError) as caught:
        autoretried(app, error, retries=3, autoretry_for=KeyError)
    assert caught.value is error
    kwargs = {"max_retries": 9, "countdown": 7, "queue": "slow"}
    retry = autoretried(app, error, retries=3, autoretry_for=KeyError, retry_kwargs=kwargs)
    assert retry is not None
    assert retry.when == 7
    assert retry.follow_up.routing_key == "slow"


def test_autoretry_backs_off(app: GreenQ) -> None:
    options: dict[str, Any] = {"autoretry_for": KeyError, "retry_backoff": 3, "retry_jitter": False}
    waits = [autoretried(app, KeyError(), n, max_retries=None, **options) for n in range(4)]
    assert [retry.when for retry in waits if retry] == [3, 6, 12, 24]


@pytest.mark.parametrize(
    ("factor", "retries", "most", "seconds"),
    [(True, 0, 600, 1), (True, 3, 600, 8), (0.5, 1, 600, 2), (2, 20, 600, 600), (1, 10_000, 600, 600)],
)
def test_backoff_doubles_up_to_the_most(factor: float, retries: int, most: float, seconds: float) -> None:
    assert backoff(factor, retries, most, jitter=False) == seconds
    waits = [backoff(factor, retries, most, jitter=True) for _ in range(200)]
    assert all(0 <= wait <= seconds and wait == int(wait) for wait in waits)
    assert len(set(waits)) > 1
