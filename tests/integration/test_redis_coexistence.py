"""greenq's Redis transport and stock kombu on the same queues: each can finish what the other began."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from kombu import Connection, Exchange, Queue

from greenq.transports.redis import RedisStore, open_store
from tests.support.redis_proxy import envelope, items, number_of, posts, without_marks

OURS = "greenq.transports.redis:Transport"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def opened(redis_url: str) -> Iterator[Callable[..., RedisStore]]:
    made: list[RedisStore] = []

    def make(owner: str, **options: object) -> RedisStore:
        made.append(open_store(redis_url, owner, options))
        return made[-1]

    yield make
    for store in made:
        store.close()


def queue(name: str = "q", exchange: str = "q", kind: str = "direct", key: str = "q") -> Queue:
    return Queue(name, Exchange(exchange, type=kind), routing_key=key)


def publish(url: str, count: int, where: Queue, key: str | None = None, **options: Any) -> None:
    with Connection(url) as connection:
        producer = connection.Producer()
        for number in range(count):
            producer.publish(
                [[number], {}, {}],
                exchange=where.exchange,
                routing_key=key or where.routing_key,
                declare=[where],
                headers={"id": f"id-{number}"},
                **options,
            )


def take_without_acking(connection: Connection, where: Queue, count: int) -> list[Any]:
    """Have stock kombu deliver messages and keep them."""
    held: list[Any] = []
    consumer = connection.Consumer([where], on_message=held.append, prefetch_count=count)
    with consumer:
        while len(held) < count:
            connection.drain_events(timeout=5)
    return held


def age(client: Any, seconds: float) -> None:
    """Have everything held be held since longer."""
    for tag in client.zrange("unacked_index", 0, -1):
        client.zincrby("unacked_index", -seconds, tag)


def crash(connection: Connection) -> None:
    """Leave as a killed process leaves: nothing is given back."""
    for channel in list(connection.transport.channels):
        if channel._qos is not None:
            channel._qos._on_collect.cancel()
            channel.do_restore = False
    connection.close()


def test_stock_kombu_gives_back_what_a_killed_greenq_held(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    publish(redis_url, 10, queue())
    before = items(client, "q")
    store = opened("killed")
    held = store.claim(["q"], 7)
    store.close()
    with Connection(redis_url, transport_options={"visibility_timeout": 0.01}) as stock:
        channel = stock.channel()
        time.sleep(0.05)
        channel.qos.restore_visible(num=100, interval=1)
    after = items(client, "q")
    assert len(held) == 7
    assert after[:3] == before[:3]
    assert [without_marks(raw) for raw in after] == [json.loads(raw) for raw in before]
    assert all(json.loads(raw)["headers"]["redelivered"] for raw in after[3:])
    assert client.keys("unacked*") == []


def test_greenq_gives_back_what_a_killed_stock_worker_held(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    publish(redis_url, 10, queue())
    before = items(client, "q")
    stock = Connection(redis_url)
    assert len(take_without_acking(stock, queue(), 6)) == 6
    crash(stock)
    assert client.hlen("unacked") == 6

    patient = opened("a")
    assert patient.reclaim() == 0, "a stock worker has its visibility timeout, not our lease"
    age(client, 3000)
    assert patient.reclaim() == 0
    age(client, 700)
    assert patient.reclaim() == 6
    after = items(client, "q")
    assert after[:4] == before[:4]
    assert [without_marks(raw) for raw in after] == [json.loads(raw) for raw in before]
    assert client.keys("unacked*") == []


def test_what_both_restore_is_the_same_text(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    texts = []
    for restore_with in ("stock", "greenq"):
        client.delete("q")
        client.rpush("q", envelope(1, priority=0))
        opened("w").claim(["q"], 1)
        if restore_with == "stock":
            with Connection(redis_url, transport_options={"visibility_timeout": 0.001}) as stock:
                time.sleep(0.01)
                stock.channel().qos.restore_visible(num=100, interval=1)
        else:
            time.sleep(0.01)
            opened("x", visibility_timeout=0.001).reclaim()
        texts.append(client.lrange("q", 0, -1))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 1


def test_exchanges_and_topics_of_stock_messages_lead_back_to_their_queues(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    cases = [
        (queue("direct-q", "shop", "direct", "order"), "order"),
        (queue("topic-q", "news", "topic", "eu.*.de"), "eu.sport.de"),
        (queue("deep-q", "deep", "topic", "a.#"), "a.b.c"),
        (queue("dotted", "dot", "topic", "v1.x"), "v1.x"),
    ]
    for where, key in cases:
        publish(redis_url, 2, where, key, priority=4)
        stock = Connection(redis_url)
        take_without_acking(stock, where, 2)
        crash(stock)
    time.sleep(0.05)
    assert opened("w", visibility_timeout=0.02).reclaim() == 8
    for where, _ in cases:
        assert client.llen(f"{where.name}\x06\x163") == 2, where.name
    assert client.keys("unacked*") == []


def test_a_message_no_binding_leads_anywhere_is_kept_aside(
    opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    client.hset("unacked", "t1", json.dumps([json.loads(envelope(1)), "nowhere", "lost"]))
    client.zadd("unacked_index", {"t1": 1})
    assert opened("w").reclaim() == 1
    assert list(map(number_of, items(client, "lost.dead"))) == [1]


def test_stock_kombu_reads_and_acks_what_greenq_posted_and_the_other_way_round(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    store = opened("w")
    store.post(posts(5))
    got: list[Any] = []
    stock = Connection(redis_url)
    with stock, stock.Consumer([queue()], on_message=lambda m: (got.append(m.payload), m.ack())):
        while len(got) < 5:
            stock.drain_events(timeout=5)
    assert [payload[0] for payload in got] == [[n] for n in range(5)]
    publish(redis_url, 5, queue())
    held = store.claim(["q"], 10)
    assert [number_of(d.raw) for d in held] == list(range(5))
    store.settle([d.tag for d in held])
    assert client.keys("unacked*") == []


def test_an_item_that_is_no_message_comes_back_whole_through_a_stock_restore(
    redis_url: str, opened: Callable[..., RedisStore], client: redis.Redis
) -> None:
    junk = [b"5", b"\xff\xfe\x00", b'{"body": "cut', b'"\xc3\xa9"']
    for raw in junk:
        client.lpush("q", raw)
    assert [d.raw for d in opened("killed").claim(["q"], 10)] == junk
    with Connection(redis_url, transport_options={"visibility_timeout": 0.01}) as stock:
        time.sleep(0.05)
        stock.channel().qos.restore_visible(num=100, interval=1)
    assert client.llen("q") == 4
    assert sorted(d.raw for d in opened("next").claim(["q"], 10)) == sorted(junk)


@pytest.mark.parametrize("prefix", ["", "team:"])
def test_a_mixed_fleet_on_one_queue_runs_everything_once(redis_url: str, client: redis.Redis, prefix: str) -> None:
    options = {"global_keyprefix": prefix}
    done: list[int] = []

    def receive(message: Any) -> None:
        done.append(message.payload[0][0])
        message.ack()

    store = open_store(redis_url, "w", options)
    with (
        Connection(redis_url, transport_options=options) as stock,
        Connection(redis_url, transport=OURS, transport_options=options) as ours,
    ):
        producer = stock.Producer()
        for number in range(300):
            producer.publish([[number], {}, {}], exchange="", routing_key="q")
        stock_consumer = stock.Consumer([queue()], on_message=receive, prefetch_count=1)
        our_consumer = ours.Consumer([queue()], on_message=receive, prefetch_count=7)
        with stock_consumer, our_consumer:
            deadline = time.monotonic() + 20
            while len(done) < 300 and time.monotonic() < deadline:
                for connection in (stock, ours):
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)
                batch = store.claim(["q"], 5)
                done.extend(number_of(d.raw) for d in batch)
                store.settle([d.tag for d in batch])
    assert sorted(done) == list(range(300))
    assert client.hlen(f"{prefix}unacked") == 0
    store.close()
