"""The Redis store when something breaks: replies lost, servers killed, full or read-only, owners dead."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable
from greenq.model import Settle, Settlement
from greenq.transports.redis import RedisStore, open_store
from tests.support.redis_proxy import RedisProxy, envelope, items, number_of, posts, without_marks
from tests.support.services import RedisServer, wait_for

Open = Callable[..., RedisStore]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def opened(redis_url: str) -> Iterator[Open]:
    made: list[RedisStore] = []

    def make(owner: str, url: str = redis_url, **options: object) -> RedisStore:
        made.append(open_store(url, owner, options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(redis_server.port) as found:
        yield found


def test_a_lost_reply_strands_nothing(opened: Open, proxy: RedisProxy, client: redis.Redis) -> None:
    store = opened("w", proxy.url)
    store.post(posts(20))
    got: list[int] = []
    tags: list[str] = []
    for _ in range(5):
        store.claim([], 1)
        proxy.swallow(b"EVALSHA")
        with pytest.raises(BrokerUnreachable):
            store.claim(["q"], 2)
        batch = store.claim(["q"], 2)
        got += [number_of(d.raw) for d in batch]
        tags += [d.tag for d in batch]
        assert all(d.queue == "q" for d in batch)
    assert proxy.swallowed == 5
    assert got == list(range(10)), "what Redis had handed out is handed on first"
    assert sorted(tags) == store.recover()
    assert store.settle(tags) == 0
    assert [number_of(d.raw) for d in store.claim(["q"], 100)] == list(range(10, 20))
    assert client.hlen("unacked") == 10


def test_a_lost_reply_gives_no_more_at_once_than_is_asked_for(opened: Open, proxy: RedisProxy) -> None:
    store = opened("w", proxy.url)
    store.post(posts(20))
    store.length("q")
    proxy.swallow(b"EVALSHA")
    with pytest.raises(BrokerUnreachable):
        store.claim(["q"], 10)
    assert store.wait(["q"], 5) is True
    sizes = [len(store.claim(["q"], 4)) for _ in range(3)]
    assert sizes == [4, 4, 2]


def test_a_claim_that_arrives_after_its_reply_was_given_up_takes_nothing(
    opened: Open, proxy: RedisProxy, client: redis.Redis
) -> None:
    store = opened("w", proxy.url)
    store.post(posts(3))
    store.claim(["other"], 1)
    proxy.hold(b"EVALSHA")
    with pytest.raises(BrokerUnreachable):
        store.claim(["q"], 2)
    assert [number_of(d.raw) for d in store.claim(["q"], 1)] == [0]
    assert b"CLOSED" in proxy.release()
    assert client.hlen("unacked") == 1
    assert store.length("q") == 2


def test_an_ack_whose_reply_was_lost_does_not_count_as_somebody_elses(opened: Open, proxy: RedisProxy) -> None:
    store = opened("w", proxy.url)
    store.post(posts(3))
    tags = [d.tag for d in store.claim(["q"], 3)]
    proxy.swallow(b"HDEL")
    with pytest.raises(BrokerUnreachable):
        store.settle(tags[:2])
    assert store.settle([*tags, "w/0-0"]) == 1
    assert store.recover() == []


def test_a_requeue_whose_reply_was_lost_is_not_done_twice(opened: Open, proxy: RedisProxy) -> None:
    store = opened("w", proxy.url)
    store.post(posts(1))
    (held,) = store.claim(["q"], 1)
    store.settle((), [Settlement("w/0-0", "q", Settle.REQUEUE)])
    proxy.swallow(b"requeue")
    again = [Settlement(held.tag, "q", Settle.REQUEUE)]
    with pytest.raises(BrokerUnreachable):
        store.settle((), again)
    assert store.settle((), again) == 0
    assert store.length("q") == 1


def test_a_killed_redis_loses_nothing_that_was_acknowledged_to_the_client() -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        store = open_store(server.url, "w", {})
        posted: list[int] = []
        done: list[int] = []
        stop = threading.Event()

        def produce() -> None:
            sender = open_store(server.url, "p", {})
            number = 0
            while not stop.is_set():
                with suppress(BrokerError):
                    sender.post(posts(1, start=number))
                    posted.append(number)
                number += 1
                stop.wait(0.001)
            sender.close()

        def consume_until(enough: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 20
            while not enough() and time.monotonic() < deadline:
                with suppress(BrokerError):
                    batch = store.claim(["q"], 10)
                    tags = [d.tag for d in batch]
                    numbers = [number_of(d.raw) for d in batch]
                    while tags:
                        with suppress(BrokerError):
                            store.settle(tags)
                            done.extend(numbers)
                            tags = []
                    store.wait(["q"], 0.05)
            assert enough()

        def consume_more(count: int) -> None:
            until = len(done) + count
            consume_until(lambda: len(done) >= until)

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            for round_number in range(3):
                consume_more(30)
                server.kill()
                with pytest.raises(BrokerUnreachable):
                    for _ in range(3):
                        store.claim(["q"], 10)
                server.start()
                consume_more(30)
                assert store.recover() == [], round_number
        finally:
            stop.set()
            thread.join()
        # Also what a post that raised has put there may be done; nothing that it reported may be missing.
        consume_until(lambda: set(posted) <= set(done))
        assert len(done) == len(set(done)), "claimed once is done once: the claim outlived the crash"
        store.close()


def test_a_full_redis_pauses_the_claim_before_anything_is_taken() -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        store = open_store(server.url, "w", {"lease": 1})
        store.post(posts(10))
        held = store.claim(["q"], 4)
        client.config_set("maxmemory", "1mb")
        with pytest.raises(BrokerPaused, match="cannot serve"):
            store.claim(["q"], 5)
        assert client.llen("q") == 6
        assert client.hlen("unacked") == 4
        # What frees memory or keeps what is held goes on, or a full Redis could never be emptied.
        assert store.renew([d.tag for d in held]) is True
        assert store.settle([held[0].tag], [Settlement(held[1].tag, "q", Settle.REQUEUE)]) == 0
        assert client.llen("q") == 7
        with pytest.raises(BrokerPaused):
            store.post(posts(1))
        client.config_set("maxmemory", "0")
        assert len(store.claim(["q"], 10)) == 7
        store.close()


def test_a_live_owner_outlives_a_full_redis() -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        alive, other = open_store(server.url, "w", {"lease": 0.5}), open_store(server.url, "x", {"lease": 0.5})
        alive.post(posts(3))
        tags = [d.tag for d in alive.claim(["q"], 3)]
        client.config_set("maxmemory", "1mb")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert alive.renew(tags) is True
            assert other.reclaim() == 0
            time.sleep(0.05)
        assert sorted(tags) == alive.recover()
        alive.close()
        other.close()


def test_a_read_only_redis_is_a_pause_and_then_goes_on(redis_server: RedisServer, opened: Open) -> None:
    store = opened("w")
    store.post(posts(3))
    with redis.Redis(port=redis_server.port) as client:
        held = store.claim(["q"], 1)
        client.replicaof("127.0.0.1", 1)
        try:
            for step in (
                lambda: store.claim(["q"], 1),
                lambda: store.settle([held[0].tag]),
                lambda: store.post(posts(1)),
                lambda: store.renew([]),
            ):
                with pytest.raises(BrokerPaused):
                    step()
        finally:
            client.replicaof("NO", "ONE")
        assert store.settle([held[0].tag]) == 0
        assert [number_of(d.raw) for d in store.claim(["q"], 5)] == [1, 2]


def test_a_loading_redis_is_a_pause() -> None:
    with RedisServer(appendonly="yes", loading_process_events_interval_bytes="1024") as server:
        with redis.Redis(port=server.port) as client:
            filler = client.pipeline(transaction=False)
            for number in range(10_000):
                filler.set(f"filler{number}", "x")
            filler.execute()
        server.kill()
        server.options["key_load_delay"] = "200"  # microseconds a command: two seconds of loading
        assert server._process is not None
        server._process.argv = server._argv("redis-server", server.port)
        server._process.start()
        store = open_store(server.url, "w", {})

        def loading() -> bool:
            try:
                store.claim(["q"], 1)
            except BrokerUnreachable:
                return False
            except BrokerPaused as exc:
                return "loading" in str(exc).lower()
            raise AssertionError("it served at once: nothing was tested")

        wait_for(loading, 10, "LOADING")
        store.close()


def test_another_owners_death_is_noticed_by_its_lease_and_a_live_one_is_untouched(
    opened: Open, client: redis.Redis
) -> None:
    dead, alive, other = (opened(name, lease=0.6) for name in ("w", "w-live", "x"))
    dead.post(posts(120))
    lost = dead.claim(["q"], 70)
    kept = [d.tag for d in alive.claim(["q"], 50)]
    started = time.monotonic()

    def reclaimed() -> int:
        assert alive.renew(kept) is True
        return other.reclaim()

    counts = [wait_for(reclaimed, 5, "the dead owner's messages")]
    assert 0.5 < time.monotonic() - started < 2
    assert counts == [70]
    assert alive.recover() == sorted(kept)
    assert dead.recover() == []
    assert client.hlen("unacked") == client.zcard("unacked_index") == 50
    again = other.claim(["q"], 70)
    assert [number_of(d.raw) for d in again] == list(range(70))
    assert [without_marks(d.raw) for d in again] == [json.loads(d.raw) for d in lost]
    assert json.loads(again[0].raw)["headers"]["redelivered"] is True


def test_an_owner_given_up_for_dead_is_told_once_and_may_not_ack(opened: Open) -> None:
    slow, other = opened("slow", lease=0.3), opened("x", lease=0.3)
    slow.post(posts(1))
    (held,) = slow.claim(["q"], 1)
    wait_for(other.reclaim, 5, "the reclaim")
    (again,) = other.claim(["q"], 1)
    assert slow.claim(["q"], 1) == []
    assert slow.renew([held.tag]) is False
    assert slow.renew([held.tag]) is True
    assert slow.settle([held.tag]) == 1
    assert other.settle([again.tag]) == 0


def test_many_reclaimers_at_once_give_each_message_back_once(opened: Open, client: redis.Redis) -> None:
    dead = opened("dead", lease=0.2)
    dead.post(posts(500))
    while dead.claim(["q"], 100):
        pass
    helpers = [opened(f"h{n}", lease=0.2) for n in range(4)]
    counts: list[int] = []
    time.sleep(0.3)
    threads = [threading.Thread(target=lambda h=h: counts.append(h.reclaim())) for h in helpers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 500
    assert sorted(map(number_of, items(client, "q"))) == list(range(500))


def test_after_trouble_nobody_is_given_up_before_others_can_renew(opened: Open, proxy: RedisProxy) -> None:
    alive, other = opened("alive", lease=1), opened("other", proxy.url, lease=1)
    alive.post(posts(1))
    alive.claim(["q"], 1)
    other.length("q")
    proxy.swallow(b"LLEN")
    with pytest.raises(BrokerUnreachable):
        other.length("q")
    time.sleep(1.05 - 0.5)
    proxy.swallow(b"LLEN")
    with pytest.raises(BrokerUnreachable):
        other.length("q")
    time.sleep(0.45)
    assert other.reclaim() == 0
    assert alive.recover() != []
    assert wait_for(other.reclaim, 3, "the grace to end") == 1


def test_the_clients_clock_does_not_matter(
    opened: Open, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, other = opened("ahead"), opened("other", visibility_timeout=10)
    real = time.time
    for skew in (-7200.0, 7200.0):
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        ahead.post(posts(2))
        tags = [d.tag for d in ahead.claim(["q"], 2)]
        assert ahead.renew(tags) is True
        assert other.reclaim() == 0
        assert ahead.recover() == sorted(tags)
        score = client.zscore("unacked_index", tags[0])
        assert score is not None
        assert abs(score - real()) < 30
        assert ahead.settle(tags) == 0


def test_half_an_entry_is_swept_away_and_an_unreadable_one_is_kept_aside(opened: Open, client: redis.Redis) -> None:
    client.zadd("unacked_index", {"ghost": 1, "broken": 1})
    client.hset("unacked", "broken", b"not json at all")
    assert opened("w").reclaim() == 1
    assert client.keys("unacked*") == []
    assert client.lrange("greenq.dead", 0, -1) == [b"not json at all"]


def test_a_message_that_cannot_go_back_does_not_keep_the_others_from_it(opened: Open, client: redis.Redis) -> None:
    dead = opened("dead", lease=0.2)
    dead.post([*posts(3, "bad"), *posts(60, "q")])
    dead.claim(["bad", "q"], 63)
    client.set("bad", "a string")
    time.sleep(0.3)
    other = opened("x", lease=0.2)
    assert other.reclaim() == 60
    assert other.reclaim() == 0
    assert client.hlen("unacked") == 3
    client.delete("bad")
    assert other.reclaim() == 3


def test_a_broken_frame_among_the_delayed_stops_nobody(opened: Open, client: redis.Redis) -> None:
    client.zadd("greenq.delayed", {b"nonsense": 1, b"5 4 abcdq\x00rest": 2})
    store = opened("w")
    store.post(posts(1))
    assert [number_of(d.raw) for d in store.claim(["q"], 5)] == [0]
    assert b"nonsense" in client.lrange("greenq.delayed.dead", 0, -1)


def test_envelopes_with_hostile_content_survive_a_reclaim(opened: Open, client: redis.Redis) -> None:
    deep = b'{"body": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    hostile = [deep, b"\xff\x00", b'{"headers": 5, "properties": {"priority": "x", "delivery_info": []}}', b"[]"]
    for raw in hostile:
        client.lpush("q", raw)
    dead = opened("dead", lease=0.2)
    assert len(dead.claim(["q"], 10)) == 4
    time.sleep(0.3)
    other = opened("x", lease=0.2)
    assert other.reclaim() == 4
    again = [d.raw for d in other.claim(["q"], 10)]
    assert again == hostile
    assert envelope(1) not in again


def test_an_owners_own_lease_counts_not_the_reclaimers(opened: Open) -> None:
    patient, hasty = opened("patient", lease=5), opened("hasty", lease=0.2)
    patient.post(posts(2))
    tags = [d.tag for d in patient.claim(["q"], 2)]
    time.sleep(0.5)
    assert hasty.reclaim() == 0
    assert patient.recover() == sorted(tags)
    assert patient.renew(tags) is True


def test_a_holder_that_renews_while_it_is_being_reclaimed_keeps_its_messages(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, other = (opened(name, visibility_timeout=0.3) for name in ("holder", "other"))
    holder.post(posts(2))
    tags = [d.tag for d in holder.claim(["q"], 2)]
    time.sleep(0.4)
    look = other._reclaimer._items

    def renew_meanwhile(rows: list[bytes]) -> object:
        assert len(rows) == 6, "both were seen as stale"
        holder.renew(tags)
        return look(rows)

    monkeypatch.setattr(other._reclaimer, "_items", renew_meanwhile)
    assert other.reclaim() == 0
    assert holder.settle(tags) == 0
