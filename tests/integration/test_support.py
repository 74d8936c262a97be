"""The scaffolding holds what the other tests lean on, shown with an installed Celery."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import kombu
import pytest
import redis

from tests.support.ledger import Ledger
from tests.support.node import CeleryNode
from tests.support.processes import Process, wait_for
from tests.support.services import RabbitServer, RedisServer

TASKS = """
import os, time
from celery import Celery
from tests.support.ledger import Ledger

app = Celery("tasks", broker=os.environ["BROKER"], set_as_current=False)
ledger = Ledger.from_env()

@app.task(name="tasks.note")
def note(number):
    ledger.start(number)
    ledger.done(number)
"""


def test_a_celery_worker_writes_the_ledger(
    tmp_path: Path, redis_url: str, ledger: Ledger, start_celery_node: Callable[..., CeleryNode]
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    node = start_celery_node("tasks", pool="solo", env={"BROKER": redis_url}, ledger=ledger)
    with kombu.Connection(redis_url) as connection:
        producer = connection.Producer(serializer="json")
        for number in range(3):
            producer.publish(
                ([number], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
                routing_key="celery",
                declare=[kombu.Queue("celery")],
                headers={"id": str(number), "task": "tasks.note", "lang": "py"},
                correlation_id=str(number),
            )
    wait_for(lambda: len(ledger.dones()) == 3, 10, node.output)
    check = ledger.check(range(3))
    assert len(check.ok) == 3
    assert not (check.lost or check.duplicated or check.restarted or check.unexpected)


def test_the_ledger_tells_lost_from_duplicated_from_unexpected(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for task in ("a", "b", "b", "x"):
        ledger.start(task)
        ledger.done(task)
    ledger.start("c")
    check = ledger.check(["a", "b", "c", "d"])
    assert check.ok == {"a", "b"}
    assert check.lost == {"c", "d"}
    assert check.duplicated == {"b": 2}
    assert check.unexpected == {"x"}
    assert ledger.running() == {"c"}


def test_a_killed_redis_comes_back_on_its_port_with_what_it_appended() -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        before = server.url
        server.kill()
        server.start()
        assert server.url == before
        with redis.Redis(unix_socket_path=str(server.socket_path)) as client:
            assert client.get("key") == b"value"


def test_a_virtual_host_of_one_test_is_empty_for_the_next(rabbitmq_server: RabbitServer) -> None:
    with kombu.Connection(rabbitmq_server.add_vhost("one")) as connection:
        connection.SimpleQueue("celery").put("left behind")
    rabbitmq_server.delete_vhost("one")
    with kombu.Connection(rabbitmq_server.add_vhost("one")) as connection:
        assert connection.SimpleQueue("celery").qsize() == 0
    rabbitmq_server.delete_vhost("one")


@pytest.mark.slow
def test_a_stopped_rabbitmq_leaves_no_process_behind() -> None:
    with RabbitServer() as server:
        directory = str(server.directory)
        assert _processes_of(directory)
    wait_for(lambda: not _processes_of(directory), 10, lambda: f"the end of {_processes_of(directory)}")


def _processes_of(directory: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                if directory.encode() in environment or directory == str((entry / "cwd").readlink()):
                    found.append((entry / "cmdline").read_text().replace("\0", " ")[:80])
            except OSError:
                continue
    return found


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.support.processes import Process\n"
        "p = Process(['sleep', '60'], output=Path(sys.argv[1])); p.start(); print(p.pid, flush=True)\n"
        "import time; time.sleep(60)"
    )
    parent = Process(
        [sys.executable, "-c", code, str(tmp_path / "child")],
        output=tmp_path / "parent",
        cwd=Path(__file__).parents[2],
    )
    parent.start()
    child = int(wait_for(parent.output, 10, "the child's pid"))
    os.kill(parent.pid, 9)  # the parent alone, so that only the kernel can end the child
    wait_for(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), 10, "the end of the child")
    assert parent.wait() == -9


def _is_zombie(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
