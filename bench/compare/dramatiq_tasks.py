"""The no-op of the bench, for dramatiq; BROKER names the Redis, COUNTER the file it counts in."""

from __future__ import annotations

import os

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from bench.compare.counter import Counter

# redis-py caps a pool at 100 connections; with 500 workers dramatiq would wait for them most of the time.
pool = redis.ConnectionPool.from_url(os.environ["BROKER"], max_connections=6000)
dramatiq.set_broker(RedisBroker(client=redis.Redis(connection_pool=pool)))
counter = Counter.from_env()


@dramatiq.actor
def noop(number: int) -> None:
    """Count."""
    counter.add()


def send(count: int) -> None:
    """Fill the queue."""
    for number in range(count):
        noop.send(number)
