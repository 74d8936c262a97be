"""greenq's kombu transport: an ordinary kombu Connection, in batches, that no frame can break."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Exchange, Queue
from kombu.simple import SimpleQueue

from greenq.exceptions import BrokerUnreachable, ConfigError
from greenq.transports.redis import register
from tests.support.processes import run
from tests.support.redis_proxy import envelope, items, number_of, posts
from tests.support.services import RedisServer, wait_for

OURS = "greenq.transports.redis:Transport"
ROOT = Path(__file__).parents[2]
Q = Queue("q", Exchange("q"), routing_key="q")
FANOUT = Queue("ears", Exchange("news", type="fanout"))


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    with Connection(redis_url, transport=OURS) as found:
        yield found


def fill(client: redis.Redis, count: int, name: str = "q") -> None:
    for post in posts(count, name):
        client.lpush(name, post.raw)


def drain(connection: Connection, seconds: float = 0.2) -> None:
    """Deliver until nothing came for that long."""
    with suppress(TimeoutError):  # the one way in which kombu says that nothing came
        while True:
            connection.drain_events(timeout=seconds)


def test_an_ordinary_consumer_gets_everything_in_order(connection: Connection, client: redis.Redis) -> None:
    fill(client, 250)
    got: list[int] = []
    with connection.Consumer([Q], on_message=lambda m: (got.append(m.payload[0][0]), m.ack())):
        drain(connection)
        assert client.keys("unacked*") == [], "acks are sent before the channel waits"
    assert got == list(range(250))


def test_never_more_than_the_prefetch_count_is_out(connection: Connection, client: redis.Redis) -> None:
    fill(client, 30)
    held: list[Any] = []
    with connection.Consumer([Q], on_message=held.append, prefetch_count=7):
        drain(connection)
        assert len(held) == client.hlen("unacked") == 7
        for message in held[:3]:
            message.ack()
        drain(connection)
        assert len(held) == 10
        assert client.hlen("unacked") == 7


def test_messages_reach_a_waiting_consumer_at_once(connection: Connection, client: redis.Redis) -> None:
    got: list[float] = []
    with connection.Consumer([Q], on_message=lambda m: (got.append(time.monotonic()), m.ack())):
        drain(connection, 0.05)
        sent: list[float] = []

        def send() -> None:
            sent.append(time.monotonic())
            client.lpush("q", envelope(1))

        timer = threading.Timer(0.3, send)
        timer.start()
        connection.drain_events(timeout=5)
        timer.join()
    assert got[0] - sent[0] < 0.5


def test_an_ack_from_another_thread_does_not_wait_for_the_next_message(
    connection: Connection, client: redis.Redis
) -> None:
    fill(client, 2)
    held: list[Any] = []
    with connection.Consumer([Q], on_message=held.append, prefetch_count=1):
        connection.drain_events(timeout=5)
        timer = threading.Timer(0.2, held[0].ack)
        timer.start()
        start = time.monotonic()
        connection.drain_events(timeout=5)
        timer.join()
        assert time.monotonic() - start < 0.8
        assert len(held) == 2
        assert client.hlen("unacked") == 1


def test_rejected_messages_go_back_and_unacked_ones_are_restored_at_close(
    redis_url: str, client: redis.Redis
) -> None:
    fill(client, 6)
    held: list[Any] = []
    connection = Connection(redis_url, transport=OURS)
    with connection, connection.Consumer([Q], on_message=held.append, prefetch_count=5):
        drain(connection)
        held[0].ack()
        held[1].reject()
        held[2].requeue()
    assert sorted(map(number_of, items(client, "q"))) == [2, 3, 4, 5]
    assert client.keys("unacked*") == []


def test_a_callback_that_raises_loses_nothing_of_the_batch(connection: Connection, client: redis.Redis) -> None:
    fill(client, 10)
    got: list[int] = []

    def receive(message: Any) -> None:
        message.ack()
        got.append(message.payload[0][0])
        if len(got) == 4:
            raise RuntimeError("user code")

    with connection.Consumer([Q], on_message=receive):
        with pytest.raises(RuntimeError, match="user code"):
            drain(connection)
        drain(connection)
    assert got == list(range(10))


def test_without_acks_nothing_stays_behind(connection: Connection, client: redis.Redis) -> None:
    fill(client, 5)
    got: list[Any] = []
    with connection.Consumer([Q], on_message=got.append, no_ack=True):
        drain(connection)
    assert len(got) == 5
    assert client.keys("unacked*") == []


def test_basic_get_takes_one_and_can_be_acked(connection: Connection, client: redis.Redis) -> None:
    fill(client, 3)
    channel = connection.default_channel
    first, second = channel.basic_get("q"), channel.basic_get("q", no_ack=True)
    assert [first.decode()[0], second.decode()[0]] == [[0], [1]]
    assert client.llen("q") == 1
    channel.basic_ack(first.delivery_tag)
    channel.qos.flush_acks()
    assert client.keys("unacked*") == []
    assert channel.basic_get("empty") is None


def test_a_cancelled_consumers_messages_go_back(connection: Connection, client: redis.Redis) -> None:
    fill(client, 10)
    got: list[Any] = []
    consumer = connection.Consumer([Q])
    consumer.on_message = lambda m: (got.append(m), m.ack(), consumer.cancel())
    consumer.consume()
    connection.drain_events(timeout=5)
    assert len(got) == 1
    connection.close()
    assert sorted(map(number_of, items(client, "q"))) == list(range(1, 10))


def test_fanout_reaches_every_subscriber_in_both_directions(redis_url: str, connection: Connection) -> None:
    with Connection(redis_url) as stock:
        heard: dict[str, list[Any]] = {"ours": [], "stock": []}
        news = Exchange("news", type="fanout")
        ours_q, stock_q = Queue("e1", news), Queue("e2", news)
        ours = connection.Consumer([ours_q], on_message=lambda m: heard["ours"].append(m.payload), no_ack=True)
        other = stock.Consumer([stock_q], on_message=lambda m: heard["stock"].append(m.payload), no_ack=True)
        with ours, other:
            for sender in (connection, stock):
                drain(connection, 0.05)
                drain(stock, 0.05)
                sender.Producer().publish({"from": sender is stock}, exchange=news)
            drain(connection)
            drain(stock)
    assert heard["ours"] == heard["stock"] == [{"from": False}, {"from": True}]


def test_tasks_and_fanout_come_over_one_connection(connection: Connection, client: redis.Redis) -> None:
    got: list[Any] = []
    with connection.Consumer([Q, FANOUT], on_message=lambda m: (got.append(m.payload), m.ack())):
        drain(connection, 0.05)
        for number in range(5):
            connection.Producer().publish({"news": number}, exchange=FANOUT.exchange)
            client.lpush("q", envelope(number))
        drain(connection)
        assert client.keys("unacked*") == []
    assert len(got) == 10


HOSTILE = [
    b"5", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 50_000, b"{}", b'{"properties": 5}',
    b'{"properties": {}}', b'{"properties": {"delivery_tag": 1, "body_encoding": "rot13"}, "body": "x"}',
    b'{"properties": {"delivery_tag": [], "body_encoding": "base64"}, "body": "x"}',
    b'{"properties": {"delivery_tag": "t"}, "body": {"__type__": "uuid", "__value__": 5}}',
]  # fmt: skip


def test_a_hostile_control_frame_is_dropped_and_said_once(
    connection: Connection, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    with connection.Consumer([FANOUT], on_message=lambda m: got.append(m.payload), no_ack=True):
        drain(connection, 0.05)
        for frame in HOSTILE:
            client.publish("/0.news", frame)
        connection.Producer().publish({"fine": 1}, exchange=FANOUT.exchange)
        drain(connection)
    assert got == [{"fine": 1}]
    assert connection.transport.dropped == len(HOSTILE)
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].__dict__["event"] == "control.frame_dropped"


def test_a_hostile_item_in_a_queue_goes_to_the_dead_list_and_the_rest_arrives(
    connection: Connection, client: redis.Redis
) -> None:
    got: list[Any] = []
    hostile = [frame for frame in HOSTILE if frame != b'{"properties": {}}']  # a message without a body
    for frame in hostile:
        client.lpush("q", frame)
    fill(client, 3)
    with connection.Consumer([Q], on_message=lambda m: (got.append(m.payload[0][0]), m.ack())):
        drain(connection)
    assert got == [0, 1, 2]
    assert client.lrange("q.dead", 0, -1) == hostile[::-1]
    assert client.llen("q.dead.info") == len(hostile)
    assert client.keys("unacked*") == []


def test_urls_with_our_prefix_are_understood(redis_server: RedisServer, redis_url: str, client: redis.Redis) -> None:
    register()
    for url in (redis_url, redis_server.socket_url, redis_server.socket_url.removeprefix("redis+")):
        with Connection(f"greenq+{url}") as first, first.clone() as connection:
            simple = SimpleQueue(connection, "alias")
            simple.put(url)
            message = simple.get(timeout=5)
            message.ack()
            assert message.payload == url
            assert type(connection.transport).__module__.startswith("greenq.")
            simple.close()
    assert client.keys("alias*") == []


def test_a_password_is_in_no_printed_url(redis_url: str) -> None:
    register()
    secret = redis_url.replace("//", "//default:hush@")
    for connection in (Connection(secret, transport=OURS), Connection(f"greenq+{secret}")):
        assert "hush" not in repr(connection) + connection.as_uri()
        assert "hush" in connection.as_uri(include_password=True)


def test_a_failover_keeps_the_transport(redis_url: str) -> None:
    register()
    with Connection(f"greenq+redis://127.0.0.1:1/0;greenq+{redis_url}") as connection:
        connection.ensure_connection(max_retries=3, interval_start=0)
        assert type(connection.transport).__module__.startswith("greenq.")


def test_turning_ack_emulation_off_is_refused(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="ack_emulation"):
        Connection(redis_url, transport=OURS, transport_options={"ack_emulation": False}).connect()


def test_a_broker_that_went_away_is_a_connection_error_and_the_next_connection_works() -> None:
    with RedisServer() as server:
        connection = Connection(server.url, transport=OURS)
        got: list[Any] = []
        with connection.Consumer([Q], on_message=lambda m: (got.append(m), m.ack())):
            drain(connection, 0.05)
            server.kill()
            with pytest.raises(connection.connection_errors) as caught:
                drain(connection, 5)
        assert isinstance(caught.value, (BrokerUnreachable, OSError, redis.ConnectionError))
        connection.close()
        server.start()
        with redis.Redis(port=server.port) as client:
            client.lpush("q", envelope(1))
        again = Connection(server.url, transport=OURS)
        with again, again.Consumer([Q], on_message=lambda m: (got.append(m), m.ack())):
            drain(again, 0.1)
        assert len(got) == 1


def test_a_consumer_gives_back_what_dead_ones_held(redis_url: str, client: redis.Redis) -> None:
    fill(client, 3)
    client.hset("unacked", "old", b'[%b, "", "q"]' % envelope(9))
    client.zadd("unacked_index", {"old": 1})
    got: list[int] = []
    connection = Connection(redis_url, transport=OURS, transport_options={"visibility_timeout": 2})
    consumer = connection.Consumer([Q], on_message=lambda m: (got.append(m.payload[0][0]), m.ack()))
    with connection, consumer:
        deadline = time.monotonic() + 10
        while 9 not in got and time.monotonic() < deadline:
            drain(connection, 0.2)
    assert sorted(got) == [0, 1, 2, 9]


def test_closing_leaves_no_connection(redis_url: str, client: redis.Redis) -> None:
    before = {c["id"] for c in client.client_list()}
    for _ in range(3):
        connection = Connection(redis_url, transport=OURS)
        with connection, connection.Consumer([Q, FANOUT], on_message=lambda m: m.ack()):
            drain(connection, 0.05)
            connection.Producer().publish({}, routing_key="elsewhere")
            assert len({c["id"] for c in client.client_list()} - before) <= 3
    wait_for(lambda: {c["id"] for c in client.client_list()} <= before, 5, "the connections to end")


GREEN = """
import sys, time
library, url = sys.argv[1:]
if library == "gevent":
    from gevent import monkey; monkey.patch_all()
    from gevent import spawn
else:
    import eventlet; eventlet.monkey_patch()
    from eventlet import spawn
from kombu import Connection, Exchange, Queue

q, news = Queue("q", Exchange("q"), routing_key="q"), Exchange("news", type="fanout")
got = []
with Connection(url, transport="greenq.transports.redis:Transport") as connection, Connection(url) as other:
    def send():
        producer = other.Producer()
        for number in range(50):
            producer.publish({"n": number}, exchange="", routing_key="q")
            producer.publish({"f": number}, exchange=news, declare=[news])
            time.sleep(0.002)
    receive = lambda m: (got.append(m.payload), m.ack())
    with connection.Consumer([q, Queue("ears", news)], on_message=receive):
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            pass
        spawn(send)
        deadline = time.monotonic() + 20
        while len(got) < 100 and time.monotonic() < deadline:
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                pass
assert sorted(p["n"] for p in got if "n" in p) == sorted(p["f"] for p in got if "f" in p) == list(range(50)), got
print("fine")
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_it_works_among_greenlets(library: str, redis_url: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", GREEN, library, redis_url]
    done = run(argv, cwd=ROOT)
    assert done.stdout == "fine\n", done.stderr
