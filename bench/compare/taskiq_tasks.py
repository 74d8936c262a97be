"""The no-op of the bench, for taskiq; BROKER names the Redis, COUNTER the file it counts in."""

from __future__ import annotations

import asyncio
import os

from taskiq_redis import RedisStreamBroker

from bench.compare.counter import Counter

broker = RedisStreamBroker(os.environ["BROKER"])
counter = Counter.from_env()


@broker.task
async def noop(number: int) -> None:
    """Count."""
    counter.add()


async def _send(count: int) -> None:
    await broker.startup()
    for number in range(count):
        await noop.kiq(number)
    await broker.shutdown()


def send(count: int) -> None:
    """Fill the stream."""
    asyncio.run(_send(count))
