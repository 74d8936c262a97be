"""Any kombu transport without a store of ours, here kombu's directory of files and its memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import pytest
from kombu.transport.memory import Transport as MemoryTransport

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.exceptions import ConfigError
from greenq.model import Record, Rejected, Request, Settle, Settlement
from greenq.results.rpc import RpcResults
from greenq.runtime.threads import ThreadsRuntime
from tests.integration.amqp_children import child
from tests.integration.amqp_scenarios import Stage, collect, task_message
from tests.support.processes import wait_for

Open = Callable[[], Stage]


def filesystem(directory: Path) -> Stage:
    """A stage on kombu's directory of files."""
    made = Stage("filesystem://", ThreadsRuntime())
    for name in ("queue", "processed", "control"):
        (directory / name).mkdir()
    made.conf.update(
        broker_transport_options={
            "data_folder_in": str(directory / "queue"),
            "data_folder_out": str(directory / "queue"),
            "processed_folder": str(directory / "processed"),
            "control_folder": str(directory / "control"),
            "polling_interval": 0.05,
        }
    )
    return made


@pytest.fixture(params=["filesystem", "memory"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    made = filesystem(tmp_path) if request.param == "filesystem" else Stage("memory://", ThreadsRuntime())
    # kombu's memory is one for the process: a name of the test's own keeps it clean.
    made.conf.update(task_default_queue=f"q{uuid.uuid4().hex}")
    yield made
    MemoryTransport.global_state.clear()


def queue(stage: Stage) -> str:
    name: str = stage.conf.task_default_queue
    return name


def test_messages_are_fetched_and_acknowledged(stage: Stage) -> None:
    publisher, consumer = stage.publisher(), stage.consumer(queue(stage))
    sent = [task_message(queue(stage)) for _ in range(30)]
    publisher.publish(sent)
    found = [item for item in collect(consumer, 30, 10.0) if isinstance(item, Request)]
    assert {request.id for request in found} == {message.headers["id"] for message in sent}
    assert found[0].body in (sent[0].body, sent[0].body.decode())
    assert {request.name for request in found} == {"proj.add"}
    assert consumer.settle(found) == 0
    assert consumer.settle(found[:3]) == 3
    consumer.close()
    assert publisher.length(queue(stage)) == 0
    publisher.close()


def test_what_is_unsettled_goes_back_at_the_close(stage: Stage) -> None:
    publisher, consumer = stage.publisher(), stage.consumer(queue(stage), prefetch=10)
    publisher.publish([task_message(queue(stage)) for _ in range(20)])
    found = [item for item in collect(consumer, 5, 10.0) if isinstance(item, Request)]
    assert consumer.settle(found[:2]) == 0
    consumer.close()
    again = stage.consumer(queue(stage))
    back = [item for item in collect(again, 18, 10.0) if isinstance(item, Request)]
    assert len(back) == 18
    assert not {request.id for request in found[:2]} & {request.id for request in back}
    assert again.settle(back) == 0
    again.close()
    publisher.close()


def test_requeue_and_dead_end_as_they_should(stage: Stage) -> None:
    publisher, consumer = stage.publisher(), stage.consumer(queue(stage))
    publisher.publish([task_message(queue(stage), task_id="back"), task_message(queue(stage), task_id="dead")])
    publisher.publish([task_message(queue(stage), body=b"\xff\x00", headers={"id": 5})])
    found = {item.error.task_id if isinstance(item, Rejected) else item.id: item for item in collect(consumer, 3)}
    back, dead, odd = found["back"], found["dead"], found[""]
    others = [
        (back, Settlement(back.tag, back.queue, Settle.REQUEUE)),
        (dead, Settlement(dead.tag, dead.queue, Settle.DEAD, reason="unknown_task")),
        (odd, Settlement(odd.tag, odd.queue, Settle.DEAD, reason="bad_header")),
    ]
    assert consumer.settle([], others) == 0
    (again,) = collect(consumer, 1, 10.0)
    assert isinstance(again, Request)
    assert again.id == "back"
    assert consumer.settle([again]) == 0
    graveyard = stage.consumer(f"{queue(stage)}.dead")
    letters = collect(graveyard, 2, 10.0)
    (letter,) = (item for item in letters if isinstance(item, Request))
    assert letter.headers["x-greenq-reason"] == "unknown_task"
    assert letter.id == "dead"
    (rejected,) = (item for item in letters if isinstance(item, Rejected))
    assert rejected.raw == b"\xff\x00"
    graveyard.close()
    consumer.close()
    publisher.close()


def test_delaying_is_refused_in_plain_words(stage: Stage) -> None:
    publisher, consumer = stage.publisher(), stage.consumer(queue(stage))
    publisher.publish([task_message(queue(stage))])
    (request,) = collect(consumer, 1, 10.0)
    with pytest.raises(ConfigError, match="cannot delay"):
        consumer.settle([], [(request, Settlement(request.tag, request.queue, Settle.DELAY, due=1.0))])
    consumer.close()
    publisher.close()


def test_results_go_over_it_too(stage: Stage) -> None:
    worker, client = RpcResults(stage.url, stage.conf), RpcResults(stage.url, stage.conf)
    client.expect(["a", "b"])
    for task_id in ("a", "b"):
        worker.store([Record(task_id, "SUCCESS", json.dumps({"task_id": task_id}).encode(), client.reply_to)])
    assert json.loads(client.wait("b", lambda _: True, 10)) == {"task_id": "b"}
    assert json.loads(client.wait("a", lambda _: True, 10)) == {"task_id": "a"}
    worker.close()
    client.close()


def test_an_interrupt_ends_a_wait_at_once(tmp_path: Path) -> None:
    with child("gevent", "interrupted", "memory://", tmp_path) as process:
        assert process.wait_fact("seconds") < 0.5
        assert process.wait_fact("published_seconds") < 2.0


def test_a_publisher_of_kombu_and_a_consumer_of_kombu_understand_ours(stage: Stage) -> None:
    publisher = KombuPublisher(stage.url, stage.conf)
    message = task_message(queue(stage))
    publisher.publish([message])
    options = stage.conf.broker_transport_options
    seen: list[kombu.Message] = []
    with kombu.Connection(stage.url, transport_options=options) as connection:
        entity = kombu.Queue(queue(stage), kombu.Exchange(queue(stage)), queue(stage))
        with connection.Consumer([entity], on_message=seen.append, accept=["json"]):
            wait_for(lambda: not connection.drain_events(timeout=5) and seen, 5, "the message")
        assert seen[0].decode()[0] == [1, 2]
        assert seen[0].headers == message.headers
        seen[0].ack()
        with connection.Producer() as producer:
            producer.publish([[3], {}, {}], routing_key=queue(stage), headers=message.headers, serializer="json")
    consumer = stage.consumer(queue(stage))
    (request,) = collect(consumer, 1, 10.0)
    assert isinstance(request, Request)
    assert json.loads(request.body)[0] == [3]
    assert consumer.settle([request]) == 0
    consumer.close()
    publisher.close()


def test_what_kombu_cannot_take_apart_stops_nobody(tmp_path: Path) -> None:
    stage = filesystem(tmp_path)
    consumer, publisher = stage.consumer("celery"), stage.publisher()
    for number, junk in enumerate((b"\x00\xff", b"5", b"{}", b'{"body": "\xc3", "properties": {}}')):
        (tmp_path / "queue" / f"{number}_junk.celery.msg").write_bytes(junk)
    publisher.publish([task_message()])
    found = collect(consumer, 1, 10.0)
    while isinstance(found[-1], Rejected):
        found += collect(consumer, 1, 10.0)
    assert consumer.settle([found[-1]]) == 0
    consumer.close()
    publisher.close()
