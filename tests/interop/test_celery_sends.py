"""An installed Celery sends; greenq runs; Celery's own AsyncResult reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import chain, exceptions, signature
from kombu import Exchange, Queue

from tests.interop.fleet import Fleet
from tests.interop.shop import KINDS, Broken
from tests.support.processes import wait_for

EXPECTED = {key: [type(each).__name__, repr(each)] for key, each in KINDS.items()}


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    """A gevent worker of greenq; Celery's producer gives priorities, which RabbitMQ wants declared."""
    fleet = make_fleet(broker_kind, task_queue_max_priority=10, result_extended=True)
    fleet.green_node(options=["-Q", "celery,other"])
    return fleet


@pytest.mark.parametrize("protocol", [1, 2])
def test_arguments_of_every_type_arrive_as_they_were(fleet: Fleet, protocol: int) -> None:
    client = fleet.elder if protocol == 1 else fleet.stock
    assert client.send_task("shop.kinds", (KINDS,)).get(timeout=10) == EXPECTED
    sent = client.send_task("shop.echo", (1, [2, (3,)]), {"x": {"y": KINDS["decimal"]}})
    args, kwargs = sent.get(timeout=10)
    assert args == [1, [2, [3]]]
    assert kwargs == {"x": {"y": KINDS["decimal"]}}


@pytest.mark.parametrize("name", ["zlib", "bzip2", "lzma", "gzip"])
@pytest.mark.parametrize("protocol", [1, 2])
def test_compressed_messages_are_read(fleet: Fleet, name: str, protocol: int) -> None:
    client = fleet.elder if protocol == 1 else fleet.stock
    assert client.send_task("shop.kinds", (KINDS,), compression=name).get(timeout=10) == EXPECTED


def test_older_messages_keep_their_options(fleet: Fleet) -> None:
    send = fleet.elder.send_task
    began = time.time()
    eta = send("shop.nap", ("elder", 0), countdown=0.5)
    about = send("shop.about", task_id="elder-id", time_limit=30, soft_time_limit=20, queue="other").get(timeout=10)
    assert (about["id"], about["timelimit"], about["retries"]) == ("elder-id", [30, 20], 0)
    link_error = signature("shop.failed_old", app=fleet.elder)
    failing = send("shop.fail", ("value",), link_error=link_error)
    with pytest.raises(ValueError, match="boom"):
        failing.get(timeout=10)
    wait_for(lambda: fleet.ledger.starts()[f"old:{failing.id}"], 10, "the errback")
    assert send("shop.again", ("elder again",)).get(timeout=10) == 2
    assert eta.get(timeout=10) == "elder"
    assert time.time() - began >= 0.5


def test_return_values_of_every_type_come_back(fleet: Fleet) -> None:
    args, _ = fleet.send("echo", KINDS).get(timeout=10)
    assert args == [KINDS]


def test_pickle_is_refused_once_and_the_sender_is_told(fleet: Fleet) -> None:
    sent = fleet.send("add", 1, 2, serializer="pickle")
    with pytest.raises(Exception) as caught:
        sent.get(timeout=10)
    assert type(caught.value).__name__ == "ContentDisallowed"
    assert sent.state == "FAILURE"
    said = [line for line in fleet.nodes[0].output().splitlines() if sent.id in line and "ERROR" in line]
    assert len(said) == 1, said
    assert fleet.send("add", 1, 2).get(timeout=10) == 3


def test_the_request_says_what_was_sent(fleet: Fleet) -> None:
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    sent = fleet.send(
        "about", task_id="chosen-id", shadow="alias", expires=expires, priority=6, time_limit=30,
        soft_time_limit=20, headers={"custom": {"a": 1}}, queue="other",
    )  # fmt: skip
    assert sent.id == "chosen-id"
    about = sent.get(timeout=10)
    assert about["id"] == about["correlation_id"] == about["root_id"] == "chosen-id"
    assert (about["task"], about["shadow"]) == ("shop.about", "alias")
    assert about["timelimit"] == [30, 20]
    assert about["parent_id"] is None
    assert about["retries"] == 0
    assert about["hostname"] == "green@test"
    assert about["origin"].startswith("gen")
    assert about["custom"] == {"a": 1}
    assert about["delivery_info"] == {
        "exchange": "", "routing_key": "other", "priority": 6, "redelivered": False
    }  # fmt: skip
    assert about["expires"] == expires.isoformat()
    fleet.nodes[0].wait_output(r"alias\[chosen-id\] succeeded")


