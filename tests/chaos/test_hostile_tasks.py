"""Whatever user code does, the worker lives: a failure is stored, the slot is free, nothing runs twice."""

from __future__ import annotations

import time

import pytest
import redis

from tests.chaos.conftest import Scene
from tests.support.processes import wait_for

POOLS = ("gevent", "solo")
RAISING = (
    "system_exit keyboard_interrupt base_exception generator_exit greenlet_exit memory_error recursion unprintable "
    "leaving meddling exception_group returns_rubbish returns_unserialisable returns_a_lock returns_itself "
    "returns_deep returns_surrogates"
).split()
GREEN = "own_greenlet_killed own_greenlet_thrown gevent_timeout".split()


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def size(pool: str, wanted: int = 2) -> int:
    return wanted if pool == "gevent" else 1


def test_each_way_to_misbehave_is_a_stored_failure(redis_scene: Scene, pool: str) -> None:
    node = redis_scene.worker(pool=pool, concurrency=size(pool))
    pid = node.pid
    for how in RAISING + (GREEN if pool == "gevent" else []):
        sent = redis_scene.send("misbehave", how)
        wait_for(
            lambda: sent.state == "FAILURE", 10, lambda: f"{how}: {sent.state}\n{node.output()[-3000:]}"
        )
    for number in range(10):
        assert redis_scene.send("add", number, 1).get(timeout=10) == number + 1
    assert node.running and node.pid == pid
    assert "inside the worker" not in node.output()
    with redis.Redis.from_url(redis_scene.url) as client:
        wait_for(lambda: not client.hlen("unacked"), 5, "every settlement")
    assert not redis_scene.length()
