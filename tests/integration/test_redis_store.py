"""The Redis store alone: what a claim takes, in which order, and where a message goes afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError
from greenq.model import Settle, Settlement
from greenq.transports.base import Post
from greenq.transports.redis import RedisStore, open_store
from greenq.transports.redis.endpoint import parse_endpoint
from tests.support.redis_proxy import RedisProxy, envelope, number_of, posts, without_marks
from tests.support.services import RedisServer, wait_for


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    found = open_store(redis_url, "worker-1", {})
    yield found
    found.close()


def test_a_claim_leaves_the_message_in_kombus_unacked_hash_in_kombus_shape(
    store: RedisStore, client: redis.Redis
) -> None:
    store.post([Post("q", envelope(1))])

    (delivery,) = store.claim(["q"], 10)

    assert delivery.raw == envelope(1)
    assert client.llen("q") == 0
    stored = client.hget("unacked", delivery.tag)
    assert stored == b'[%b, "", "q"]' % envelope(1)
    assert client.zrange("unacked_index", 0, -1) == [delivery.tag.encode()]
    assert delivery.tag.startswith("worker-1/")


def test_messages_come_in_the_order_they_were_posted(store: RedisStore) -> None:
    store.post(posts(250))
    numbers = [number_of(d.raw) for _ in range(4) for d in store.claim(["q"], 1000)]
    assert numbers == list(range(250))


def test_no_claim_takes_more_than_a_hundred_or_than_asked(store: RedisStore) -> None:
    store.post(posts(300))
    assert len(store.claim(["q"], 1000)) == 100
    assert len(store.claim(["q"], 7)) == 7
    assert store.claim(["q"], 0) == []


def test_every_tag_is_fresh(redis_url: str, store: RedisStore) -> None:
    other = open_store(redis_url, "worker-1", {})
    store.post(posts(200))
    tags = [d.tag for s in (store, other) for _ in range(2) for d in s.claim(["q"], 50)]
    assert len(set(tags)) == 200
    other.close()


def test_higher_priorities_are_served_first_in_kombus_buckets(store: RedisStore, client: redis.Redis) -> None:
    order = (9, 0, 4, 6, 3, 7)
    store.post([Post("q", envelope(priority, priority=priority), priority) for priority in order])
    assert client.llen("q\x06\x166") == 2
    assert [number_of(d.raw) for d in store.claim(["q"], 10)] == [0, 4, 3, 6, 7, 9]


def test_queues_share_a_claim_and_take_turns_in_small_ones(store: RedisStore) -> None:
    queues = ["a", "b", "c"]
    store.post([p for queue in queues for p in posts(200, queue)])
    assert Counter(d.queue for d in store.claim(queues, 99)) == {"a": 33, "b": 33, "c": 33}
    single = Counter(store.claim(queues, 1)[0].queue for _ in range(30))
    assert single == {"a": 10, "b": 10, "c": 10}


def test_a_short_queue_leaves_its_share_to_the_others(store: RedisStore) -> None:
    store.post([*posts(3, "a"), *posts(200, "b")])
    assert Counter(d.queue for d in store.claim(["a", "b", "none"], 50)) == {"a": 3, "b": 47}


def test_a_strict_order_of_queues_is_kept_where_it_is_asked_for(redis_url: str) -> None:
    store = open_store(redis_url, "w", {"queue_order_strategy": "priority"})
    store.post([*posts(30, "a"), *posts(30, "b")])
    assert Counter(d.queue for _ in range(2) for d in store.claim(["b", "a"], 20)) == {"b": 30, "a": 10}
    store.close()


def test_big_messages_are_claimed_in_smaller_batches(store: RedisStore) -> None:
    store.post([Post("q", envelope(n, filler="x" * 100_000)) for n in range(100)])
    first, second = len(store.claim(["q"], 60)), len(store.claim(["q"], 60))
    assert first == 60
    assert second < 20


def test_an_ack_removes_every_trace(store: RedisStore, client: redis.Redis) -> None:
    store.post(posts(5))
    tags = [d.tag for d in store.claim(["q"], 5)]
    assert store.settle(tags) == 0
    assert client.keys("*unacked*") == []
    assert store.recover() == []


def test_acks_of_what_is_no_longer_held_are_counted_and_change_nothing(store: RedisStore) -> None:
    store.post(posts(1))
    (delivery,) = store.claim(["q"], 1)
    gone = [Settlement("worker-1/0-1", "q", how) for how in (Settle.REQUEUE, Settle.DEAD, Settle.DELAY)]
    assert store.settle([delivery.tag, "worker-1/0-0"], gone) == 4
    assert store.length("q") == 0


def test_requeued_messages_are_next_again_in_their_order_and_marked(store: RedisStore, client: redis.Redis) -> None:
    store.post([*posts(3), Post("q", envelope(3))])
    held = store.claim(["q"], 3)
    store.settle((), [Settlement(d.tag, d.queue, Settle.REQUEUE) for d in held])
    again = store.claim(["q"], 4)
    assert [number_of(d.raw) for d in again] == [0, 1, 2, 3]
    assert [without_marks(d.raw) for d in again[:3]] == [json.loads(d.raw) for d in held]
    marked = json.loads(again[0].raw)
    assert marked["headers"]["redelivered"] is True
    assert marked["properties"]["delivery_info"]["redelivered"] is True
    assert again[3].raw == envelope(3)
    assert client.hlen("unacked") == 4


def test_a_requeued_message_keeps_its_priority(store: RedisStore, client: redis.Redis) -> None:
    store.post([Post("q", envelope(1, priority=6), 6)])
    (held,) = store.claim(["q"], 1)
    store.settle((), [Settlement(held.tag, "q", Settle.REQUEUE)])
    assert client.llen("q\x06\x166") == 1


def test_a_dead_message_is_kept_byte_for_byte_beside_its_reason(store: RedisStore, client: redis.Redis) -> None:
    raw = b"\xff\x00 not {json"
    store.post([Post("q", raw), *posts(1)])
    held = store.claim(["q"], 2)
    assert held[0].raw == raw
    store.settle((), [Settlement(d.tag, "q", Settle.DEAD, reason='envelope: oh\n"dear"') for d in held])
    assert client.lrange("q.dead", 0, -1) == [raw, envelope(0)]
    about = [json.loads(text) for text in client.lrange("q.dead.info", 0, -1)]
    assert about[0]["reason"] == 'envelope: oh\n"dear"'
    assert about[0]["tag"] == held[0].tag
    assert abs(about[0]["time"] - time.time()) < 60
    assert client.hlen("unacked") == 0


def test_the_dead_list_is_bounded(store: RedisStore, client: redis.Redis) -> None:
    client.lpush("q.dead", *[f"old{n}" for n in range(10_000)])
    client.lpush("q.dead.info", *["{}" for n in range(10_000)])
    store.post(posts(1))
    (held,) = store.claim(["q"], 1)
    store.settle((), [Settlement(held.tag, "q", Settle.DEAD, reason="r")])
    assert client.llen("q.dead") == client.llen("q.dead.info") == 10_000
    assert client.lindex("q.dead", 0) == envelope(0)


def test_a_delayed_message_is_never_early_and_comes_back_unchanged(store: RedisStore) -> None:
    store.post(posts(1))
    (held,) = store.claim(["q"], 1)
    due = time.time() + 0.4
    store.settle((), [Settlement(held.tag, "q", Settle.DELAY, due=due)])
    assert store.length("q") == 0
    assert store.claim(["q"], 1) == []
    assert store.wait(["q"], 5) is True
    (again,) = store.claim(["q"], 1)
    assert due <= time.time() < due + 1
    assert again.raw == envelope(0)


def test_equal_messages_can_be_delayed_at_once_and_the_earliest_is_served_first(store: RedisStore) -> None:
    store.post([Post("q", envelope(n)) for n in (1, 1, 2)])
    held = store.claim(["q"], 3)
    past = time.time() - 10
    store.settle((), [Settlement(d.tag, "q", Settle.DELAY, due=past - n) for n, d in enumerate(held)])
    assert [number_of(d.raw) for d in store.claim(["other"], 5) + store.claim(["q"], 5)] == [2, 1, 1]


def test_items_that_are_no_json_objects_come_byte_for_byte_and_keep_the_hash_readable(
    store: RedisStore, client: redis.Redis
) -> None:
    junk = [b"5", b"[]", b"", b'"text"', b"\xff\xfe", b"{not json}", b'{"body": "cut', b"null", b"{", b"\n \x00"]
    fine = [b' {"a": 1} ', envelope(1)]
    for raw in [*junk, *fine]:
        client.lpush("q", raw)
    held = store.claim(["q"], 100)
    assert [d.raw for d in held] == [*junk, *fine]
    for value in client.hgetall("unacked").values():
        payload, exchange, key = json.loads(value)
        assert isinstance(payload, dict)
        assert (exchange, key) == ("", "q")
    store.settle((), [Settlement(d.tag, "q", Settle.REQUEUE) for d in held[: len(junk)]])
    assert [d.raw for d in store.claim(["q"], 100)] == junk


def test_a_key_of_another_type_takes_nothing_down_with_it(store: RedisStore, client: redis.Redis) -> None:
    client.set("bad", "a string")
    store.post(posts(2))
    held = store.claim(["bad", "q"], 5)
    assert len(held) == 2
    client.set("q", "a string")
    with pytest.raises(BrokerError, match="'q' is not a list"):
        store.settle((), [Settlement(held[0].tag, "q", Settle.REQUEUE)])
    assert client.hlen("unacked") == 2
    client.delete("q")
    assert store.settle((), [Settlement(held[0].tag, "q", Settle.REQUEUE)]) == 0


def test_length_and_purge_see_all_priorities_and_only_what_is_ready(store: RedisStore) -> None:
    store.post([Post("q", envelope(p, priority=p), p) for p in range(10)])
    store.claim(["q"], 2)
    assert store.length("q") == 8
    assert store.purge("q") == 8
    assert store.length("q") == 0
    assert len(store.recover()) == 2


def test_every_key_stands_under_the_global_prefix(redis_url: str, client: redis.Redis) -> None:
    options = {"global_keyprefix": "team:"}
    store, other = open_store(redis_url, "w", options), open_store(redis_url, "x", options)
    store.post([Post("q", envelope(1)), Post("q", envelope(2), 6), *posts(3, start=3)])
    held = store.claim(["q"], 10)
    store.settle(
        [held[0].tag],
        [
            Settlement(held[1].tag, "q", Settle.REQUEUE),
            Settlement(held[2].tag, "q", Settle.DEAD),
            Settlement(held[3].tag, "q", Settle.DELAY, due=time.time() - 1),
        ],
    )
    assert len(other.claim(["q"], 10)) == 2
    assert other.renew([]) is True
    assert other.reclaim() == 0
    other.purge("q")
    assert len(client.keys("team:*")) == len(client.keys("*")) > 0
    store.close()
    other.close()


def test_a_flushed_script_cache_is_filled_again(store: RedisStore, client: redis.Redis) -> None:
    for step in range(3):
        store.post(posts(1))
        client.script_flush()
        (held,) = store.claim(["q"], 1)
        client.script_flush()
        assert store.wait(["q"], 0.01) is False
        client.script_flush()
        assert store.settle((), [Settlement(held.tag, "q", Settle.DEAD)]) == 0, step
        client.script_flush()
        assert store.renew([held.tag]) is True


def test_four_claimers_get_twenty_thousand_messages_exactly_once(redis_url: str, client: redis.Redis) -> None:
    total = 20_000
    seen: list[list[int]] = [[] for _ in range(4)]
    stores = [open_store(redis_url, f"w{n}", {}) for n in range(5)]
    for start in range(0, total, 1000):
        stores[4].post(posts(1000, "ab"[start // 1000 % 2], start))

    def consume(store: RedisStore, found: list[int]) -> None:
        while batch := store.claim(["a", "b"], 100):
            found.extend(number_of(d.raw) for d in batch)
            assert store.settle([d.tag for d in batch]) == 0

    threads = [threading.Thread(target=consume, args=pair) for pair in zip(stores, seen, strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for found in seen for n in found) == list(range(total))
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0
    for store in stores:
        store.close()


def test_a_store_needs_one_connection(redis_url: str, client: redis.Redis) -> None:
    before = {c["id"] for c in client.client_list()}
    store = open_store(redis_url, "w", {})
    store.post(posts(3))
    store.claim(["q"], 1)
    store.wait(["nothing"], 0.01)
    store.reclaim()
    assert len({c["id"] for c in client.client_list()} - before) == 1
    store.close()
    store.close()
    wait_for(lambda: {c["id"] for c in client.client_list()} <= before, 5, "the connection to end")


@pytest.mark.usefixtures("redis_url")
def test_a_unix_socket_url_of_kombus_kind_is_understood(redis_server: RedisServer) -> None:
    store = open_store(f"{redis_server.socket_url}?virtual_host=3", "w", {})
    store.post(posts(1))
    with redis.Redis(port=redis_server.port, db=3) as third:
        assert third.llen("q") == 1
        third.flushdb()
    store.close()


def test_an_old_server_is_refused_by_name_at_the_first_connect(redis_server: RedisServer) -> None:
    with RedisProxy(redis_server.port) as proxy, redis.Redis(port=redis_server.port) as client:
        version = client.info("server")["redis_version"].encode()
        proxy.rewrite = (version, b"6.0.16" + b" " * (len(version) - 6))
        store = open_store(proxy.url, "w", {})
        with pytest.raises(ConfigError, match=r"is 6\.0\.16; greenq needs 6\.2"):
            store.claim(["q"], 1)
        store.close()


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    store = open_store("redis://user:secret@127.0.0.1:1/0", "w", {})
    with pytest.raises(BrokerUnreachable, match=r"redis://127\.0\.0\.1:1/0") as caught:
        store.claim(["q"], 1)
    assert "secret" not in str(caught.value)
    store.close()


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("amqp://h", {}, "not a Redis URL"),
        ("redis://h/x", {}, "database is a number"),
        ("redis://h:port/0", {}, "port"),
        ("redis://h/0?sockettimeout=3", {}, "sockettimeout"),
        ("redis+socket://", {}, "has no path"),
        ("redis+socket:///s", {"ssl": True}, "no TLS"),
        ("rediss://h/0?ssl_cert_reqs=maybe", {}, "ssl_cert_reqs"),
        ("redis://h", {"lease": 0}, "lease must be above 0"),
        ("redis://h", {"visibility_timeout": "soon"}, "visibility_timeout"),
        ("redis://h", {"priority_steps": [3, 0]}, "must rise"),
        ("redis://h", {"queue_order_strategy": "random"}, "queue_order_strategy"),
    ],
)
def test_what_cannot_be_used_is_named(url: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_store(url, "w", options)


def test_the_certificate_is_checked_unless_told_otherwise() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("rediss://h", {}, "CERT_REQUIRED"),
        ("rediss://h?ssl_cert_reqs=none", {}, "CERT_NONE"),
        ("redis://h", {"ssl": {"ssl_cert_reqs": "optional"}}, "CERT_OPTIONAL"),
        ("redis://h", {"ssl": True}, "CERT_REQUIRED"),
    ]
    for url, options, wanted in cases:
        assert parse_endpoint(url, options).params["ssl_cert_reqs"].name == wanted


def test_a_whole_prefetch_goes_back_in_its_order(store: RedisStore, client: redis.Redis) -> None:
    store.post([Post("q", envelope(n)) for n in range(1200)])
    held = [d for _ in range(12) for d in store.claim(["q"], 100)]
    acks = [d.tag for d in held[1000:]]
    assert store.settle(acks, [Settlement(d.tag, "q", Settle.REQUEUE) for d in held[:1000]]) == 0
    again = [number_of(d.raw) for _ in range(10) for d in store.claim(["q"], 100)]
    assert again == list(range(1000))
    assert client.hlen("unacked") == 1000
