"""Results as messages, from the worker to the queue named by `reply_to` (wire.md 6.4)."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import kombu
from kombu.serialization import registry

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.broker.links import open_link
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable, ResultError, ResultTimeout
from greenq.model import Record, TaskMessage
from greenq.transports.link import Link

logger = logging.getLogger(__name__)

KEPT = 10_000  # results nobody has asked for yet
GRACE = 300.0  # seconds the reply queue outlives its connection, for a client that reconnects

_AHEAD = 500  # unread results the broker may push; the rest stays in the queue
_LOOK = 1.0  # seconds the reader waits at a time; then it beats


class RpcResults:
    """Results over the broker.

    A process has one reply queue, `reply_to`. Of the callers that wait, one reads for all; when it has its
    own result another takes over. What arrives out of order is kept, the newest `KEPT` of it.
    """

    name = "rpc"
    persistent = False

    def __init__(self, url: str, conf: Settings) -> None:
        self._url = url
        self._conf = conf
        self._publisher = KombuPublisher(url, conf)
        serializer = registry.name_to_type.get(conf.result_serializer, conf.result_serializer)
        self._content = (serializer, "utf-8" if conf.result_serializer in {"json", "yaml"} else "binary")
        self._forget_all()
        forget = weakref.WeakMethod(self._forget_all)

        def in_child() -> None:
            method = forget()
            if method is not None:
                method()

        os.register_at_fork(after_in_child=in_child)

    def _forget_all(self) -> None:
        self.reply_to = str(uuid.uuid4())  # a queue of this process: a forked child must not read its parent's
        self._changed = threading.Condition()
        self._reading = False
        self._link: Link | None = None
        self._arrived: OrderedDict[str, bytes] = OrderedDict()

    def store(self, records: Sequence[Record]) -> None:
        """See ResultStore. Nothing is sent for a task whose sender asked for no answer."""
        mode = 2 if self._conf.result_persistent else 1
        content_type, content_encoding = self._content
        messages = [
            TaskMessage(
                headers={},
                body=record.payload,
                content_type=content_type,
                content_encoding=content_encoding,
                properties={"correlation_id": record.task_id, "delivery_mode": mode},
                exchange="",
                routing_key=record.reply_to,
            )
            for record in records
            if record.reply_to
        ]
        try:
            self._publisher.reply(messages)
        except BrokerError as exc:
            raise ResultError(f"results were not sent: {exc}") from exc

    def expect(self, task_ids: Sequence[str]) -> None:
        """See ResultStore. Declares the reply queue and consumes from it, which keeps it alive."""
        with self._changed:
            if self._link is not None or self._reading:
                return
            self._reading = True
        try:
            self._connect()
        except BrokerError as exc:
            raise ResultError(f"no reply queue: {exc}") from exc
        finally:
            self._stop_reading()

    def read(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """See ResultStore. Reads what has arrived; never waits for more."""
        if self._begin_reading():
            try:
                self._receive(0.0)
            finally:
                self._stop_reading()
        with self._changed:
            return [self._arrived.get(task_id) for task_id in task_ids]

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        """See ResultStore. The result is handed out once, and forgotten here."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                payload = self._arrived.get(task_id)
                if payload is not None and ready(payload):
                    del self._arrived[task_id]
                    return payload
                left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
                if left < 0:
                    raise ResultTimeout(f"no result of task {task_id} after {timeout} s")
                if self._reading:
                    self._changed.wait(left)
                    continue
                self._reading = True
            try:
                self._receive(left)
            finally:
                self._stop_reading()

    def _begin_reading(self) -> bool:
        with self._changed:
            if self._reading:
                return False
            self._reading = True
            return True

    def _stop_reading(self) -> None:
        with self._changed:
            self._reading = False
            self._changed.notify_all()

    def _receive(self, timeout: float) -> None:
        """Read for everybody; only by who has set `_reading`. A lost connection is made again meanwhile."""
        try:
            link = self._link or self._connect()
            link.wait(timeout)
            arrivals = link.take(_AHEAD)
            link.ack([arrival.tag for arrival in arrivals])
        except BrokerUnreachable as exc:
            logger.warning("Results are not read: %s", exc)
            self._disconnect()
            time.sleep(timeout / 4)  # the caller tries again until its own time is up
            return
        with self._changed:
            for arrival in arrivals:
                self._keep(link, arrival)

    def _keep(self, link: Link, arrival: Any) -> None:
        body = arrival.body if isinstance(arrival.body, bytes) else arrival.body.encode()
        try:
            task_id = link.parts(arrival).properties.get("correlation_id")
            task_id = task_id or json.loads(body)["task_id"]
        except (ValueError, KeyError, TypeError):
            logger.warning("A message in the reply queue %s is no result; it is dropped.", self.reply_to)
            return
        self._arrived[str(task_id)] = body
        self._arrived.move_to_end(str(task_id))
        if len(self._arrived) > KEPT:
            lost, _ = self._arrived.popitem(last=False)
            logger.warning("More than %d results wait to be read; that of task %s is dropped.", KEPT, lost)

    def _connect(self) -> Link:
        link = open_link(self._url, self._conf, "greenq results")
        try:
            # Not auto-delete, as Celery's: a connection lost for a moment would take all results along. It
            # expires instead, soon, because nobody else knows its name.
            link.declare(
                kombu.Queue(self.reply_to, kombu.Exchange(""), self.reply_to, durable=True, expires=self._lifetime())
            )
            link.prefetch(_AHEAD)
            link.consume(self.reply_to, {})
        except BaseException:
            with suppress(BrokerError):
                link.close()
            raise
        self._link = link
        return link

    def _lifetime(self) -> float:
        return min(GRACE, self._conf.result_expires or GRACE)

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            with suppress(BrokerError):
                link.close()

    def forget(self, task_id: str) -> None:
        """See ResultStore. Forgets what has arrived; a result still on its way is kept when it comes."""
        with self._changed:
            self._arrived.pop(task_id, None)

    def close(self) -> None:
        """See ResultStore."""
        if self._begin_reading():
            try:
                self._disconnect()
            finally:
                self._stop_reading()
        self._publisher.close()
