"""Losing RabbitMQ in every way: nothing is lost, nothing wedges, and the loss is noticed in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.config import Settings
from greenq.exceptions import BrokerPaused, BrokerUnreachable, PublishUncertain
from greenq.model import Request
from greenq.runtime.threads import ThreadsRuntime
from tests.integration.amqp_children import Child, child
from tests.integration.amqp_scenarios import Stage, collect, task_message
from tests.support.processes import wait_for
from tests.support.services import RabbitServer


@pytest.fixture(params=["threads", "gevent"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def fragile() -> Iterator[RabbitServer]:
    """A node of this module's own, because it is killed and frozen."""
    with RabbitServer() as server:
        yield server


@pytest.fixture
def publisher(fragile: RabbitServer) -> Iterator[KombuPublisher]:
    made = KombuPublisher(fragile.url, Settings({}))
    for queue in ("celery", "celery.dead"):
        made.purge(queue)
    yield made
    made.close()


def publish(publisher: KombuPublisher, **fields: Any) -> str:
    message = task_message(**fields)
    publisher.publish([message])
    task_id: str = message.properties["correlation_id"]
    return task_id


def stop(publisher: KombuPublisher, process: Child) -> dict[str, object]:
    publish(publisher, headers={"task": "stop"})
    seen: object = process.wait_fact("seen")
    assert process.wait() == 0, process.output()
    assert seen
    return process.facts()[-1]


def test_connections_closed_by_the_broker_are_made_again(
    runtime: str, fragile: RabbitServer, publisher: KombuPublisher, tmp_path: Path
) -> None:
    with child(runtime, "recover", fragile.url, tmp_path) as process:
        process.wait_fact("started")
        ids = []
        for round_ in range(1, 4):
            held = publish(publisher, headers={"hold": True})
            assert process.wait_fact("holding", count=round_) == held
            fragile.ctl("close_all_connections", "test")
            process.wait_fact("lost", count=round_)
            process.wait_fact("started", count=round_ + 1)
            ids += [held, publish(publisher)]
            assert {process.wait_fact("done", count=2 * round_ - n) for n in (0, 1)} == set(ids[-2:])
        said = stop(publisher, process)
    seen = said["seen"]
    assert isinstance(seen, dict)
    assert {seen[i] for i in ids[::2]} == {2}, "what was held came back, once"
    assert {seen[i] for i in ids[1::2]} == {1}
    assert (said["refused"], said["held_late"]) == (3, 3), "an ack of an earlier connection has no effect"
    assert said["epochs"] == 4
    assert publisher.length("celery") == 0


def test_a_consumer_survives_a_broker_killed_and_started_again(
    runtime: str, fragile: RabbitServer, publisher: KombuPublisher, tmp_path: Path
) -> None:
    with child(runtime, "recover", fragile.url, tmp_path) as process:
        process.wait_fact("started")
        held = publish(publisher, headers={"hold": True})
        process.wait_fact("holding")
        fragile.kill()
        process.wait_fact("lost", 5)
        with pytest.raises(BrokerUnreachable, match="no connection to amqp://guest:"):
            publisher.publish([task_message()])
        fragile.start()
        process.wait_fact("started", 15, count=2)
        publish(publisher)
        said = stop(publisher, process)
    seen = said["seen"]
    assert isinstance(seen, dict)
    assert seen[held] == 2
    assert publisher.length("celery") == 0


def test_a_broker_that_falls_silent_is_given_up_in_time(
    runtime: str, fragile: RabbitServer, publisher: KombuPublisher, tmp_path: Path
) -> None:
    with child(runtime, "silence", fragile.url, tmp_path, heartbeat=4) as process:
        process.wait_fact("reading")
        os.kill(fragile.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            assert "no byte from the broker" in process.wait_fact("lost", 15)
            assert 4 < time.monotonic() - began < 12
        finally:
            os.kill(fragile.pid, signal.SIGCONT)


def test_confirmed_publishes_survive_a_killed_broker(
    runtime: str, fragile: RabbitServer, publisher: KombuPublisher, tmp_path: Path
) -> None:
    stage = Stage(fragile.url, ThreadsRuntime())
    with child(runtime, "stream", fragile.url, tmp_path) as process:
        wait_for(lambda: len(process.facts()) > 200, 20, "200 publishes")
        fragile.kill()
        wait_for(lambda: '"BrokerUnreachable"' in process.output(), 30, "the loss to be told")
        process.kill()
        facts = process.facts()
    fragile.start()
    confirmed = {fact["id"] for fact in facts if not fact["error"]}
    uncertain = {fact["id"] for fact in facts if fact["error"] == "PublishUncertain"}
    refused = {fact["id"] for fact in facts if fact["error"] == "BrokerUnreachable"}
    consumer = stage.consumer(prefetch=0)
    found = {item.id for item in collect(consumer, 100_000, 3.0) if isinstance(item, Request)}
    consumer.close()
    assert confirmed <= found
    assert not refused & found, "known not to have been sent"
    assert len(uncertain) <= 1
    assert len(found - confirmed) <= len(uncertain) + 1  # and the one under way when it was killed itself


def test_an_alarm_stops_publishing_and_nothing_else(fragile: RabbitServer, publisher: KombuPublisher) -> None:
    stage = Stage(fragile.url, ThreadsRuntime())
    publisher.publish([task_message() for _ in range(20)])
    consumer = stage.consumer()
    fragile.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        with pytest.raises(PublishUncertain, match="not confirmed in time") as caught:
            publisher.publish([task_message(task_id="first")])
        assert caught.value.task_id == "first"
        with pytest.raises(BrokerPaused, match="alarm"):
            publisher.publish([task_message(task_id="second")])
        found = [item for item in collect(consumer, 20, 5.0) if isinstance(item, Request)]
        assert len(found) == 20
        assert consumer.settle(found) == 0
    finally:
        fragile.ctl("set_vm_memory_high_watermark", "0.8")
    publisher.publish([task_message(task_id="third")])
    ids = [item.id for item in collect(consumer, 2, 10.0) if isinstance(item, Request)]
    assert ids == ["first", "third"], "what was uncertain came through; what was refused did not"
    consumer.close()


def test_a_consumer_timeout_is_a_loss_like_any_other(
    fragile: RabbitServer, publisher: KombuPublisher, tmp_path: Path
) -> None:
    set_timeouts(fragile, timeout=2000, tick=1000)
    try:
        with child("threads", "recover", fragile.url, tmp_path) as process:
            process.wait_fact("started")
            held = publish(publisher, headers={"hold": True})
            assert "timed out" in process.wait_fact("lost", 20)
            process.wait_fact("started", count=2)
            said = stop(publisher, process)
    finally:
        set_timeouts(fragile, timeout=1_800_000, tick=60_000)
    seen = said["seen"]
    assert isinstance(seen, dict)
    assert seen[held] == 2


def set_timeouts(server: RabbitServer, *, timeout: int, tick: int) -> None:
    """How long a delivery may be unsettled, and how often channels look (ms); for channels opened from now on."""
    for name, value in (("consumer_timeout", timeout), ("channel_tick_interval", tick)):
        assert "ok" in server.evaluate(f"application:set_env(rabbit, {name}, {value}).")
