"""Brokers that die, stall, lose replies or are not there: a pause and no loss, under a real worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos.conftest import Scene
from tests.support.node import Node
from tests.support.processes import free_port, wait_for
from tests.support.redis_proxy import RedisProxy
from tests.support.services import RabbitServer, RedisServer

BACK = 6.0  # seconds after the broker answers until tasks start again


@pytest.fixture
def durable_redis() -> Iterator[RedisServer]:
    """A server of the test's own that keeps every write over a kill."""
    with RedisServer(appendonly="yes", appendfsync="always", enable_debug_command="local") as server:
        yield server


@pytest.fixture
def own_rabbit() -> Iterator[RabbitServer]:
    """A node of the test's own."""
    with RabbitServer() as server:
        yield server


def errors(node: Node) -> list[str]:
    """Lines of defects; that a broker is lost is a warning."""
    return [line for line in node.output().splitlines() if ": ERROR" in line and "could not be written" not in line]


def cycle(scene: Scene, server: RedisServer, away: float, count: int, seconds: float) -> None:
    """One death of the server with its tasks running, and what must hold after it."""
    first = len(scene.ledger.starts())
    names = scene.send_naps(count, seconds, start=first)
    wait_for(lambda: len(scene.ledger.running()) >= 10, 10, "running tasks")
    server.kill()
    time.sleep(away)
    server.start()
    began = time.monotonic()
    before = len(scene.ledger.starts())
    wait_for(lambda: len(scene.ledger.starts()) > before, BACK, "the next task to start")
    assert time.monotonic() - began < BACK
    wait_for(lambda: not scene.ledger.check(names).lost, 30, lambda: str(scene.ledger.check(names)))
    check = scene.ledger.check(names)
    assert not check.restarted, check


@pytest.mark.parametrize("cycles", [1, pytest.param(3, marks=pytest.mark.chaos)])
def test_a_redis_killed_under_load_loses_and_repeats_nothing(
    durable_redis: RedisServer, make_scene: Callable[..., Scene], cycles: int
) -> None:
    scene = make_scene(durable_redis.url)
    node = scene.worker(concurrency=10)
    pid = node.pid
    for _ in range(cycles):
        cycle(scene, durable_redis, away=3.0, count=40, seconds=2.0)
    assert node.running and node.pid == pid
    with redis.Redis.from_url(durable_redis.url) as client:
        wait_for(lambda: not client.hlen("unacked"), 10, "every settlement")
    assert not errors(node)
    lines = [line for line in node.output().splitlines() if "WARNING" in line or "ERROR" in line]
    assert len(lines) < 12 * cycles, "\n".join(lines)
    node.term()
    assert node.wait(10) == 0


def test_killed_clients_and_a_stalled_redis_lose_and_repeat_nothing(
    durable_redis: RedisServer, make_scene: Callable[..., Scene]
) -> None:
    scene = make_scene(durable_redis.url)
    node = scene.worker(concurrency=10)
    names = scene.send_naps(300, 0.2)
    with redis.Redis.from_url(durable_redis.url) as client:
        for _ in range(10):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            time.sleep(0.15)
        client.execute_command("DEBUG", "SLEEP", "2")
    wait_for(lambda: not scene.ledger.check(names).lost, 30, lambda: str(scene.ledger.check(names)))
    check = scene.ledger.check(names)
    assert not check.restarted, check
    assert not errors(node)
    wait_for(lambda: scene.app.control.ping(timeout=1.0), 10, "an answer to a ping")


@pytest.mark.chaos
def test_a_redis_that_stops_for_ten_seconds_is_waited_for(
    durable_redis: RedisServer, make_scene: Callable[..., Scene]
) -> None:
    scene = make_scene(durable_redis.url)
    node = scene.worker(concurrency=10)
    names = scene.send_naps(60, 1.0)
    wait_for(lambda: len(scene.ledger.running()) == 10, 10, "running tasks")
    os.kill(durable_redis.pid, signal.SIGSTOP)
    time.sleep(10)
    os.kill(durable_redis.pid, signal.SIGCONT)
    wait_for(lambda: not scene.ledger.check(names).lost, 30, lambda: str(scene.ledger.check(names)))
    assert not scene.ledger.check(names).restarted
    assert not errors(node)