def test_celery_sees_what_result_extended_adds(fleet: Fleet) -> None:
    sent = fleet.send("add", 40, kwargs={"y": 2}, queue="other")
    assert sent.get(timeout=10) == 42
    assert (sent.name, list(sent.args), sent.kwargs) == ("shop.add", [40], {"y": 2})
    assert (sent.worker, sent.retries, sent.queue) == ("green@test", 0, "other")
    assert isinstance(sent.date_done, datetime)
    assert abs((datetime.now(timezone.utc) - sent.date_done).total_seconds()) < 20


def test_tasks_wait_for_their_time(fleet: Fleet) -> None:
    began = time.time()
    soon = fleet.send("nap", "soon", 0, countdown=0.7)
    eta = fleet.send("nap", "eta", 0, eta=datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=1))
    assert fleet.send("add", 1, 1).get(timeout=10) == 2
    assert time.time() - began < 0.7
    soon.get(timeout=10)
    assert time.time() - began >= 0.7
    eta.get(timeout=10)
    assert time.time() - began >= 1.0


def test_what_has_expired_is_revoked_and_does_not_run(fleet: Fleet) -> None:
    past = datetime.now(timezone.utc) - timedelta(seconds=5)
    if fleet.url.startswith("redis"):
        sent = fleet.send("note", "expired", expires=past)
        with pytest.raises(exceptions.TaskRevokedError, match="expired"):
            sent.get(timeout=10)
        assert sent.state == "REVOKED"
    held = fleet.send("note", "expired", countdown=0.6, expires=0.2)
    # RabbitMQ drops a waiting message at its expiry; this one is held by the worker, which says so itself.
    with pytest.raises(exceptions.TaskRevokedError, match="expired"):
        held.get(timeout=10)
    assert fleet.ledger.starts()["expired"] == 0


def test_exceptions_are_rebuilt_by_celery(fleet: Fleet) -> None:
    for kind, error, args in (
        ("value", ValueError, ("boom", 42)),
        ("key", KeyError, ("boom", 42)),
        ("zero", ZeroDivisionError, ("boom", 42)),
        ("own", Broken, (7, "own")),
    ):
        sent = fleet.send("fail", kind)
        with pytest.raises(error) as caught:
            sent.get(timeout=10)
        assert type(caught.value) is error
        assert caught.value.args == args
        assert sent.state == "FAILURE"
        assert sent.failed()
        assert isinstance(sent.result, error)
        assert "raise" in sent.traceback
        assert "shop.py" in sent.traceback
    assert fleet.send("fail", "own").get(timeout=10, propagate=False).code == 7


def test_exceptions_that_cannot_be_rebuilt_keep_their_name(fleet: Fleet) -> None:
    # Celery's reader then gives a plain Exception that names the class.
    with pytest.raises(Exception, match="Picky.*because of args"):
        fleet.send("fail", "picky").get(timeout=10)
    with pytest.raises(ValueError, match="holds") as caught:
        fleet.send("fail", "object").get(timeout=10)
    assert caught.value.args[1].startswith("<object object")


def test_the_errors_of_the_worker_are_celerys_own_classes(fleet: Fleet) -> None:
    with pytest.raises(exceptions.NotRegistered) as unknown:
        fleet.send("no_such_task").get(timeout=10)
    assert "shop.no_such_task" in str(unknown.value)
    with pytest.raises(TimeLimitExceeded) as limit:
        fleet.send("nap", "limited", 30, time_limit=1).get(timeout=10)
    assert limit.value.args == (1,)
    with pytest.raises(SoftTimeLimitExceeded):
        fleet.send("nap", "soft", 30, soft_time_limit=1).get(timeout=10)
    with pytest.raises(exceptions.MaxRetriesExceededError):
        fleet.send("never").get(timeout=10)
    with pytest.raises(OSError, match="always"):
        fleet.send("auto", "auto").get(timeout=10)
    assert fleet.ledger.starts()["auto"] == 2


def test_retries_run_until_they_succeed(fleet: Fleet) -> None:
    sent = fleet.send("again", "retried", headers={"custom": "kept"})
    assert sent.get(timeout=10) == 2
    assert fleet.ledger.starts()["retried"] == 3


