"""Publishing to a broker that is reached in batches: Redis and SQLite."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.broker.stores import open_store, store_options
from greenq.config import Settings
from greenq.exceptions import BrokerError, PublishUncertain
from greenq.model import TaskMessage
from greenq.transports.base import Post, Store
from greenq.wire.messages import to_envelope

T = TypeVar("T")
_NEVER: Mapping[str, float] = MappingProxyType({"max_retries": 0})


class BatchedPublisher:
    """One store behind a lock; whoever holds the lock owns the connection.

    A process forked later opens a store of its own: two processes on one socket would mix their replies.
    """

    def __init__(self, url: str, conf: Settings) -> None:
        self._url = url
        self._options = store_options(url, conf)
        # Celery's policy (wire.md 5.7): max_retries, interval_start, interval_step, interval_max.
        self._retry: Mapping[str, float] = conf.task_publish_retry_policy if conf.task_publish_retry else _NEVER
        self._routed = KombuPublisher(url, conf)
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._pid = 0
        self._tag = uuid.uuid4().hex[:20]
        self._sent = 0

    def publish(self, messages: Sequence[TaskMessage]) -> None:
        """See Publisher. What goes through an exchange takes kombu's way: the bindings say which lists it goes to."""
        routed = [message for message in messages if message.exchange]
        if routed:
            self._routed.publish(routed)
            messages = [message for message in messages if not message.exchange]
        if not messages:
            return
        with self._lock:
            posts = [self._post(message) for message in messages]
            try:
                self._trying(lambda store: store.post(posts))
            except PublishUncertain as error:
                task_id = messages[0].properties.get("correlation_id")
                raise PublishUncertain(f"{error} (first of {len(messages)}: {task_id})", task_id) from error

    def length(self, queue: str) -> int:
        """See Publisher."""
        with self._lock:
            return self._trying(lambda store: store.length(queue))

    def purge(self, queue: str) -> int:
        """See Publisher."""
        with self._lock:
            return self._trying(lambda store: store.purge(queue))

    def close(self) -> None:
        """See Publisher."""
        with self._lock:
            if self._store is not None and self._pid == os.getpid():
                self._store.close()
            self._store = None
        self._routed.close()

    def _post(self, message: TaskMessage) -> Post:
        self._sent += 1
        raw = to_envelope(message, f"{self._tag}-{self._sent}")
        return Post(message.routing_key, raw, message.properties.get("priority") or 0)

    def _trying(self, call: Callable[[Store], T]) -> T:
        """Call until it went well or the retries are used up; the same message again carries the same id."""
        policy = self._retry
        tries = 0
        uncertain: PublishUncertain | None = None
        while True:
            try:
                return call(self._open())
            except BrokerError as error:
                if isinstance(error, PublishUncertain):
                    uncertain = error
                tries += 1
                if tries > policy.get("max_retries", 3):
                    # Once a try may have reached the broker, a later one that did not changes nothing.
                    raise uncertain or error from error
                step = policy.get("interval_start", 0) + policy.get("interval_step", 0.2) * (tries - 1)
                time.sleep(min(step, policy.get("interval_max", 1.0)))

    def _open(self) -> Store:
        if self._store is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._store = open_store(self._url, f"producer-{uuid.uuid4().hex}", self._options)
        return self._store
