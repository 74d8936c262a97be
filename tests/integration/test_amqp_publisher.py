"""Publishing to RabbitMQ with confirms."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.config import Settings
from greenq.exceptions import BrokerPaused, BrokerUnreachable, ConfigError, MalformedMessage
from tests.integration.amqp_children import outcome
from tests.integration.amqp_scenarios import task_message
from tests.support.processes import free_port


@pytest.fixture
def publisher(rabbitmq_url: str) -> Iterator[KombuPublisher]:
    made = KombuPublisher(rabbitmq_url, Settings({}))
    yield made
    made.close()


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Any]:
    with kombu.Connection(rabbitmq_url) as connection:
        yield connection.channel()


def test_a_queue_is_declared_as_celery_declares_it(publisher: KombuPublisher, channel: Any) -> None:
    publisher.publish([task_message("celery"), task_message("other")])
    for name in ("celery", "other"):
        # Passive declarations fail for another type or durability; a binding shows by what goes through it.
        kombu.Exchange(name, "direct", durable=True)(channel).declare()
        kombu.Queue(name, durable=True)(channel).queue_declare()
        channel.basic_publish(channel.prepare_message(b"{}"), exchange=name, routing_key=name)
    assert publisher.length("celery") == 2
    assert publisher.purge("other") == 2
    assert publisher.length("other") == 0


def test_a_batch_arrives_in_order(publisher: KombuPublisher, channel: Any) -> None:
    messages = [task_message(headers={"number": number}) for number in range(3000)]
    publisher.publish(messages)
    assert publisher.length("celery") == 3000
    found = [channel.basic_get("celery", no_ack=True).headers["number"] for _ in range(3000)]
    assert found == list(range(3000))


def test_every_kind_of_header_arrives_as_it_was(publisher: KombuPublisher, channel: Any) -> None:
    headers = {
        "big": 2**62,
        "negative": -5,
        "float": 1.5,
        "yes": True,
        "none": None,
        "text": "é\U0001f600",
        "list": [1, "a", [None, {"x": False}]],
        "table": {"a": {"b": "c"}},
        "bytes": b"\x00\xff",
    }
    message = task_message(headers=headers, properties={"priority": 7, "expiration": "60000"})
    publisher.publish([message])
    found = channel.basic_get("celery", no_ack=True)
    assert found.headers == message.headers
    assert found.properties["priority"] == 7
    assert found.properties["expiration"] == "60000"
    assert found.properties["delivery_mode"] == 2


@pytest.mark.parametrize("runtime", ["threads", "gevent"])
def test_callers_that_meet_share_a_batch(runtime: str, rabbitmq_url: str, tmp_path: Path) -> None:
    fibers = 300
    said = outcome(runtime, "crowd", rabbitmq_url, tmp_path, fibers=fibers)
    assert said["published"] == said["length"] == fibers


def test_a_header_that_cannot_be_sent_spoils_only_its_own_batch(publisher: KombuPublisher) -> None:
    with pytest.raises(MalformedMessage, match="'odd' cannot be sent over AMQP"):
        publisher.publish([task_message(), task_message(headers={"odd": object()})])
    assert publisher.length("celery") == 0
    publisher.publish([task_message()])
    assert publisher.length("celery") == 1


def test_a_queue_deleted_after_its_declaration_loses_no_message(publisher: KombuPublisher, channel: Any) -> None:
    publisher.publish([task_message()])
    channel.queue_delete("celery")
    publisher.publish([task_message(), task_message()])
    assert publisher.length("celery") == 2


def test_an_exchange_that_does_not_exist_is_named(publisher: KombuPublisher) -> None:
    with pytest.raises(ConfigError, match="no exchange 'nowhere'"):
        publisher.publish([task_message("key", exchange="nowhere")])


def test_a_message_no_queue_takes_is_an_error_and_not_a_silence(publisher: KombuPublisher, channel: Any) -> None:
    channel.exchange_declare("open", "direct", durable=True, auto_delete=False)
    with pytest.raises(ConfigError, match="no queue is bound to exchange 'open' with key 'key'"):
        publisher.publish([task_message("key", exchange="open")])


def test_a_full_queue_is_a_pause(rabbitmq_url: str) -> None:
    conf = Settings({})
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    conf.update(task_queues={"small": {"exchange": "small", "queue_arguments": arguments}})
    publisher = KombuPublisher(rabbitmq_url, conf)
    with pytest.raises(BrokerPaused, match="refused a message for 'small'"):
        publisher.publish([task_message("small") for _ in range(5)])
    assert publisher.length("small") == 2
    publisher.close()


def test_a_fanout_exchange_may_have_no_listener(rabbitmq_url: str, channel: Any) -> None:
    conf = Settings({})
    conf.update(task_queues={"all": {"exchange": "all", "exchange_type": "fanout", "routing_key": "x"}})
    publisher = KombuPublisher(rabbitmq_url, conf)
    channel.exchange_declare("all", "fanout", durable=True, auto_delete=False)
    publisher.publish([task_message("anything", exchange="all")])
    channel.queue_declare("late", auto_delete=False)
    channel.queue_bind("late", "all")
    publisher.publish([task_message("anything", exchange="all")])
    assert publisher.length("late") == 1, "who listens later gets what comes later"
    publisher.close()


def test_no_broker_is_told_after_the_retries_allowed() -> None:
    conf = Settings({})
    conf.update(task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.1})
    publisher = KombuPublisher(f"amqp://me:secret@127.0.0.1:{free_port()}//", conf)
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match="refused") as caught:
        publisher.publish([task_message()])
    assert 0.3 <= time.monotonic() - began < 3
    assert "secret" not in str(caught.value)


def test_a_forked_child_leaves_the_connection_to_its_parent(publisher: KombuPublisher) -> None:
    publisher.publish([task_message()])
    child = os.fork()
    if child == 0:
        try:
            publisher.publish([task_message()])
            publisher.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    publisher.publish([task_message()])
    assert publisher.length("celery") == 3