@pytest.mark.parametrize("pool", ["gevent", "solo"])
def test_a_claim_whose_reply_is_lost_is_done(
    redis_server: RedisServer, redis_url: str, make_scene: Callable[..., Scene], pool: str
) -> None:
    with RedisProxy(redis_server.port) as proxy:
        scene = make_scene(redis_url)
        node = scene.worker(pool=pool, concurrency=5 if pool == "gevent" else 1, env={"GREENQ_BROKER_URL": proxy.url})
        names: list[str] = []
        for _ in range(5):
            proxy.swallow(b"EVALSHA")
            names += scene.send_naps(4, 0.02, start=len(names))
            time.sleep(0.3)
        assert proxy.swallowed >= 3
        wait_for(lambda: not scene.ledger.check(names).lost, 30, lambda: node.output()[-3000:])
        assert not scene.ledger.check(names).restarted
        assert scene.length() == 0


@pytest.mark.parametrize("way", [pytest.param("kill", marks=pytest.mark.chaos), "cut"])
def test_a_rabbitmq_lost_with_a_full_pool_neither_wedges_nor_repeats(
    own_rabbit: RabbitServer, make_scene: Callable[..., Scene], way: str
) -> None:
    scene = make_scene(own_rabbit.url)
    node = scene.worker(concurrency=10)
    names = scene.send_naps(60, 2.0)
    wait_for(lambda: len(scene.ledger.running()) == 10, 10, "a full pool")
    for _ in range(1 if way == "kill" else 2):
        if way == "kill":
            own_rabbit.kill()
            own_rabbit.start()
        else:
            own_rabbit.ctl("close_all_connections", "test")
    wait_for(lambda: not scene.ledger.check(names).lost, 40, lambda: str(scene.ledger.check(names)))
    assert not scene.ledger.check(names).restarted, node.output()
    assert not errors(node)
    wait_for(lambda: not scene.length(), 10, "an empty queue")
    node.term()
    assert node.wait(10) == 0


def test_a_broker_that_comes_late_is_waited_for_with_few_words(make_scene: Callable[..., Scene]) -> None:
    with RedisServer() as server:
        server.shutdown()
        scene = make_scene(server.url)
        node = scene.started_worker(concurrency=5)
        time.sleep(11)
        assert node.running
        lines = [line for line in node.output().splitlines() if "] broker:" in line]
        assert 1 <= len(lines) <= 2, node.output()
        server.start()
        node.wait_ready(8)
        assert scene.send("add", 1, 1).get(timeout=10) == 2


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT], [signal.SIGQUIT]])
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_stop_while_the_broker_was_never_there_is_prompt(
    make_scene: Callable[..., Scene], tmp_path: Path, kind: str, signals: list[int]
) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0" if kind == "redis" else f"amqp://guest:guest@127.0.0.1:{port}//"
    node = make_scene(url, f"sqlite:///{tmp_path}/r.db").started_worker(concurrency=5)
    node.wait_output("broker:", 10)
    for number in signals:
        node.signal(number)
        time.sleep(0.05)  # two Ctrl-C, as fast as a hand goes
    assert node.wait(12) == (1 if signals[0] == signal.SIGINT else 0), node.output()
    assert not errors(node)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGQUIT, marks=pytest.mark.chaos)])
def test_a_stop_while_the_broker_is_away_is_bounded(
    durable_redis: RedisServer, make_scene: Callable[..., Scene], number: int
) -> None:
    scene = make_scene(durable_redis.url)
    node = scene.worker(concurrency=5)
    names = scene.send_naps(20, 1.0)
    wait_for(lambda: len(scene.ledger.running()) == 5, 10, "running tasks")
    durable_redis.kill()
    node.signal(number)
    code = node.wait(16)
    assert not errors(node)
    durable_redis.start()
    scene.worker(name="second", concurrency=20)
    wait_for(lambda: not scene.ledger.check(names).lost, 35, lambda: str(scene.ledger.check(names)))
    assert code in {0, 1}


def test_results_that_cannot_be_stored_wait_and_lose_nothing(
    durable_redis: RedisServer, redis_url: str, make_scene: Callable[..., Scene]
) -> None:
    scene = make_scene(redis_url, durable_redis.url)
    node = scene.worker(concurrency=50)
    durable_redis.kill()
    sent = [scene.send("nap", str(number), 0.05) for number in range(200)]
    wait_for(lambda: len(scene.ledger.dones()) == 200, 15, lambda: node.output()[-3000:])
    durable_redis.start()
    for number, each in enumerate(sent):
        assert each.get(timeout=15) == str(number)
    assert not scene.ledger.check(map(str, range(200))).restarted
    assert not errors(node)
    node.term()
    assert node.wait(10) == 0
    assert not scene.length()
