"""A flood of commands: tasks go on, and what is answered is answered in time."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.integration.conftest import Stage
from tests.support.control import client_of
from tests.support.node import Node
from tests.support.processes import wait_for

PINGS = 10_000
WINDOW = 1.5  # seconds of measurement, from the flood on
TIMEOUT = 1.0  # of a client that does not say otherwise
REPLIES = "flooder.reply.celery.pidbox"


def ping(*, reply: bool) -> bytes:
    """A ping as a client writes it to Redis."""
    body: dict[str, Any] = {"method": "ping", "arguments": {}, "destination": None, "pattern": None, "matcher": None}
    if reply:
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "flooder"}
        body |= {"ticket": str(time.time()), "reply_to": reply_to}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"clock": 1, "expires": time.time() + TIMEOUT if reply else 0},
            "properties": {
                "delivery_mode": 1,
                "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    ).encode()


def flood(server: redis.Redis, *, reply: bool) -> None:
    with server.pipeline(transaction=False) as pipe:
        for _ in range(PINGS):
            pipe.publish("/0.celery.pidbox", ping(reply=reply))
        pipe.execute()


def fill(stage: Stage, server: redis.Redis, count: int) -> None:
    """Queue as many tasks that do nothing, faster than one by one."""
    stage.send("add", 1, 2, ignore_result=True)
    envelope = json.loads(str(server.lpop("celery"), "utf-8"))  # type: ignore[arg-type]
    with server.pipeline(transaction=False) as pipe:
        for _ in range(count):
            task_id = str(uuid.uuid4())
            envelope["headers"] |= {"id": task_id, "root_id": task_id}
            envelope["properties"] |= {"correlation_id": task_id, "delivery_tag": task_id}
            pipe.lpush("celery", json.dumps(envelope))
        pipe.execute()


def computed(pid: int) -> tuple[float, float]:
    """Seconds the process has computed: in the thread of its tasks, and in all others, which listen."""
    process = psutil.Process(pid)
    spent = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    tasks = spent.pop(pid)
    return tasks, sum(spent.values())


def heard(url: str, node: Node) -> dict[str, Any]:
    """The counters of the node; asks until it answers."""
    found: list[dict[str, Any]] = []

    def ask() -> bool:
        with client_of(url) as client:
            found.extend((client.inspect(node.name, timeout=TIMEOUT).stats() or {}).values())
        return bool(found)

    wait_for(ask, 60, "an answer after the flood")
    counters: dict[str, Any] = found[-1]["control"]
    return counters


@pytest.mark.alone
@pytest.mark.parametrize(("pool", "tasks"), [("gevent", 300_000), ("prefork", 100_000)])
def test_a_flood_of_pings_hardly_slows_the_tasks(
    pool: str, tasks: int, redis_stage: Stage, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    with redis.Redis.from_url(redis_stage.url) as server:
        fill(redis_stage, server, tasks)
        waiting = server.llen("celery")
        env = {"GREENQ_BROKER_URL": redis_stage.url, "GREENQ_RESULT_BACKEND": "disabled://"}
        concurrency = 100 if pool == "gevent" else 2
        # Without the two lines a task that a log would have.
        node = Node(
            "tests.support.worker_tasks",
            cwd=tmp_path,
            pool=pool,
            concurrency=concurrency,
            env=env,
            loglevel="WARNING",
        )
        node.start()
        try:
            wait_for(lambda: server.llen("celery") < waiting and server.pubsub_numpat() > 0, 30, node.output)
            began = server.llen("celery")
            flood(server, reply=True)
            tasks_before, control_before = computed(node.pid)
            time.sleep(WINDOW)
            tasks_after, control_after = computed(node.pid)
            left = server.llen("celery")
            server.delete("celery")
            counters = heard(redis_stage.url, node)
        finally:
            node.kill()
    expired = counters["rejected"].get("expired", 0)
    assert counters["handled"] + expired >= PINGS, counters
    assert expired > 0, "what nobody waits for any more is not answered"
    assert int(left) > 0, "there was work all the time"
    assert int(left) < int(began), "tasks went on"
    # Measured: 0.07 to 0.11. Where others compute too, tasks get less of the processor, and what listens the same.
    control, tasks_cpu = control_after - control_before, tasks_after - tasks_before
    share = control / (control + tasks_cpu)
    assert share <= 0.15, f"{share:.2f} of what the worker computed went to the flood"


def test_no_answer_to_a_flood_comes_late_by_more_than_its_timeout(redis_stage: Stage) -> None:
    node = redis_stage.worker(concurrency=10)
    late: list[float] = []
    with redis.Redis.from_url(redis_stage.url) as server:
        server.sadd("_kombu.binding.reply.celery.pidbox", f"flooder\x06\x16\x06\x16{REPLIES}")
        flood(server, reply=True)
        until = time.monotonic() + 3 * TIMEOUT
        while time.monotonic() < until:
            found = server.brpop([REPLIES], timeout=0.2)
            if found is not None:
                sent = float(json.loads(found[1])["headers"]["ticket"])
                late.append(time.time() - sent - TIMEOUT)
    assert late, "some are answered"
    assert max(late) <= TIMEOUT, f"{max(late):.2f} s too late"
    counters = heard(redis_stage.url, node)
    assert counters["handled"] + counters["rejected"]["expired"] >= PINGS


def test_no_command_that_nobody_waits_for_is_lost_in_a_flood(redis_stage: Stage) -> None:
    node = redis_stage.worker(concurrency=10)
    with redis.Redis.from_url(redis_stage.url) as server, client_of(redis_stage.url) as client:
        flood(server, reply=False)
        client.revoke("the last of all")
        assert redis_stage.send("add", 1, 2).get(timeout=10) == 3
        counters = heard(redis_stage.url, node)
        assert counters["handled"] > PINGS
        revoked = client.inspect(node.name, timeout=10).revoked() or {}
    assert revoked[node.name] == ["the last of all"]