def test_links_run_on_greenq(fleet: Fleet) -> None:
    link = signature("shop.add", (10,), task_id=f"linked-{time.time()}", app=fleet.stock)
    sent = fleet.send("add", 1, 2, link=link)
    assert sent.get(timeout=10) == 3
    linked = fleet.stock.AsyncResult(link.options["task_id"])
    if fleet.backend != "rpc://":  # a linked task replies to who linked it only where results are stored
        assert linked.get(timeout=10) == 13
        wait_for(lambda: sent.children, 5, "the children of the linking task")
        assert [child.id for child in sent.children] == [linked.id]


def test_error_links_of_both_kinds_are_called(fleet: Fleet) -> None:
    links = [signature(f"shop.{name}", app=fleet.stock) for name in ("failed_old", "failed_new")]
    sent = fleet.send("fail", "value", link_error=links)
    with pytest.raises(ValueError):
        sent.get(timeout=10)
    expected = {f"old:{sent.id}", f"new:{sent.id}:ValueError:True"}
    wait_for(lambda: expected <= set(fleet.ledger.starts()), 10, f"{expected}")


def test_a_chain_runs_step_by_step_and_its_last_result_is_read(fleet: Fleet) -> None:
    add = [signature("shop.add", (n,), app=fleet.stock) for n in (2, 4, 8)]
    steps = chain(signature("shop.add", (1, 1), app=fleet.stock), *add, app=fleet.stock)
    last = steps.apply_async()
    assert last.get(timeout=10) == 16
    assert last.parent.get(timeout=10) == 8


def test_a_failed_step_fails_the_whole_chain(fleet: Fleet) -> None:
    app = fleet.stock
    steps = [signature("shop.add", (1, 1), app=app), signature("shop.fail", ("value",), immutable=True, app=app)]
    steps += [signature("shop.note", ("never reached",), immutable=True, app=app) for _ in range(2)]
    last = chain(*steps, app=fleet.stock).apply_async()
    with pytest.raises(ValueError, match="boom"):
        last.get(timeout=10)
    if fleet.backend != "rpc://":
        wait_for(lambda: last.state == "FAILURE", 5, "the state of the last step")
        assert last.parent.state == "FAILURE"
    assert fleet.ledger.starts()["never reached"] == 0


def test_children_are_listed(fleet: Fleet) -> None:
    sent = fleet.send("parent")
    child = sent.get(timeout=10)
    assert [each.id for each in sent.children] == [child]


def test_states_in_between_are_seen(fleet: Fleet) -> None:
    """By the callback of get: over rpc a state is a message, which `.state` takes only once it has arrived."""
    seen: list[Any] = []

    def read(name: str, *args: Any) -> Any:
        seen.clear()
        return fleet.send(name, *args).get(timeout=10, on_message=seen.append)

    assert read("tracked", 0.3) == "tracked"
    assert [each["status"] for each in seen] == ["STARTED", "SUCCESS"]
    assert set(seen[0]["result"]) == {"pid", "hostname"}
    assert read("progress", 0.3) == "all"
    assert [(each["status"], each["result"]) for each in seen[:-1]] == [("PROGRESS", {"done": 50})]
    assert read("again", "seen") == 2
    assert [each["status"] for each in seen] == ["RETRY", "RETRY", "SUCCESS"]
    assert "not yet" in str(seen[0]["result"])


def test_an_ignored_result_is_not_stored(fleet: Fleet) -> None:
    sent = fleet.send("note", "unstored", ignore_result=True)
    wait_for(lambda: fleet.ledger.dones()["unstored"], 10, "the task")
    assert fleet.send("add", 1, 1).get(timeout=10) == 2  # settled after the one before
    assert fleet.stock.AsyncResult(sent.id).state == "PENDING"


