"""Consuming from RabbitMQ, under native threads and under gevent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.model import Request
from greenq.runtime.threads import ThreadsRuntime
from tests.integration.amqp_children import child, outcome
from tests.integration.amqp_scenarios import Stage, collect, task_message
from tests.support.processes import wait_for


@pytest.fixture(params=["threads", "gevent"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def publisher(rabbitmq_url: str) -> Iterator[KombuPublisher]:
    made = KombuPublisher(rabbitmq_url, Settings({}))
    yield made
    made.close()


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    with kombu.Connection(rabbitmq_url) as connection:
        yield connection.channel()


def here(url: str) -> Stage:
    return Stage(url, ThreadsRuntime())


def test_ten_thousand_acks_in_batches_are_exact(
    runtime: str, rabbitmq_url: str, publisher: KombuPublisher, tmp_path: Path
) -> None:
    publisher.publish([task_message() for _ in range(10_000)])
    said = outcome(runtime, "drain", rabbitmq_url, tmp_path, count=10_000)
    assert said | {"tags": None} == {
        "distinct": 10_000, "twice": 0, "gone": 0, "again": True, "left": 0, "tags": None
    }  # fmt: skip
    assert said["tags"] == [1, 2, 3], "delivery tags are the broker's own 64-bit numbers"
    assert publisher.length("celery") == 0


def test_a_consumer_killed_amid_500_messages_loses_none(
    runtime: str, rabbitmq_url: str, publisher: KombuPublisher, tmp_path: Path
) -> None:
    publisher.publish([task_message() for _ in range(500)])
    with child(runtime, "hold", rabbitmq_url, tmp_path, count=500) as holder:
        assert holder.wait_fact("held") == 500
        assert publisher.length("celery") == 0
        holder.kill()
        began = time.monotonic()
        wait_for(lambda: publisher.length("celery") == 500, 5, "all 500 back in their queue")
        assert time.monotonic() - began < 5
    said = outcome(runtime, "drain", rabbitmq_url, tmp_path, count=500)
    assert (said["distinct"], said["gone"], said["left"]) == (500, 0, 0)


def test_a_busy_hub_keeps_its_connection(
    runtime: str, rabbitmq_url: str, publisher: KombuPublisher, tmp_path: Path
) -> None:
    publisher.publish([task_message()])
    said = outcome(runtime, "busy", rabbitmq_url, tmp_path, heartbeat=4, seconds=12.0)
    assert said == {"lost": [], "gone": 0}
    assert publisher.length("celery") == 0


def test_requeue_dead_and_malformed_end_as_they_should(
    runtime: str, rabbitmq_url: str, publisher: KombuPublisher, channel: Any, tmp_path: Path
) -> None:
    dead = task_message(headers={"role": "dead", "big": 2**40, "nested": {"a": [1, 2.5, None, True]}})
    publisher.publish([task_message(headers={"role": "back"}), dead])
    body = b"\x00\xff no JSON \xfe"
    channel.basic_publish(
        channel.prepare_message(body, content_type="application/json", headers={"task": b"\xff\xfe", "id": "x1"}),
        routing_key="celery",
    )
    channel.basic_publish(channel.prepare_message(b"", headers={"id": "x2"}), routing_key="celery")
    said = outcome(runtime, "endings", rabbitmq_url, tmp_path)
    assert sorted(said["reasons"]) == ["bad_header", "content_type"]
    assert sorted(said["ids"]) == ["x1", "x2"]
    assert said["gone"] == 0
    assert said["redelivered"] == [True]
    buried = {}
    for _ in range(3):
        message = channel.basic_get("celery.dead", no_ack=True)
        buried[message.headers["id"]] = message
    assert buried["x1"].body == body
    assert buried["x1"].headers == {"task": b"\xff\xfe", "id": "x1", "x-greenq-reason": "bad_header"}
    assert buried["x2"].headers["x-greenq-reason"] == "content_type"
    found = buried[dead.headers["id"]]
    assert found.body.encode() == dead.body
    assert found.headers == {**dead.headers, "x-greenq-reason": "unknown_task"}
    assert found.properties["correlation_id"] == dead.properties["correlation_id"]
    assert publisher.length("celery") == 0
    assert publisher.length("celery.dead") == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_held_requests_do_not_keep_ordinary_ones_away(
    runtime: str, kind: str, rabbitmq_url: str, publisher: KombuPublisher, channel: Any, tmp_path: Path
) -> None:
    queue = kombu.Queue("eta", kombu.Exchange("eta"), "eta", queue_arguments={"x-queue-type": kind})
    queue(channel).declare()
    eta = {"eta": "2099-01-01T00:00:00+00:00"}
    arguments = {"exchange": "eta", "queue": "eta"}
    publisher.publish([task_message(headers=eta, **arguments) for _ in range(130)])
    publisher.publish([task_message(**arguments) for _ in range(20)])
    said = outcome(runtime, "held", rabbitmq_url, tmp_path, queue="eta", count=130)
    assert (said["held"], said["ordinary"], said["gone"]) == (130, 20, 0)
    expected = {"x-queue-type": "quorum"} if kind == "quorum" else None
    assert said["info"][0]["queue_arguments"] in (expected, {"x-queue-type": "classic"})
    wait_for(lambda: publisher.length("eta") == 65, 5, "what was held and not settled back in its queue")


def test_queues_come_and_go_while_the_consumer_reads(
    runtime: str, rabbitmq_url: str, channel: Any, tmp_path: Path
) -> None:
    channel.queue_declare("refused", durable=True, auto_delete=False)
    said = outcome(runtime, "queues", rabbitmq_url, tmp_path)
    assert said == {
        "names": ["one", "two", "two", "one", "one"], "left": 1, "consumed": ["one"]
    }  # fmt: skip


def test_many_writers_never_cut_into_a_frame(runtime: str, rabbitmq_url: str, tmp_path: Path) -> None:
    said = outcome(runtime, "stress", rabbitmq_url, tmp_path, seconds=6.0)
    assert said["sent"] > 500
    assert said["taken"] == said["settled"] == said["sent"]
    assert (said["gone"], said["left"]) == (0, 0)


def test_higher_priorities_are_served_first(rabbitmq_url: str) -> None:
    stage = here(rabbitmq_url)
    stage.conf.update(task_queue_max_priority=9)
    publisher = stage.publisher()
    publisher.publish([task_message(properties={"priority": number}) for number in (0, 5, 9, 3)])
    consumer = stage.consumer(prefetch=1)
    found = []
    for _ in range(4):
        (request,) = collect(consumer, 1)
        assert isinstance(request, Request)
        found.append(request.priority)
        consumer.settle([request])
    consumer.close()
    publisher.close()
    assert found == [9, 5, 3, 0]


def test_a_quorum_queue_made_by_others_is_used_as_it_is(rabbitmq_url: str, channel: Any) -> None:
    kombu.Queue("celery", kombu.Exchange("celery"), "celery", queue_arguments={"x-queue-type": "quorum"})(
        channel
    ).declare()
    stage = here(rabbitmq_url)
    publisher, consumer = stage.publisher(), stage.consumer()
    publisher.publish([task_message() for _ in range(5)])
    found = collect(consumer, 5)
    assert len(found) == 5
    assert consumer.settle([request for request in found if isinstance(request, Request)]) == 0
    consumer.close()
    assert publisher.length("celery") == 0
    publisher.close()


def test_a_classic_queue_where_quorum_is_asked_names_queue_and_argument(rabbitmq_url: str, channel: Any) -> None:
    kombu.Queue("celery", kombu.Exchange("celery"), "celery")(channel).declare()
    stage = here(rabbitmq_url)
    stage.conf.update(task_default_queue_type="quorum")
    with pytest.raises(ConfigError, match=r"queue 'celery' exists with x-queue-type = classic.*delete it"):
        stage.consumer()
    publisher = stage.publisher()
    with pytest.raises(ConfigError, match="queue 'celery' exists with x-queue-type"):
        publisher.publish([task_message()])
    publisher.close()


def test_a_deleted_queue_is_declared_again(rabbitmq_url: str, channel: Any) -> None:
    stage = here(rabbitmq_url)
    consumer, publisher = stage.consumer(), stage.publisher()
    publisher.publish([task_message()])
    (held,) = collect(consumer, 1)
    channel.queue_delete("celery")
    assert consumer.fetch(10, 1.0) == []
    publisher.publish([task_message()])
    assert len(collect(consumer, 1, 5.0)) == 1
    assert isinstance(held, Request)
    assert consumer.settle([held]) == 0, "the broker answers nothing; an ack for what is gone does no harm"
    assert consumer.fetch(1, 0.3) == []
    consumer.close()
    publisher.close()


def test_closing_gives_back_what_is_unsettled(rabbitmq_url: str) -> None:
    stage = here(rabbitmq_url)
    publisher, consumer = stage.publisher(), stage.consumer(prefetch=50)
    publisher.publish([task_message() for _ in range(50)])
    found = collect(consumer, 20)
    consumer.settle([request for request in found[:5] if isinstance(request, Request)])
    consumer.close()
    consumer.close()
    assert publisher.length("celery") == 45
    publisher.close()


def test_a_message_of_three_megabytes_arrives_whole(rabbitmq_url: str) -> None:
    stage = here(rabbitmq_url)
    publisher, consumer = stage.publisher(), stage.consumer()
    bodies = [b"[" + bytes([97 + n]) * (3 << 20) + b"]" for n in range(3)]
    publisher.publish([task_message(body=body) for body in bodies])
    found = collect(consumer, 3)
    assert [item.body for item in found if isinstance(item, Request)] == bodies
    consumer.close()
    publisher.close()


def test_a_prefetch_count_is_never_exceeded(rabbitmq_url: str) -> None:
    stage = here(rabbitmq_url)
    publisher, consumer = stage.publisher(), stage.consumer(prefetch=10)
    publisher.publish([task_message() for _ in range(100)])
    found = collect(consumer, 100, 1.0)
    assert len(found) == 10
    consumer.prefetch = 25
    found += collect(consumer, 100, 1.0)
    assert len(found) == 25
    assert publisher.length("celery") == 75
    consumer.close()
    publisher.close()
