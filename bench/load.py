"""Fill a queue with many task messages made by Celery's own producer, quickly.

Celery sends a thousand messages a second or so; 50,000 would take most of a minute for every run. So its
producer makes a sample, and each message of the sample is copied with a fresh task id (header, root id and
correlation id) and a fresh delivery tag. Nothing else of the bytes changes.
"""

from __future__ import annotations

import base64
import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

import amqp
import kombu
import redis

QUEUE = "celery"
UNACKED = "unacked"  # kombu's hash of messages delivered and not acknowledged
_CHUNK = 1000


def copies(sample: list[bytes], count: int) -> Iterator[bytes]:
    """Yield `count` envelopes in the shape of the sample, each with its own ids."""
    cut: list[tuple[list[bytes], list[bytes]]] = []
    for raw in sample:
        envelope = json.loads(raw)
        tag = envelope["properties"]["delivery_tag"].encode()
        task_id = envelope["headers"]["id"].encode()
        head, tail = raw.split(tag)
        cut.append((head.split(task_id), tail.split(task_id)))
    for before, after in itertools.islice(itertools.cycle(cut), count):
        task_id = str(uuid.uuid4()).encode()
        yield task_id.join(before) + str(uuid.uuid4()).encode() + task_id.join(after)


def fill_redis(client: redis.Redis, sample: list[bytes], count: int, key: str = "stock") -> None:
    """Put `count` messages in the list `key`, the first sent at the tail, as kombu leaves them."""
    messages = copies(sample, count)
    while chunk := list(itertools.islice(messages, _CHUNK)):
        client.lpush(key, *chunk)


def fill_rabbitmq(url: str, sample: list[bytes], count: int) -> None:
    """Put `count` messages in the durable queue `celery`, declared as Celery declares it."""
    with kombu.Connection(url) as connection:
        channel: Any = connection.channel()
        kombu.Queue(QUEUE, kombu.Exchange(QUEUE, type="direct"), routing_key=QUEUE)(channel).declare()
        for raw in copies(sample, count):
            envelope = json.loads(raw)
            properties = envelope["properties"]
            channel.basic_publish(
                amqp.Message(
                    base64.b64decode(envelope["body"]),
                    content_type=envelope["content-type"],
                    content_encoding=envelope["content-encoding"],
                    application_headers=envelope["headers"],
                    correlation_id=properties["correlation_id"],
                    reply_to=properties["reply_to"],
                    delivery_mode=2,
                    priority=0,
                ),
                exchange="",
                routing_key=QUEUE,
            )
