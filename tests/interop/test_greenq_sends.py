"""greenq sends; an installed Celery runs; greenq's AsyncResult reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

from greenq.exceptions import (
    ConfigError,
    MaxRetriesExceeded,
    NotRegistered,
    ResultTimeout,
    TaskRevokedError,
    TimeLimitExceeded,
)
from tests.interop.fleet import Fleet
from tests.interop.shop import KINDS, Broken
from tests.support.processes import wait_for

EXPECTED = {key: [type(each).__name__, repr(each)] for key, each in KINDS.items()}


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    """A solo worker of Celery."""
    fleet = make_fleet(broker_kind, task_queue_max_priority=10)
    fleet.stock_node(pool="solo", concurrency=1, options=["-Q", "celery,other"])
    return fleet


def test_arguments_and_results_of_every_type_arrive_as_they_were(fleet: Fleet) -> None:
    assert fleet.post("kinds", KINDS).get(timeout=10) == EXPECTED
    args, kwargs = fleet.green.send_task("shop.echo", (KINDS, 1), {"x": {"y": KINDS["decimal"]}}).get(timeout=10)
    assert args == [KINDS, 1]
    assert kwargs == {"x": {"y": KINDS["decimal"]}}


@pytest.mark.parametrize("name", ["zlib", "bzip2", "lzma"])
def test_celery_reads_our_compression(fleet: Fleet, name: str) -> None:
    assert fleet.post("kinds", KINDS, compression=name).get(timeout=10) == EXPECTED


def test_a_batch_arrives_whole_and_in_order(fleet: Fleet) -> None:
    results = fleet.green.send_tasks([("shop.note", (f"batch{n}",)) for n in range(50)])
    assert [each.get(timeout=20) for each in results] == [f"batch{n}" for n in range(50)]


def test_the_request_in_celery_says_what_was_sent(fleet: Fleet) -> None:
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    sent = fleet.post(
        "about", task_id="our-id", shadow="alias", expires=expires, priority=6, time_limit=30,
        soft_time_limit=20, headers={"custom": {"a": 1}}, queue="other", ignore_result=False,
    )  # fmt: skip
    about = sent.get(timeout=10)
    assert about["id"] == about["correlation_id"] == about["root_id"] == "our-id"
    assert (about["task"], about["shadow"]) == ("shop.about", "alias")
    assert about["timelimit"] == [30, 20]
    assert (about["parent_id"], about["retries"], about["group"]) == (None, 0, None)
    assert about["origin"].startswith("gen")
    assert about["custom"] == {"a": 1}
    assert about["delivery_info"] == {
        "exchange": "", "routing_key": "other", "priority": 6, "redelivered": about["delivery_info"]["redelivered"]
    }  # fmt: skip
    assert about["expires"] == expires.isoformat()
    fleet.nodes[0].wait_output(r"alias\[our-id\] succeeded")


def test_celery_waits_for_our_times(fleet: Fleet) -> None:
    began = time.time()
    soon = fleet.post("note", "soon", countdown=0.7)
    eta = fleet.post("note", "eta", eta=datetime.now(timezone(timedelta(hours=-3))) + timedelta(seconds=0.8))
    assert fleet.post("add", 1, 1).get(timeout=10) == 2
    assert fleet.ledger.starts()["soon"] == 0
    assert soon.get(timeout=10) == "soon"
    assert eta.get(timeout=10) == "eta"
    assert time.time() - began >= 0.7


def test_celery_revokes_what_has_expired(fleet: Fleet) -> None:
    held = fleet.post("note", "expired", countdown=0.6, expires=0.2)
    with pytest.raises(TaskRevokedError, match="expired"):
        held.get(timeout=10)
    assert held.state == "REVOKED"
    assert fleet.ledger.starts()["expired"] == 0


def test_celerys_failures_are_rebuilt(fleet: Fleet) -> None:
    for kind, error, args in (("value", ValueError, ("boom", 42)), ("own", Broken, (7, "own"))):
        sent = fleet.post("fail", kind)
        with pytest.raises(error) as caught:
            sent.get(timeout=10)
        assert type(caught.value) is error
        assert caught.value.args == args
        assert (sent.state, sent.failed(), sent.ready()) == ("FAILURE", True, True)
        assert "shop.py" in (sent.traceback or "")
        assert sent.date_done is not None
        assert abs((datetime.now(timezone.utc) - sent.date_done).total_seconds()) < 20
    with pytest.raises(NotRegistered, match="shop.no_such_task"):
        fleet.post("no_such_task").get(timeout=10)
    with pytest.raises(MaxRetriesExceeded):
        fleet.post("never").get(timeout=10)
    with pytest.raises(Exception, match="because of args"):
        fleet.post("fail", "picky").get(timeout=10)


def test_celerys_retries_run_until_they_succeed(fleet: Fleet) -> None:
    assert fleet.post("again", "retried").get(timeout=10) == 2
    assert fleet.ledger.starts()["retried"] == 3


def test_states_in_between_are_seen(fleet: Fleet) -> None:
    sent = fleet.post("tracked", 0.8)
    wait_for(lambda: sent.state == "STARTED", 5, "STARTED")
    assert set(sent.result) == {"pid", "hostname"}
    assert sent.get(timeout=10) == "tracked"
    sent = fleet.post("progress", 0.8)
    wait_for(lambda: sent.state == "PROGRESS", 5, "PROGRESS")
    assert sent.result == {"done": 50}
    assert sent.get(timeout=10) == "all"
    sent = fleet.post("waits", 0.5)
    wait_for(lambda: sent.state == "RETRY", 5, "RETRY")
    assert isinstance(sent.result, KeyError)
    fleet.green.control.revoke(sent.id, reply=True, destination=["stock@test"])
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=10)


def test_children_are_listed(fleet: Fleet) -> None:
    sent = fleet.post("parent")
    child = sent.get(timeout=10)
    assert [each.id for each in sent.children] == [child]


def test_links_run_on_celery(fleet: Fleet) -> None:
    link = fleet.green.signature("shop.note", ("linked",), immutable=True)
    assert fleet.post("add", 1, 2, link=link).get(timeout=10) == 3
    errors = [fleet.green.signature(f"shop.{name}") for name in ("failed_old", "failed_new")]
    sent = fleet.post("fail", "value", link_error=errors)
    with pytest.raises(ValueError, match="boom"):
        sent.get(timeout=10)
    expected = {"linked", f"old:{sent.id}", f"new:{sent.id}:ValueError:True"}
    wait_for(lambda: expected <= set(fleet.ledger.starts()), 10, f"{expected}")


def test_an_ignored_result_is_not_stored(fleet: Fleet) -> None:
    sent = fleet.post("note", "unstored", ignore_result=True)
    assert fleet.post("add", 1, 1).get(timeout=10) == 2
    assert fleet.ledger.dones()["unstored"] == 1
    with pytest.raises(ResultTimeout):
        fleet.green.AsyncResult(sent.id).get(timeout=0.2)


def test_priorities_order_what_waits_for_celery(make_fleet: Callable[..., Fleet], broker_kind: str) -> None:
    fleet = make_fleet(broker_kind, task_queue_max_priority=10)
    sent = [fleet.post("note", f"p{priority}", priority=priority) for priority in (5, 0, 9, 3, 6)]
    fleet.stock_node("one", pool="solo", concurrency=1, options=["--prefetch-multiplier", "1"])
    for each in sent:
        each.get(timeout=20)
    ran = [line.split()[1] for line in fleet.ledger.path.read_text().splitlines() if line.startswith("done")]
    assert ran == (["p0", "p5", "p3", "p6", "p9"] if broker_kind == "redis" else ["p9", "p6", "p5", "p3", "p0"])


def test_a_prefork_worker_enforces_our_limits(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet("redis", result_compression="zlib", accept_content=["json", "pickle"])
    fleet.stock_node(pool="prefork", concurrency=1)
    assert fleet.post("kinds", {"set": {1}}, serializer="pickle").get(timeout=20) == {"set": ["set", "{1}"]}
    assert fleet.post("echo", "x" * 3000).get(timeout=10)[0] == ["x" * 3000]
    with pytest.raises(TimeLimitExceeded) as limit:
        fleet.post("nap", "limited", 30, time_limit=1).get(timeout=20)
    assert limit.value.args == (1,)


def test_queues_exchanges_and_keys_lead_to_celerys_queues(make_fleet: Callable[..., Fleet], broker_kind: str) -> None:
    queues = {
        "celery": {"exchange": "celery", "routing_key": "celery"},
        "direct-q": {"exchange": "shop", "exchange_type": "direct", "routing_key": "till"},
        "topic-q": {"exchange": "topics", "exchange_type": "topic", "routing_key": "eu.#"},
        "star-q": {"exchange": "topics", "exchange_type": "topic", "routing_key": "*.de"},
    }
    fleet = make_fleet(broker_kind, task_queues=queues)
    fleet.stock_node(pool="solo", concurrency=1, options=["-Q", ",".join(queues)])
    assert fleet.post("add", 2, 2, queue="direct-q").get(timeout=10) == 4
    assert fleet.post("add", 3, 2, exchange="shop", routing_key="till").get(timeout=10) == 5
    assert fleet.post("note", "one", exchange="topics", routing_key="eu.at").get(timeout=10) == "one"
    fleet.post("note", "both", exchange="topics", routing_key="eu.de")
    wait_for(lambda: fleet.ledger.dones()["both"] == 2, 10, "both queues")
    with pytest.raises(ConfigError, match="no queue is bound to exchange 'shop' with key 'nowhere'"):
        fleet.post("note", "lost", exchange="shop", routing_key="nowhere")
