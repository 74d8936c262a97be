"""The doorbell: waiting for work takes nothing, costs one connection, and ends when it should."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from greenq.exceptions import BrokerUnreachable
from greenq.transports.redis import RedisStore, open_store
from tests.support.processes import run
from tests.support.redis_proxy import RedisProxy, envelope, posts
from tests.support.services import RedisServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    found = open_store(redis_url, "w", {})
    yield found
    found.close()


def waited(store: RedisStore, timeout: float, queues: tuple[str, ...] = ("q",)) -> tuple[bool, float]:
    start = time.monotonic()
    found = store.wait(list(queues), timeout)
    return found, time.monotonic() - start


def after(delay: float, step: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(delay, step)
    timer.start()
    return timer


def test_a_wait_ends_with_the_message_and_takes_nothing(store: RedisStore, client: redis.Redis) -> None:
    timer = after(0.3, lambda: client.lpush("q", envelope(1)))
    found, elapsed = waited(store, 10)
    timer.join()
    assert found
    assert 0.2 < elapsed < 1
    assert client.llen("q") == 1
    assert client.hlen("unacked") == 0
    assert store.rings, "this server rings"


def test_every_priority_of_every_queue_rings(store: RedisStore, client: redis.Redis) -> None:
    for key in ("q", "q\x06\x169", "other", "other\x06\x163"):
        timer = after(0.05, partial(client.lpush, key, "x"))
        assert waited(store, 10, ("q", "other"))[0]
        timer.join()
        client.delete(key)


def test_a_wait_with_nothing_to_come_lasts_its_time(store: RedisStore) -> None:
    found, elapsed = waited(store, 0.3)
    assert not found
    assert 0.3 <= elapsed < 0.6


def test_what_is_there_already_needs_no_ring(store: RedisStore) -> None:
    store.post(posts(1))
    found, elapsed = waited(store, 10)
    assert found
    assert elapsed < 1


def test_a_message_between_look_and_wait_is_not_missed(store: RedisStore, client: redis.Redis) -> None:
    for number in range(200):
        thread = threading.Thread(target=lambda: client.lpush("q", "x"))
        thread.start()
        found, elapsed = waited(store, 10)
        thread.join()
        assert found, number
        assert elapsed < 5
        client.delete("q")


def test_an_interrupt_from_another_thread_ends_the_wait_at_once(store: RedisStore) -> None:
    timer = after(0.2, store.interrupt)
    found, elapsed = waited(store, 10)
    timer.join()
    assert not found
    assert 0.1 < elapsed < 1


def test_an_interrupt_before_the_wait_is_not_lost(store: RedisStore) -> None:
    store.interrupt()
    assert waited(store, 10)[1] < 1
    assert waited(store, 0.2)[1] >= 0.2, "it ends one wait, not all of them"


def test_a_wait_ends_when_the_broker_dies() -> None:
    with RedisServer() as server:
        store = open_store(server.url, "w", {})
        timer = after(0.3, server.kill)
        with pytest.raises(BrokerUnreachable):
            store.wait(["q"], 10)
        timer.join()
        store.close()


def test_a_wait_ends_when_its_connection_is_cut_and_the_next_one_rings(
    store: RedisStore, client: redis.Redis
) -> None:
    timer = after(0.3, lambda: client.client_kill_filter(_type="normal", skipme=True))
    with pytest.raises(BrokerUnreachable):
        store.wait(["q"], 10)
    timer.join()
    timer = after(0.2, lambda: client.lpush("q", "x"))
    assert waited(store, 10)[0]
    timer.join()


def test_an_idle_wait_sends_nothing(store: RedisStore, client: redis.Redis) -> None:
    store.wait(["q"], 0.01)
    before = client.info("stats")["total_commands_processed"]
    store.wait(["q"], 1.0)
    sent = client.info("stats")["total_commands_processed"] - before
    assert sent <= 10, "one look, however long the wait: CACHING, EVALSHA with what it runs, and this INFO"


def test_where_tracking_is_refused_looking_again_finds_the_message(
    redis_server: RedisServer, redis_url: str, client: redis.Redis
) -> None:
    client.acl_setuser("plain", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-client|tracking"])
    store = open_store(redis_url.replace("//", "//plain:pw@"), "w", {})
    timer = after(0.3, lambda: client.lpush("q", envelope(1)))
    found, elapsed = waited(store, 10)
    timer.join()
    assert found
    assert elapsed < 1
    assert not store.rings
    timer = after(0.2, store.interrupt)
    client.delete("q")
    assert waited(store, 10)[1] < 1
    timer.join()
    store.close()
    client.acl_deluser("plain")


@pytest.mark.usefixtures("redis_url")
def test_where_resp3_is_unknown_everything_but_the_bell_works(redis_server: RedisServer) -> None:
    with RedisProxy(redis_server.port) as proxy:
        proxy.rewrite_request = (b"HELLO", b"HOLLA")
        store = open_store(proxy.url, "w", {})
        store.post(posts(3))
        assert len(store.claim(["q"], 3)) == 3
        found, elapsed = waited(store, 0.2)
        assert not found
        assert 0.2 <= elapsed < 0.5
        assert not store.rings
        store.close()


GREEN = """
import sys, time
library, url = sys.argv[1:]
if library == "gevent":
    from gevent import monkey; monkey.patch_all()
    from gevent import spawn
else:
    import eventlet; eventlet.monkey_patch()
    from eventlet import spawn
from greenq.transports.redis import open_store
from greenq.transports.base import Post

ticks = []
def tick():
    while True:
        ticks.append(time.monotonic()); time.sleep(0.01)
spawn(tick)
store, sender = open_store(url, "w", {}), open_store(url, "p", {})

spawn(lambda: (time.sleep(0.3), sender.post([Post("q", b"{}")])))
start = time.monotonic()
assert store.wait(["q"], 10) is True
assert 0.2 < time.monotonic() - start < 1, time.monotonic() - start
assert len(ticks) > 15, "the hub stood still while the store waited"
assert len(store.claim(["q"], 5)) == 1

spawn(lambda: (time.sleep(0.3), store.interrupt()))
start = time.monotonic()
assert store.wait(["q"], 10) is False
assert 0.2 < time.monotonic() - start < 1

start = time.monotonic()
assert store.wait(["q"], 0.2) is False
assert 0.2 <= time.monotonic() - start < 0.6
assert store.rings
print("fine")
"""


@pytest.mark.alone
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_wait_yields_to_other_greenlets_and_ends_for_them(library: str, redis_url: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", GREEN, library, redis_url]
    done = run(argv, cwd=ROOT)
    assert done.stdout == "fine\n", done.stderr


THREAD = """
import sys, time
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.monkey import get_original
from greenq.transports.redis import open_store
store = open_store(sys.argv[1], "w", {})
gevent.spawn(lambda: (time.sleep(0.1), get_original("_thread", "start_new_thread")(nap_then_ring, ())))
def nap_then_ring():
    get_original("time", "sleep")(0.3)
    store.interrupt()
start = time.monotonic()
assert store.wait(["q"], 10) is False
assert 0.2 < time.monotonic() - start < 1.5
print("fine")
"""


def test_a_native_thread_can_end_a_wait_on_the_hub(redis_url: str) -> None:
    argv = [sys.executable, "-c", THREAD, redis_url]
    done = run(argv, cwd=ROOT)
    assert done.stdout == "fine\n", done.stderr
