"""An installed Celery on the same RabbitMQ, both ways, task messages and rpc results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from greenq.config import Settings
from greenq.model import Record, Request
from greenq.results.rpc import RpcResults
from greenq.runtime.threads import ThreadsRuntime
from tests.integration.amqp_scenarios import Stage, collect, task_message

TASKS = """
import os
from celery import Celery
app = Celery("proj", broker=os.environ["BROKER"], backend="rpc://")
@app.task(name="proj.add", bind=True)
def add(self, x, y):
    return [x + y, self.request.headers["role"] if self.request.headers else None]
"""


@pytest.fixture
def celery_app(rabbitmq_url: str) -> Iterator[Celery]:
    app = Celery("proj", broker=rabbitmq_url, backend="rpc://", set_as_current=False)
    yield app
    app.close()


def meta(task_id: str, value: Any) -> bytes:
    """A result as wire.md 6.2 has it."""
    fields = {"status": "SUCCESS", "result": value, "traceback": None, "children": [], "date_done": None}
    return json.dumps({**fields, "task_id": task_id}).encode()


def test_celerys_tasks_arrive_and_its_client_reads_our_results(rabbitmq_url: str, celery_app: Celery) -> None:
    stage = Stage(rabbitmq_url, ThreadsRuntime())
    consumer = stage.consumer()
    results = RpcResults(rabbitmq_url, Settings({}))
    sent = [celery_app.send_task("proj.add", (n, 1), expires=600, priority=3) for n in range(20)]
    found = [item for item in collect(consumer, 20) if isinstance(item, Request)]
    assert [request.id for request in found] == [result.id for result in sent]
    first = found[0]
    assert (first.name, first.priority, first.queue, first.exchange) == ("proj.add", 3, "celery", "")
    assert first.expires is not None
    assert json.loads(first.body)[0] == [0, 1]
    records = [Record(r.id, "SUCCESS", meta(r.id, n + 1), r.reply_to) for n, r in enumerate(found)]
    results.store(records)
    assert consumer.settle(found) == 0
    assert [result.get(timeout=10) for result in sent] == list(range(1, 21))
    results.close()
    consumer.close()


def test_a_celery_worker_runs_our_tasks_and_we_read_its_results(
    rabbitmq_url: str, start_celery_node: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "celery_tasks.py").write_text(TASKS)
    stage = Stage(rabbitmq_url, ThreadsRuntime())
    results = RpcResults(rabbitmq_url, Settings({}))
    publisher = stage.publisher()
    messages = [
        task_message(
            body=json.dumps(
                [[n, 1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
            ).encode(),
            headers={"role": f"r{n}"},
            properties={"reply_to": results.reply_to},
        )
        for n in range(20)
    ]
    ids = [message.properties["correlation_id"] for message in messages]
    results.expect(ids)
    publisher.publish(messages)
    start_celery_node("celery_tasks", pool="solo", concurrency=1, env={"BROKER": rabbitmq_url})
    for n, task_id in enumerate(ids):
        payload = results.wait(task_id, lambda raw: json.loads(raw)["status"] == "SUCCESS", 20)
        assert json.loads(payload)["result"][0] == n + 1
    publisher.close()
    results.close()


def test_a_quorum_queue_serves_both(rabbitmq_url: str, celery_app: Celery) -> None:
    celery_app.conf.update(task_default_queue_type="quorum")
    sent = [celery_app.send_task("proj.add", (1, 2)) for _ in range(5)]
    stage = Stage(rabbitmq_url, ThreadsRuntime())
    stage.conf.update(task_default_queue_type="quorum")
    consumer, publisher = stage.consumer(prefetch=3), stage.publisher()
    publisher.publish([task_message()])
    found: list[Request] = []
    while len(found) < 6:
        batch = [item for item in collect(consumer, 3, 2.0) if isinstance(item, Request)]
        assert batch
        assert consumer.settle(batch) == 0
        found += batch
    assert {result.id for result in sent} < {request.id for request in found}
    consumer.close()
    assert publisher.length("celery") == 0
    publisher.close()