def test_queues_exchanges_and_keys_lead_to_their_queues(make_fleet: Callable[..., Fleet], broker_kind: str) -> None:
    fleet = make_fleet(broker_kind)
    topics = Exchange("topics", type="topic")
    queues = [
        Queue("celery", Exchange("celery"), routing_key="celery"),
        Queue("direct-q", Exchange("shop", type="direct"), routing_key="till"),
        Queue("topic-q", topics, routing_key="eu.#"),
        Queue("star-q", topics, routing_key="*.de"),
    ]
    fleet.stock.conf.task_queues = queues
    fleet.green_node("routed", options=["-Q", "celery,direct-q,topic-q,star-q"], settings={"task_queues": {
        "celery": {"exchange": "celery", "routing_key": "celery"},
        "direct-q": {"exchange": "shop", "exchange_type": "direct", "routing_key": "till"},
        "topic-q": {"exchange": "topics", "exchange_type": "topic", "routing_key": "eu.#"},
        "star-q": {"exchange": "topics", "exchange_type": "topic", "routing_key": "*.de"},
    }})  # fmt: skip
    assert fleet.send("add", 1, 2).get(timeout=10) == 3
    assert fleet.send("add", 2, 2, queue="direct-q").get(timeout=10) == 4
    assert fleet.send("add", 3, 2, exchange="shop", routing_key="till").get(timeout=10) == 5
    # The first by its queue: Celery's client knows no exchange's type before it has declared it.
    assert fleet.send("note", "one", queue="topic-q", routing_key="eu.at").get(timeout=10) == "one"
    fleet.send("note", "both", exchange="topics", routing_key="eu.de")
    wait_for(lambda: fleet.ledger.dones()["both"] == 2, 10, lambda: f"both queues: {fleet.output()}")
    about = fleet.send("about", exchange="topics", routing_key="us.de").get(timeout=10)
    assert about["delivery_info"]["exchange"] == "topics"
    assert about["delivery_info"]["routing_key"] == "us.de"


def test_priorities_order_what_waits(make_fleet: Callable[..., Fleet], broker_kind: str) -> None:
    fleet = make_fleet(broker_kind, task_queue_max_priority=10)
    sent = [fleet.send("note", f"p{priority}", priority=priority) for priority in (5, 0, 9, 3, 6)]
    fleet.green_node("one", concurrency=1, options=["--prefetch-multiplier", "1"])
    for each in sent:
        each.get(timeout=10)
    ran = [line.split()[1] for line in fleet.ledger.path.read_text().splitlines() if line.startswith("done")]
    first_first = ["p0", "p5", "p3", "p6", "p9"]  # Redis: by steps, 0 first; 5 and 3 share a bucket
    assert ran == (first_first if broker_kind == "redis" else ["p9", "p6", "p5", "p3", "p0"])


def test_a_solo_worker_runs_celerys_tasks_too(make_fleet: Callable[..., Fleet], broker_kind: str) -> None:
    fleet = make_fleet(broker_kind)
    fleet.green_node("solo", pool="solo", concurrency=1)
    assert fleet.send("kinds", KINDS).get(timeout=10) == EXPECTED
    with pytest.raises(ValueError, match="boom"):
        fleet.send("fail", "value").get(timeout=10)
    assert fleet.send("again", "solo").get(timeout=10) == 2
    with pytest.raises(TimeLimitExceeded):
        fleet.send("nap", "limited", 30, time_limit=1).get(timeout=10)


def test_pickle_runs_where_it_is_let_in(make_fleet: Callable[..., Fleet]) -> None:
    settings: dict[str, Any] = {"accept_content": ["json", "pickle"], "result_serializer": "pickle"}
    fleet = make_fleet("redis", **settings)
    fleet.green_node()
    assert fleet.send("kinds", {"set": {1, 2}}, serializer="pickle").get(timeout=10) == {"set": ["set", "{1, 2}"]}
    sent = fleet.send("fail", "own", serializer="pickle")
    with pytest.raises(Broken) as caught:
        sent.get(timeout=10)
    assert caught.value.code == 7
    with pytest.raises(exceptions.NotRegistered):
        fleet.send("no_such_task").get(timeout=10)


@pytest.mark.parametrize("name", ["zlib", "bzip2"])
def test_compressed_results_are_read_and_expire(make_fleet: Callable[..., Fleet], name: str) -> None:
    fleet = make_fleet("redis", result_compression=name, result_expires=500)
    fleet.green_node()
    sent = fleet.send("echo", "x" * 5000)
    assert sent.get(timeout=10)[0] == ["x" * 5000]
    client = fleet.stock.backend.client
    key = f"celery-task-meta-{sent.id}"
    assert client.get(key).startswith(b"\x00celery-compressed\x00")
    assert client.strlen(key) < 1000
    assert 400 < client.ttl(key) <= 500
