"""The embedded broker under stock kombu and Celery, between processes."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.exceptions import ChannelError
from kombu.pidbox import Mailbox
from kombu.transport.virtual.base import NotEquivalentError

from greenq.exceptions import ConfigError
from greenq.transports.base import Post
from greenq.transports.sqlite import SqliteStore, Transport, open_store, register
from tests.support.processes import Process, ended, wait_for

ROOT = Path(__file__).parents[2]
Child = Callable[..., Process]

CELERY_APP = """
import time
from celery import Celery
from greenq.transports.sqlite import register

register()
app = Celery("stock", broker={url!r})
app.conf.update(worker_send_task_events=True, task_acks_late={late})

@app.task(name="stock.note")
def note(path, text, seconds=0.0):
    with open(path, "a") as file:
        file.write(text + "\\n")
    time.sleep(seconds)
"""


@pytest.fixture
def child(tmp_path: Path, sqlite_url: str) -> Iterator[Child]:
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(role: str, *arguments: object) -> Process:
            argv = [sys.executable, "-m", "tests.integration.sqlite_children", role, sqlite_url]
            output = tmp_path / f"{role}{next(numbers)}.out"
            return stack.enter_context(ended(Process([*argv, *map(str, arguments)], output=output, cwd=ROOT)))

        yield start


def is_ready(process: Process) -> bool:
    return "ready" in process.output()


def wait_ready(*processes: Process) -> None:
    for process in processes:
        wait_for(partial(is_ready, process), 20.0, process.output)


@pytest.fixture
def connect(sqlite_url: str) -> Iterator[Callable[[], kombu.Connection]]:
    register()
    opened: list[kombu.Connection] = []

    def make(**options: Any) -> kombu.Connection:
        opened.append(kombu.Connection(sqlite_url, **options))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqliteStore]:
    opened = open_store(sqlite_url, "onlooker")
    yield opened
    opened.settle(opened.recover())
    opened.close()


def drain(connection: kombu.Connection, got: list[Any], count: int) -> None:
    while len(got) < count:
        connection.drain_events(timeout=5)


def names(store: SqliteStore) -> set[str]:
    return {row[0] for row in store.database.connect().execute("SELECT name FROM queue")}


def test_a_message_survives_the_way_through_kombu_with_all_it_carries(connect: Any, store: SqliteStore) -> None:
    exchange = kombu.Exchange("tasks")
    queue = kombu.Queue("tasks", exchange, routing_key="tasks")
    got: list[Any] = []
    publisher, consumer = connect(), connect()
    publisher.Producer().publish(
        {"text": "grün", "bytes": b"\xff"},
        exchange=exchange,
        routing_key="tasks",
        declare=[queue],
        priority=3,
        headers={"id": "1", "timelimit": [None, 2.5], "big": 2**70},
        compression="zlib",
        expiration=60,
        correlation_id="1",
        reply_to="me",
    )
    with consumer.Consumer([queue], callbacks=[lambda body, message: got.append((body, message))]):
        drain(consumer, got, 1)
        body, message = got[0]
        assert body == {"text": "grün", "bytes": b"\xff"}
        assert message.headers["timelimit"] == [None, 2.5] and message.headers["big"] == 2**70
        assert message.properties["expiration"] == "60000"
        assert message.delivery_info == {"exchange": "tasks", "routing_key": "tasks"}
        assert store.length("tasks") == 0
        message.ack()
    consumer.close()
    assert store.database.connect().execute("SELECT count(*) FROM message").fetchone()[0] == 0


def test_kombu_and_the_store_meet_on_the_same_queue(connect: Any, store: SqliteStore) -> None:
    publisher = connect()
    for priority in (5, 0):
        publisher.Producer().publish({"p": priority}, routing_key="q", priority=priority)
    low, high = [json.loads(delivery.raw) for delivery in reversed(store.claim(["q"], 2))]
    assert (high["properties"]["priority"], low["properties"]["priority"]) == (0, 5)
    assert high["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q"}
    assert set(high) == {"body", "content-encoding", "content-type", "headers", "properties"}
    assert high["properties"]["body_encoding"] == "base64"
    assert high["properties"]["delivery_tag"] != low["properties"]["delivery_tag"]
    store.settle(store.recover())
    store.post([Post("q", json.dumps(low).encode(), 5), Post("q", json.dumps(high).encode(), 0)])
    got: list[Any] = []
    with publisher.Consumer([kombu.Queue("q")], callbacks=[lambda body, message: got.append(body["p"])], no_ack=True):
        drain(publisher, got, 2)
    assert got == [0, 5]


def test_a_direct_exchange_routes_by_key_and_drops_what_nobody_is_bound_to(connect: Any, store: SqliteStore) -> None:
    exchange = kombu.Exchange("orders")
    channel = connect().default_channel
    for name, key in (("one", "a"), ("two", "a"), ("three", "b")):
        kombu.Queue(name, exchange, routing_key=key)(channel).declare()
    producer = connect().Producer(exchange=exchange)
    for key in ("a", "b", "c"):
        producer.publish({}, routing_key=key)
    assert [store.length(name) for name in ("one", "two", "three")] == [1, 1, 1]
    channel.queue_unbind("two", "orders", "a")
    producer.publish({}, routing_key="a")
    assert [store.length(name) for name in ("one", "two")] == [2, 1]
    channel.queue_delete("one")
    assert names(store) == {"two", "three"}
    assert list(channel.list_bindings()) == [("three", "orders", "b")]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("worker.#", ["worker", "worker.online", "worker.a.b"], ["workers", "task.worker"]),
        ("*.online", ["worker.online"], ["online", "a.b.online"]),
        ("#", ["", "a", "a.b"], []),
        ("#.end", ["end", "a.end", "a.b.end"], ["bend", "end.a"]),
        ("a.*.#.z", ["a.b.z", "a.b.c.z"], ["a.z", "a.b"]),
        ("a+b", ["a+b"], ["aab"]),
    ],
)
def test_a_topic_exchange_follows_amqps_patterns(
    connect: Any, store: SqliteStore, pattern: str, yes: list[str], no: list[str]
) -> None:
    exchange = kombu.Exchange("events", type="topic")
    connection = connect()
    kombu.Queue("watch", exchange, routing_key=pattern)(connection.default_channel).declare()
    producer = connection.Producer(exchange=exchange)
    for key in (*yes, *no):
        producer.publish({"key": key}, routing_key=key)
    assert store.length("watch") == len(yes)


def test_a_fanout_reaches_three_processes(connect: Any, child: Child) -> None:
    subscribers = [child("subscribe", name) for name in "abc"]
    wait_ready(*subscribers)
    producer = connect().Producer()
    for number in range(3):
        producer.publish(number, exchange=kombu.Exchange("news", type="fanout", durable=False))
    for subscriber in subscribers:
        assert subscriber.wait(20) == 0, subscriber.output()
        assert subscriber.output().splitlines()[-1] == "[0, 1, 2]"


def test_queues_of_a_killed_process_go_with_it(connect: Any, child: Child, store: SqliteStore) -> None:
    owner = child("own_a_queue")
    wait_ready(owner)
    assert names(store) == {"mine", "shared"}
    owner.signal(signal.SIGKILL)
    owner.wait()
    consumer = connect()
    with consumer.Consumer([kombu.Queue("other")], callbacks=[print]):
        begun = time.monotonic()
        with pytest.raises(socket.timeout):
            consumer.drain_events(timeout=1.5)
    assert names(store) == {"other"}
    assert time.monotonic() - begun < 2.0
    connect().Producer().publish({}, exchange=kombu.Exchange("replies", durable=False), routing_key="mine")
    assert store.database.connect().execute("SELECT count(*) FROM message").fetchone()[0] == 0


def test_queues_of_a_closed_connection_go_with_it(connect: Any, store: SqliteStore) -> None:
    connection = connect()
    channel = connection.default_channel
    channel.queue_declare("mine", exclusive=True)
    channel.queue_declare("kept")
    channel.queue_declare("shared", auto_delete=True)
    with connection.Consumer([kombu.Queue("shared", auto_delete=True)], callbacks=[print]):
        assert names(store) == {"mine", "kept", "shared"}
    assert names(store) == {"mine", "kept"}
    connection.close()
    assert names(store) == {"kept"}
    assert [path.name for path in store.database.directory.glob("*.lock")] == []


def test_a_queue_that_expires_goes_when_nobody_has_consumed_for_that_long(connect: Any, store: SqliteStore) -> None:
    connection = connect()
    brief = kombu.Queue("brief", expires=0.3, message_ttl=60)
    brief(connection.default_channel).declare()
    with connection.Consumer([brief], callbacks=[print]):
        time.sleep(0.5)
        store.reclaim()
        assert names(store) == {"brief"}
    time.sleep(0.4)
    store.reclaim()
    assert names(store) == set()


def test_a_queues_message_ttl_deletes_what_nobody_took(connect: Any, store: SqliteStore) -> None:
    connection = connect()
    kombu.Queue("brief", message_ttl=0.2)(connection.default_channel).declare()
    connection.Producer().publish({}, routing_key="brief")
    store.post([Post("brief", b"{}"), Post("kept", b"{}")])
    assert (store.length("brief"), store.length("kept")) == (2, 1)
    time.sleep(0.3)
    assert [delivery.queue for delivery in store.claim(["brief", "kept"], 9)] == ["kept"]
    assert store.length("brief") == 0


def test_prefetch_bounds_what_is_claimed_and_an_ack_makes_room(connect: Any, store: SqliteStore) -> None:
    store.post([Post("q", kombu_envelope(number)) for number in range(20)])
    consumer = connect()
    got: list[Any] = []
    with consumer.Consumer([kombu.Queue("q")], callbacks=[lambda b, m: got.append(m)], prefetch_count=5):
        drain(consumer, got, 5)
        assert store.length("q") == 15
        with pytest.raises(socket.timeout):
            consumer.drain_events(timeout=0.2)
        got[0].ack()
        drain(consumer, got, 6)
        assert store.length("q") == 14


def kombu_envelope(number: int) -> bytes:
    properties = {"delivery_tag": "x", "delivery_info": {}, "body_encoding": "utf-8"}
    return json.dumps(
        {"body": str(number), "content-type": "application/json", "content-encoding": "utf-8"}
        | {"headers": {}, "properties": properties}
    ).encode()


def test_closing_gives_back_what_was_not_acknowledged_at_once_and_in_order(connect: Any, store: SqliteStore) -> None:
    store.post([Post("q", kombu_envelope(number)) for number in range(10)])
    consumer = connect()
    got: list[Any] = []
    with consumer.Consumer([kombu.Queue("q")], callbacks=[lambda b, m: got.append(m)], prefetch_count=8):
        drain(consumer, got, 4)
        got[0].ack()
        got[1].ack()
        got[2].reject()
    consumer.close()
    assert store.length("q") == 7
    bodies = [json.loads(delivery.raw) for delivery in store.claim(["q"], 10)]
    assert [int(body["body"]) for body in bodies] == [3, 4, 5, 6, 7, 8, 9]
    assert bodies[0]["headers"]["redelivered"] and "redelivered" not in bodies[-1]["headers"]


def test_a_killed_kombu_consumers_unacknowledged_messages_reach_its_sibling(
    connect: Any, store: SqliteStore, child: Child
) -> None:
    store.post([Post("q", kombu_envelope(number)) for number in range(30)])
    holder = child("half_done", 10)
    wait_for(lambda: "[" in holder.output(), 20.0, holder.output)
    holder.signal(signal.SIGKILL)
    holder.wait()
    killed = time.monotonic()
    got: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        got.append((body, message.headers.get("redelivered", False)))
        message.ack()

    consumer = connect()
    with consumer.Consumer([kombu.Queue("q")], callbacks=[on_message], prefetch_count=50):
        drain(consumer, got, 20)
    assert time.monotonic() - killed < 2.0
    assert sorted(body for body, _ in got) == list(range(10, 30))
    assert {body for body, again in got if again} >= set(range(10, 15))


def test_acknowledgements_are_written_together_and_never_wait_for_long(connect: Any, store: SqliteStore) -> None:
    store.post([Post("q", kombu_envelope(number)) for number in range(201)])
    consumer = connect()
    seen: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        seen.append(body)
        message.ack()

    statements: list[str] = []
    consumer.default_channel.connection.store.database.connect().set_trace_callback(statements.append)
    with consumer.Consumer([kombu.Queue("q")], callbacks=[on_message]):
        drain(consumer, seen, 200)
        commits = statements.count("COMMIT")
        assert commits < 60
        drain(consumer, seen, 201)
        with pytest.raises(socket.timeout):
            consumer.drain_events(timeout=0.1)
        left = store.database.connect().execute("SELECT count(*) FROM message").fetchone()[0]
        assert left == 0


def test_requeue_basic_get_purge_and_passive_declare(connect: Any, store: SqliteStore) -> None:
    channel = connect().default_channel
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.queue_declare("q", passive=True)
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.exchange_declare("none", passive=True)
    assert channel.basic_get("q") is None
    store.post([Post("q", kombu_envelope(number)) for number in range(3)])
    assert channel.queue_declare("q", passive=True)[1] == 3
    message = channel.basic_get("q")
    message.requeue()
    again = channel.basic_get("q")
    assert (again.payload, again.headers["redelivered"]) == (0, True)
    again.ack()
    assert channel.basic_get("q", no_ack=True).payload == 1
    assert channel.queue_purge("q") == 1
    channel.exchange_declare("e", type="topic")
    with pytest.raises(NotEquivalentError):
        channel.exchange_declare("e", type="direct")


def test_a_message_that_is_no_envelope_goes_to_the_dead_queue_and_the_consumer_goes_on(
    connect: Any, store: SqliteStore
) -> None:
    bad = [b"\xff\xfe", b"{}", b"[]", b'{"properties": {"body_encoding": "base64"}, "body": "a"}', b"[" * 99_999]
    store.post([*(Post("q", raw) for raw in bad), Post("q", kombu_envelope(1))])
    consumer = connect()
    got: list[Any] = []
    with consumer.Consumer([kombu.Queue("q")], callbacks=[lambda b, m: (got.append(b), m.ack())]):
        drain(consumer, got, 1)
    dead = [delivery.raw for delivery in store.claim(["q.dead"], 10)]
    assert got == [1]
    assert dead == bad


def test_an_undeliverable_message_goes_to_the_named_queue(connect: Any, store: SqliteStore) -> None:
    producer = connect(transport_options={"deadletter_queue": "lost"}).Producer()
    producer.publish({}, exchange=kombu.Exchange("nobody"), routing_key="x")
    assert store.length("lost") == 1


def test_two_channels_of_a_connection_are_served_in_turn(connect: Any, store: SqliteStore) -> None:
    store.post([Post("busy", kombu_envelope(number)) for number in range(500)])
    consumer = connect()
    got: list[Any] = []
    first = kombu.Consumer(consumer.channel(), [kombu.Queue("busy")], callbacks=[lambda b, m: got.append(m.ack())])
    second = kombu.Consumer(consumer.channel(), [kombu.Queue("rare")], callbacks=[lambda b, m: got.append(b)])
    with first, second:
        drain(consumer, got, 10)
        store.post([Post("rare", kombu_envelope(7))])
        drain(consumer, got, 150)
    assert 7 in got


def test_a_bad_url_is_refused_by_connect(sqlite_url: str) -> None:
    register()
    with pytest.raises(ConfigError, match="durabilty"):
        kombu.Connection(f"{sqlite_url}?durabilty=full").connect()
    with kombu.Connection(sqlite_url) as connection:
        assert connection.as_uri() == sqlite_url
        assert isinstance(connection.transport, Transport)
        with connection.clone() as clone:
            clone.connect()
            assert clone.as_uri() == sqlite_url


def test_kombus_remote_control_reaches_nodes_in_other_processes(connect: Any, child: Child) -> None:
    nodes = [child("mailbox", name) for name in ("n1", "n2", "n3")]
    wait_ready(*nodes)
    connection = connect()
    replies = Mailbox("test", type="fanout")(connection)._broadcast("ping", reply=True, timeout=10, limit=3)
    answers = {name: text for reply in replies for name, text in reply.items()}
    assert answers == {name: f"pong from {name}" for name in ("n1", "n2", "n3")}


@pytest.fixture
def celery_app(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def start(name: str, pool: str = "solo", *, late: bool = True) -> Process:
            (tmp_path / "stockapp.py").write_text(CELERY_APP.format(url=sqlite_url, late=late))
            argv = [sys.executable, "-m", "celery", "-A", "stockapp", "worker", "-P", pool, "-c", "4", "-E"]
            argv += ["-n", f"{name}@here", "--loglevel=INFO"]
            env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONWARNINGS": "ignore"}
            process = Process(argv, output=tmp_path / f"{name}.out", env=env, cwd=tmp_path)
            stack.enter_context(ended(process))
            wait_for(lambda: "ready." in process.output(), 30.0, process.output)
            return process

        yield start


def producer_app(url: str) -> Any:
    from celery import Celery  # here: the import takes a second that other tests need not pay

    register()
    return Celery("producer", broker=url)


def test_celery_pings_and_steers_solo_and_gevent_workers_over_it(
    celery_app: Any, sqlite_url: str, tmp_path: Path
) -> None:
    celery_app("solo", "solo")
    celery_app("green", "gevent")
    app = producer_app(sqlite_url)
    # Celery's green worker says that it is ready before it listens.
    wait_for(lambda: len(app.control.ping(timeout=1.0, limit=2)) == 2, 10.0, "two nodes that listen")
    begun = time.monotonic()
    replies = app.control.ping(timeout=10, limit=2)
    assert time.monotonic() - begun < 2.0
    assert {name: reply for entry in replies for name, reply in entry.items()} == {
        "solo@here": {"ok": "pong"},
        "green@here": {"ok": "pong"},
    }
    assert app.control.inspect(["green@here"], timeout=10).stats()["green@here"]["broker"]["transport"] == "sqlite"
    notes = tmp_path / "notes"
    for number in range(50):
        app.send_task("stock.note", [str(notes), str(number)])
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 50, 30.0, "fifty notes")
    assert sorted(map(int, notes.read_text().split())) == list(range(50))
    app.close()


def test_tasks_of_a_killed_celery_worker_run_again_on_its_sibling(
    celery_app: Any, sqlite_url: str, tmp_path: Path
) -> None:
    app = producer_app(sqlite_url)
    notes = tmp_path / "notes"
    first = celery_app("first", "gevent")
    for number in range(4):
        app.send_task("stock.note", [str(notes), str(number), 3.0])
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 4, 20.0, "four tasks to run")
    celery_app("second", "gevent")
    first.signal(signal.SIGKILL)
    first.wait()
    killed = time.monotonic()
    wait_for(lambda: len(notes.read_text().split()) == 8, 20.0, "the four tasks to run again")
    assert time.monotonic() - killed < 3.0
    assert sorted(notes.read_text().split()) == ["0", "0", "1", "1", "2", "2", "3", "3"]
    app.close()


def test_a_warmly_stopped_celery_worker_leaves_nothing_claimed(
    celery_app: Any, sqlite_url: str, tmp_path: Path, store: SqliteStore
) -> None:
    app = producer_app(sqlite_url)
    worker = celery_app("one", "solo")
    notes = tmp_path / "notes"
    for number in range(30):
        app.send_task("stock.note", [str(notes), str(number), 0.2])
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) > 3, 20.0, "tasks to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    done = len(notes.read_text().split())
    assert store.length("celery") == 30 - done
    assert names(store) == {"celery"}
    app.close()
