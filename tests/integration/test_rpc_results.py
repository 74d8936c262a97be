"""Results as messages: worker side and client side of one store, over RabbitMQ."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest

from greenq.config import Settings
from greenq.exceptions import ResultError, ResultTimeout
from greenq.model import Record
from greenq.results.rpc import RpcResults
from tests.integration.amqp_children import outcome
from tests.support.processes import free_port, wait_for
from tests.support.services import RabbitServer

Make = Callable[[], RpcResults]


@pytest.fixture
def make(rabbitmq_url: str) -> Iterator[Make]:
    """A new store on the test's virtual host; all are closed."""
    made: list[RpcResults] = []

    def store() -> RpcResults:
        made.append(RpcResults(rabbitmq_url, Settings({})))
        return made[-1]

    yield store
    for store_ in made:
        store_.close()


def record(task_id: str, reply_to: str, state: str = "SUCCESS", value: Any = 1) -> Record:
    payload = json.dumps({"task_id": task_id, "status": state, "result": value}).encode()
    return Record(task_id, state, payload, reply_to)


def ended(payload: bytes) -> bool:
    return bool(json.loads(payload)["status"] == "SUCCESS")


def test_results_come_to_who_expects_them_in_any_order(make: Make) -> None:
    worker, client, other = make(), make(), make()
    ids = [f"t{n}" for n in range(200)]
    client.expect(ids)
    other.expect(["o"])
    worker.store([record(task_id, client.reply_to, value=task_id) for task_id in ids])
    worker.store([record("o", other.reply_to)])
    for task_id in reversed(ids):
        assert json.loads(client.wait(task_id, ended, 10))["result"] == task_id
    assert client.read(["t0", "o"]) == [None, None]
    assert ended(other.wait("o", ended, 10))


def test_a_state_on_the_way_is_read_and_the_last_one_ends_the_wait(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["t"])
    worker.store([record("t", client.reply_to, "STARTED")])
    wait_for(lambda: client.read(["t"])[0], 10, "the state on the way")
    with pytest.raises(ResultTimeout, match="no result of task t after 0.2 s"):
        client.wait("t", ended, 0.2)
    worker.store([record("t", client.reply_to)])
    assert ended(client.wait("t", ended, 10))


def test_a_result_is_readable_many_times_and_handed_out_once(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["t"])
    worker.store([record("t", client.reply_to)])
    wait_for(lambda: client.read(["t"])[0], 10, "the result")
    assert client.read(["t"])[0] is not None
    assert client.wait("t", ended, 1)
    assert client.read(["t"]) == [None]


def test_one_reads_for_all_who_wait(make: Make) -> None:
    worker, client = make(), make()
    ids = [f"t{n}" for n in range(30)]
    client.expect(ids)
    found: list[str] = []

    def wait(task_id: str) -> None:
        found.append(json.loads(client.wait(task_id, ended, 15))["task_id"])

    threads = [threading.Thread(target=wait, args=(task_id,)) for task_id in ids]
    for thread in threads:
        thread.start()
    for task_id in ids:
        worker.store([record(task_id, client.reply_to)])
    for thread in threads:
        thread.join(15)
    assert sorted(found) == sorted(ids)


def test_waiting_greenlets_share_one_reader(rabbitmq_url: str, tmp_path: Any) -> None:
    said = outcome("gevent", "answers", rabbitmq_url, tmp_path, count=200)
    assert said["found"] == 200
    assert said["seconds"] < 10


def test_no_answer_is_sent_to_who_asked_for_none(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["t"])
    worker.store([record("t", "", value="for nobody")])
    worker.store([])
    worker.store([record("t", client.reply_to, value="for the client")])
    assert json.loads(client.wait("t", ended, 10))["result"] == "for the client"


def test_an_asker_who_is_gone_is_no_error(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["t"])
    worker.store([record("t", "a-queue-that-never-was"), record("t", client.reply_to)])
    assert ended(client.wait("t", ended, 10)), "the others of a batch have their answers"


def test_results_survive_a_lost_connection_and_a_restart_of_the_broker() -> None:
    with RabbitServer() as server:
        conf = Settings({})
        conf.update(result_persistent=True)
        worker, client = RpcResults(server.url, conf), RpcResults(server.url, conf)
        client.expect(["a", "b", "c"])
        server.ctl("close_all_connections", "test")
        worker.store([record("a", client.reply_to)])
        assert ended(client.wait("a", ended, 15))
        worker.store([record("b", client.reply_to)])
        server.restart()
        worker.store([record("c", client.reply_to)])
        assert ended(client.wait("b", ended, 20))
        assert ended(client.wait("c", ended, 20))
        worker.close()
        client.close()


def test_a_reply_queue_is_bounded_in_time_and_name(make: Make, rabbitmq_url: str) -> None:
    client = make()
    client.expect(["t"])
    with kombu.Connection(rabbitmq_url) as connection:
        # Declaring with the same arguments passes, with any other it would be refused.
        arguments = {"x-expires": 300_000}
        connection.channel().queue_declare(client.reply_to, durable=True, auto_delete=False, arguments=arguments)


def test_a_forked_child_has_a_queue_of_its_own(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["p"])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.expect(["c"])
            worker.store([record("c", client.reply_to)])
            client.wait("c", ended, 10)
            os.write(write, client.reply_to.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    name = os.read(read, 100).decode()
    os.close(read)
    assert name
    assert name != client.reply_to
    worker.store([record("p", client.reply_to)])
    assert ended(client.wait("p", ended, 10))


def test_what_nobody_reads_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenq.results.rpc.KEPT", 50)
    worker, client = make(), make()
    ids = [f"t{n}" for n in range(120)]
    client.expect(ids)
    worker.store([record(task_id, client.reply_to) for task_id in ids])
    assert ended(client.wait(ids[-1], ended, 10))
    kept = [payload for payload in client.read(ids) if payload]
    assert len(kept) <= 50
    assert client.read([ids[-2]])[0] is not None


def test_forgetting_drops_what_has_come(make: Make) -> None:
    worker, client = make(), make()
    client.expect(["t"])
    worker.store([record("t", client.reply_to)])
    wait_for(lambda: client.read(["t"])[0], 10, "the result")
    client.forget("t")
    assert client.read(["t"]) == [None]


def test_a_broker_that_is_away_is_a_result_error() -> None:
    conf = Settings({})
    conf.update(task_publish_retry=False)
    store = RpcResults(f"amqp://guest:guest@127.0.0.1:{free_port()}//", conf)
    with pytest.raises(ResultError, match="not sent: no connection"):
        store.store([record("t", "queue")])
    with pytest.raises(ResultError, match="no reply queue: no connection"):
        store.expect(["t"])
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        store.wait("t", ended, 1.0)
    assert time.monotonic() - began < 5
    store.close()
