"""The contracts of Consumer and Publisher (greenq/broker/base.py), over every broker, under native threads."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from greenq.broker.base import Consumer, Publisher
from greenq.broker.opening import open_consumer
from greenq.broker.publisher import open_publisher
from greenq.config import Settings
from greenq.exceptions import BrokerUnreachable
from greenq.model import Rejected, Request, Settle, Settlement, TaskMessage
from greenq.runtime.threads import ThreadsRuntime
from greenq.wire.messages import build_task_message
from tests.support.processes import Process, ended, free_port, wait_for

LEASE = 1.0
SETTINGS = {"broker_lease": LEASE, "task_publish_retry": False}
ROOT = Path(__file__).parents[2]
Open = Callable[..., Consumer]
QUEUE_INFO = {
    "name", "exchange", "routing_key", "queue_arguments", "binding_arguments", "consumer_arguments", "durable",
    "exclusive", "auto_delete", "no_ack", "alias", "bindings", "no_declare", "expires", "message_ttl",
    "max_length", "max_length_bytes", "max_priority",
}  # fmt: skip
EXCHANGE = {"name", "type", "arguments", "durable", "passive", "auto_delete", "delivery_mode", "no_declare"}


@pytest.fixture
def conf() -> Settings:
    made = Settings({})
    made.update(SETTINGS)
    return made


@pytest.fixture
def publisher(broker_url: str, conf: Settings) -> Iterator[Publisher]:
    made = open_publisher(broker_url, conf)
    yield made
    made.close()


@pytest.fixture(scope="module")
def runtime() -> ThreadsRuntime:
    made = ThreadsRuntime()
    made.attach()
    return made


@pytest.fixture
def opened(broker_url: str, conf: Settings, runtime: ThreadsRuntime) -> Iterator[Open]:
    """`opened(*queues, prefetch=10)`: a started consumer; all are closed."""
    made: list[Consumer] = []

    def make(*queues: str, prefetch: int = 10) -> Consumer:
        consumer = open_consumer(broker_url, conf, queues or ("celery",), prefetch, runtime)
        made.append(consumer)
        consumer.start()
        return consumer

    yield make
    for consumer in made:
        consumer.release()
        consumer.close()


@pytest.fixture
def consumer(opened: Open) -> Consumer:
    return opened()


def message(number: int, queue: str = "celery") -> TaskMessage:
    return build_task_message(
        name="proj.add",
        args=[number],
        kwargs={},
        task_id=str(number),
        origin="contract",
        routing_key=queue,
        now=datetime.now(timezone.utc),
    )


def send(publisher: Publisher, *numbers: int, queue: str = "celery") -> None:
    publisher.publish([message(number, queue) for number in numbers])


def fetched(consumer: Consumer, count: int, seconds: float = 10.0) -> list[Request]:
    """Fetch until there are `count` requests; fewer if they do not come in time."""
    found: list[Request] = []
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        for item in consumer.fetch(count - len(found), 0.2):
            assert isinstance(item, Request), item
            found.append(item)
    return found


def ids(requests: list[Request]) -> list[int]:
    return [int(request.id) for request in requests]


def all_back(consumer: Consumer, count: int) -> list[Request]:
    """What another held, once it is lost: reclaimed where the broker does not do it, and fetched."""
    found: list[Request] = []
    until = time.monotonic() + LEASE + 8
    while len(found) < count and time.monotonic() < until:
        consumer.reclaim()
        found += fetched(consumer, count - len(found), 0.1)
    return found


def other_process(url: str, tmp_path: Path, count: int, end: str) -> Process:
    argv = [sys.executable, "-m", "tests.contract.consumer_driver", url, json.dumps(SETTINGS), str(count), end]
    return Process(argv, output=tmp_path / "other.out", cwd=ROOT)


def test_requests_come_in_order_with_their_queue_and_the_present_epoch(
    consumer: Consumer, publisher: Publisher
) -> None:
    send(publisher, *range(10))
    requests = fetched(consumer, 10)
    assert ids(requests) == list(range(10))
    assert {(r.name, r.queue, r.epoch) for r in requests} == {("proj.add", "celery", consumer.epoch)}
    assert consumer.settle(requests) == 0


def test_a_fetch_takes_no_more_than_its_limit(consumer: Consumer, publisher: Publisher) -> None:
    send(publisher, *range(6))
    assert len(wait_for(lambda: consumer.fetch(2, 1.0), 5, "requests")) <= 2
    assert len(consumer.fetch(3, 1.0)) <= 3


def test_a_fetch_waits_for_the_first_request(consumer: Consumer, publisher: Publisher) -> None:
    timer = threading.Timer(0.3, send, (publisher, 1))
    timer.start()
    began = time.monotonic()
    (request,) = consumer.fetch(10, 20.0)
    assert 0.2 < time.monotonic() - began < 5
    timer.join()
    assert consumer.settle([request]) == 0  # type: ignore[list-item]


def test_a_fetch_of_nothing_ends_after_its_timeout(consumer: Consumer) -> None:
    began = time.monotonic()
    assert consumer.fetch(10, 0.3) == []
    assert 0.25 < time.monotonic() - began < 3


def test_a_fetch_of_zero_waits_and_takes_nothing(consumer: Consumer, publisher: Publisher) -> None:
    send(publisher, 1, 2)
    began = time.monotonic()
    assert consumer.fetch(0, 0.3) == []
    assert 0.25 < time.monotonic() - began < 3
    assert ids(fetched(consumer, 2)) == [1, 2]


@pytest.mark.parametrize("limit", [0, 10])
def test_an_interrupt_from_another_thread_ends_a_fetch(consumer: Consumer, limit: int) -> None:
    timer = threading.Timer(0.3, consumer.interrupt)
    timer.start()
    began = time.monotonic()
    assert consumer.fetch(limit, 20.0) == []
    assert 0.2 < time.monotonic() - began < 5
    timer.join()


def test_what_is_acknowledged_never_comes_again(opened: Open, consumer: Consumer, publisher: Publisher) -> None:
    send(publisher, 1, 2, 3)
    assert consumer.settle(fetched(consumer, 3)) == 0
    consumer.release()
    consumer.close()
    assert publisher.length("celery") == 0
    other = opened()
    other.reclaim()
    assert other.fetch(10, 0.5) == []


def test_a_requeued_request_comes_again_at_once_marked_as_redelivered(
    consumer: Consumer, publisher: Publisher
) -> None:
    send(publisher, 1, 2)
    one, two = fetched(consumer, 2)
    assert not one.redelivered
    assert consumer.settle([two], [(one, Settlement(one.tag, one.queue, Settle.REQUEUE))]) == 0
    (again,) = fetched(consumer, 1)
    assert (again.id, again.redelivered, again.body) == (one.id, True, one.body)
    assert consumer.settle([again]) == 0


def test_a_dead_request_lies_in_the_dead_queue_and_nowhere_else(consumer: Consumer, publisher: Publisher) -> None:
    send(publisher, 1)
    (request,) = fetched(consumer, 1)
    settlement = Settlement(request.tag, request.queue, Settle.DEAD, reason="unknown_task")
    assert consumer.settle((), [(request, settlement)]) == 0
    assert publisher.length("celery.dead") == 1
    assert consumer.fetch(10, 0.3) == []


def test_what_is_no_task_message_comes_as_rejected_and_can_be_settled(
    consumer: Consumer, publisher: Publisher
) -> None:
    nameless = TaskMessage({"task": "proj.add"}, b"[]", "application/json", "utf-8", {}, "", "celery")
    publisher.publish([nameless, message(2)])
    items: list[Request | Rejected] = []
    until = time.monotonic() + 10
    while len(items) < 2 and time.monotonic() < until:
        items += consumer.fetch(10, 0.2)
    rejected, request = items
    assert isinstance(rejected, Rejected)
    assert isinstance(request, Request)
    assert (rejected.queue, rejected.epoch) == ("celery", consumer.epoch)
    settlement = Settlement(rejected.tag, rejected.queue, Settle.DEAD, reason=rejected.error.reason)
    assert consumer.settle([request], [(rejected, settlement)]) == 0
    assert publisher.length("celery.dead") == 1


def test_a_delayed_request_is_never_early_or_the_consumer_says_it_cannot_delay(
    consumer: Consumer, publisher: Publisher, broker_url: str
) -> None:
    assert consumer.delays is not broker_url.startswith("amqp")
    send(publisher, 1)
    (request,) = fetched(consumer, 1)
    due = time.time() + 0.6
    if consumer.delays:
        assert consumer.settle((), [(request, Settlement(request.tag, "celery", Settle.DELAY, due=due))]) == 0
        (request,) = fetched(consumer, 1)
        assert time.time() >= due
    assert consumer.settle([request]) == 0


def test_requests_can_be_settled_in_another_thread_while_fetch_waits(
    consumer: Consumer, publisher: Publisher
) -> None:
    send(publisher, *range(5))
    requests = fetched(consumer, 5)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(consumer.fetch, 10, 20.0)
        assert threads.submit(consumer.settle, requests).result(10) == 0
        consumer.beat()
        assert consumer.renew([]) is True
        assert consumer.reclaim() == 0
        consumer.interrupt()
        assert waiting.result(10) == []


def test_a_delivery_of_an_earlier_epoch_has_gone_back_and_one_of_this_epoch_has_not(
    consumer: Consumer, publisher: Publisher
) -> None:
    send(publisher, 1)
    (first,) = fetched(consumer, 1)
    consumer.start()
    assert consumer.epoch >= first.epoch
    if consumer.epoch == first.epoch:
        assert consumer.fetch(10, 0.3) == []
        assert consumer.settle([first]) == 0
        return
    (again,) = fetched(consumer, 1)
    assert (again.id, again.epoch) == (first.id, consumer.epoch)
    assert consumer.settle([first]) == 1
    assert consumer.settle([again]) == 0


def test_no_more_than_prefetch_need_be_unsettled_until_it_is_raised(opened: Open, publisher: Publisher) -> None:
    consumer = opened(prefetch=2)
    assert consumer.prefetch == 2
    send(publisher, 1, 2, 3, 4)
    held = fetched(consumer, 2)
    consumer.raise_prefetch(1)
    held += fetched(consumer, 1)
    assert ids(held) == [1, 2, 3]
    consumer.lower_prefetch(1)
    assert consumer.settle(held) == 0
    assert ids(fetched(consumer, 1)) == [4]


@pytest.mark.parametrize("end", ["close", "live"])
def test_what_a_consumer_held_when_it_closed_or_died_goes_to_another(
    end: str, broker_url: str, opened: Open, publisher: Publisher, tmp_path: Path
) -> None:
    send(publisher, 1, 2, 3)
    with ended(other_process(broker_url, tmp_path, 3, end)) as other:
        wait_for(lambda: "\n" in other.output(), 20, other.output)
        assert json.loads(other.output()) == ["1", "2", "3"]
        if end == "close":
            assert other.wait(10) == 0
    consumer = opened()
    found = all_back(consumer, 3)
    assert sorted(ids(found)) == [1, 2, 3]
    assert all(request.redelivered for request in found)
    assert consumer.settle(found) == 0


def test_what_a_living_consumer_holds_goes_to_nobody(
    broker_url: str, publisher: Publisher, opened: Open, tmp_path: Path
) -> None:
    send(publisher, 1, 2, 3)
    with ended(other_process(broker_url, tmp_path, 3, "live")) as other:
        wait_for(lambda: "\n" in other.output(), 20, other.output)
        consumer = opened()
        until = time.monotonic() + 1.3 * LEASE
        while time.monotonic() < until:
            assert consumer.reclaim() == 0
            assert consumer.fetch(10, 0.1) == []
        assert other.running, other.output()


def test_queues_are_described_by_the_keys_of_queue_info(opened: Open) -> None:
    described = opened("celery", "other").queues()
    json.dumps(described)
    assert [info["name"] for info in described] == ["celery", "other"]
    for info in described:
        assert set(info) == QUEUE_INFO
        assert set(info["exchange"]) == EXCHANGE
        assert info["routing_key"] == info["name"]
        assert (info["durable"], info["no_ack"], info["bindings"]) == (True, False, [])


def test_queues_are_added_and_cancelled_and_what_was_fetched_stays(consumer: Consumer, publisher: Publisher) -> None:
    def names() -> list[Any]:
        return [info["name"] for info in consumer.queues()]

    consumer.add_queue("more")
    wait_for(lambda: consumer.fetch(0, 0.05) or names() == ["celery", "more"], 5, "the second queue")
    send(publisher, 1, queue="more")
    (request,) = fetched(consumer, 1)
    assert request.queue == "more"
    consumer.cancel_queue("more")
    wait_for(lambda: consumer.fetch(0, 0.05) or names() == ["celery"], 5, "the end of the second queue")
    assert consumer.settle([request]) == 0
    send(publisher, 2, queue="more")
    send(publisher, 3)
    assert ids(fetched(consumer, 2, 1.0)) == [3]
    assert publisher.length("more") == 1


def test_closing_a_consumer_twice_does_no_harm(consumer: Consumer, publisher: Publisher, opened: Open) -> None:
    send(publisher, 1)
    assert consumer.settle(fetched(consumer, 1)) == 0
    consumer.release()
    consumer.release()
    consumer.close()
    consumer.close()
    send(publisher, 2)
    assert ids(fetched(opened(), 1)) == [2]


@pytest.mark.parametrize("scheme", ["redis", "sqlite", "amqp"])
def test_an_unreachable_broker_is_told_as_such(
    scheme: str, conf: Settings, runtime: ThreadsRuntime, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    port = free_port()
    urls = {
        "redis": f"redis://127.0.0.1:{port}/0",
        "sqlite": f"sqlite:///{tmp_path}/file/db",
        "amqp": f"amqp://guest:guest@127.0.0.1:{port}//",
    }
    publisher = open_publisher(urls[scheme], conf)
    with pytest.raises(BrokerUnreachable):
        publisher.publish([message(1)])
    with pytest.raises(BrokerUnreachable):
        publisher.length("celery")
    publisher.close()
    with pytest.raises(BrokerUnreachable):
        open_consumer(urls[scheme], conf, ["celery"], 1, runtime).start()


def test_published_messages_are_with_the_broker_when_publish_returns(publisher: Publisher) -> None:
    send(publisher, *range(50))
    assert publisher.length("celery") == 50
    publisher.publish([])
    assert publisher.length("celery") == 50
    assert publisher.length("never-declared") == 0


def test_a_purge_deletes_what_is_ready_and_says_how_many(publisher: Publisher) -> None:
    send(publisher, 1, 2, 3)
    send(publisher, 4, queue="other")
    assert publisher.purge("celery") == 3
    assert publisher.purge("celery") == 0
    assert (publisher.length("celery"), publisher.length("other")) == (0, 1)


def test_many_threads_share_a_publisher_and_the_order_of_each_is_kept(opened: Open, publisher: Publisher) -> None:
    def publish(first: int) -> None:
        for number in range(first, first + 20, 2):
            send(publisher, number, number + 1)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(publish, range(0, 100, 20)))
    assert publisher.length("celery") == 100
    found = ids(fetched(opened(prefetch=100), 100))
    for first in range(0, 100, 20):
        assert [n for n in found if first <= n < first + 20] == list(range(first, first + 20))


def test_closing_a_publisher_twice_is_legal_used_or_not(
    broker_url: str, conf: Settings, publisher: Publisher
) -> None:
    for use in (False, True):
        made = open_publisher(broker_url, conf)
        if use:
            send(made, 1)
        made.close()
        made.close()
        assert publisher.length("celery") == use
