"""Publishing where there is no batched store: to RabbitMQ with confirms, through kombu to anything else."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from greenq.broker.links import open_sender
from greenq.broker.topology import Declarations, declare
from greenq.config import Settings
from greenq.exceptions import (
    BrokerPaused,
    BrokerUnreachable,
    ConfigError,
    GreenqError,
    MessageError,
    PublishUncertain,
)
from greenq.model import TaskMessage
from greenq.transports.link import Receipt, Sender

T = TypeVar("T")

TIMEOUT = 10.0  # seconds for the broker to confirm a batch, or to come out of an alarm

_REMEMBERED = 10_000  # queues known to be declared; a few more declarations are cheaper than a leak
_OPEN = frozenset({"fanout", "topic", "headers"})  # exchanges to which nobody need listen


class _Job:
    """What one caller wants published, and what became of it."""

    def __init__(self, messages: Sequence[TaskMessage], queue: Any, *, mandatory: bool) -> None:
        self.messages = messages
        self.queue = queue  # where all of them go, or None to look it up
        self.mandatory = mandatory
        self.error: Exception | None = None
        self.done = False


class KombuPublisher:
    """One connection for all callers of a process.

    Callers that meet share a batch: one of them writes for all and waits for all the confirms, so that a
    thousand greenlets publishing one message each wait for a few round trips and not for a thousand.
    After a fork the child leaves the connection to its parent and makes its own.
    """

    def __init__(self, url: str, conf: Settings) -> None:
        self._url = url
        self._conf = conf
        self._declarations = Declarations(conf)
        self._forget()
        forget = weakref.WeakMethod(self._forget)

        def in_child() -> None:
            method = forget()
            if method is not None:
                method()

        os.register_at_fork(after_in_child=in_child)

    def _forget(self) -> None:
        """Start without a connection. An inherited one is not closed: to the broker it is the parent's."""
        self._turn = threading.Lock()  # held by the caller that writes
        self._jobs: deque[_Job] = deque()
        self._sender: Sender | None = None
        self._declared: set[str] = set()

    def publish(self, messages: Sequence[TaskMessage]) -> None:
        """See Publisher. Queues are declared before their first message, as Celery does (wire.md 5.7).

        Raises:
            BrokerUnreachable: nothing was sent, after the retries of `task_publish_retry_policy`.
            BrokerPaused: the broker takes nothing now, or refused a message.
            PublishUncertain: cut short; it names the first message that may or may not be in the broker, and
                all before it are there.
            MalformedMessage: a header that AMQP cannot carry; nothing was sent.
            ConfigError: no such exchange, or a queue that exists with other arguments; nothing was sent.
        """
        self._run(_Job(messages, None, mandatory=True))

    def publish_to(self, queue: Any, messages: Sequence[TaskMessage]) -> None:
        """Publish to one queue that no setting knows; a kombu.Queue, declared before the first message."""
        self._run(_Job(messages, queue, mandatory=True))

    def reply(self, messages: Sequence[TaskMessage]) -> None:
        """Publish to queues that others have declared. One that is gone, with whoever asked, is no error."""
        self._run(_Job(messages, None, mandatory=False))

    def _run(self, job: _Job) -> None:
        if not job.messages:
            return
        self._jobs.append(job)
        with self._turn:
            if not job.done:
                self._serve()
        if job.error is not None:
            raise job.error

    def _serve(self) -> None:
        """Publish what all callers want that have come so far; each finds its answer in its job."""
        jobs = []
        while self._jobs:
            jobs.append(self._jobs.popleft())
        try:
            self._send(jobs)
        except Exception as exc:  # noqa: BLE001  (raised in each caller)
            for job in jobs:
                job.error = job.error or exc
        except BaseException:
            # The writing fiber was killed or timed out: its own affair, but the others must not believe that
            # all is well, and nobody may find its confirms half read.
            for job in jobs:
                job.error = PublishUncertain("the greenlet that published for several was ended", _id_of(job))
            self._drop()
            raise
        finally:
            for job in jobs:
                job.done = True

    def _send(self, jobs: Sequence[_Job]) -> None:
        sender, prepared = self._attempt(lambda sender: (sender, self._prepare(sender, jobs)))
        if not prepared:
            return
        receipt = self._checked(sender, sender.send(prepared, TIMEOUT))
        if receipt.unroutable:
            # The queue was deleted after we had declared it. Once more is enough to bring it back.
            receipt = self._again(sender, receipt, jobs)
        for job in jobs:
            job.error = job.error or _verdict(job, receipt)

    def _attempt(self, call: Callable[[Sender], T]) -> T:
        """Make a call that publishes nothing on a sender that takes messages, after the retries allowed."""
        policy = self._conf.task_publish_retry_policy if self._conf.task_publish_retry else {"max_retries": 0}
        interval = policy.get("interval_start", 0.0)
        left = policy.get("max_retries", 3)
        while True:
            fresh = self._sender is None
            try:
                if self._sender is None:
                    self._sender = open_sender(self._url, self._conf, "greenq publisher")
                self._sender.ready(TIMEOUT)
                return call(self._sender)
            except BrokerUnreachable:
                self._drop()
                if not fresh:
                    continue  # the connection had gone stale: that is no failed attempt yet
                if left is not None:
                    if left <= 0:
                        raise
                    left -= 1
            time.sleep(interval)
            interval = min(interval + policy.get("interval_step", 0.2), policy.get("interval_max", 1.0))

    def _prepare(self, sender: Sender, jobs: Sequence[_Job]) -> list[tuple[TaskMessage, Any]]:
        """Declare and encode for all jobs; one that cannot be sent gets its error and spoils no batch."""
        prepared: list[tuple[TaskMessage, Any]] = []
        for job in jobs:
            try:
                prepared += [(message, self._encode(sender, message, job)) for message in job.messages]
            except (ConfigError, MessageError) as exc:
                job.error = exc
        return prepared

    def _encode(self, sender: Sender, message: TaskMessage, job: _Job) -> Any:
        target = f"{message.exchange}\0{message.routing_key}"
        if job.mandatory and target not in self._declared:
            self._declare(sender, message, job.queue)
            if len(self._declared) >= _REMEMBERED:
                self._declared.clear()
            self._declared.add(target)
        mandatory = job.mandatory and self._declarations.exchange_type(message.exchange) not in _OPEN
        return sender.prepare(message, mandatory=mandatory)

    def _declare(self, sender: Sender, message: TaskMessage, queue: Any) -> None:
        queue = self._declarations.of(message) if queue is None else queue
        # A key of no queue's own may still match the patterns of several. All of them, because most of kombu's
        # transports route by what they were told: they take an exchange nobody declared for a direct one.
        queues = self._declarations.on(message.exchange) if queue is None else [queue]
        for each in queues:
            declare(sender, each)
        if not queues and message.exchange:
            sender.require(message.exchange)

    def _checked(self, sender: Sender, receipt: Receipt) -> Receipt:
        # A blocked connection is kept: the broker has said what is wrong, and the next call need not guess.
        if receipt.unknown and not sender.blocked:
            self._drop()
        return receipt

    def _again(self, sender: Sender, receipt: Receipt, jobs: Sequence[_Job]) -> Receipt:
        queues = {id(message): job.queue for job in jobs for message in job.messages}
        prepared = []
        try:
            for message in receipt.unroutable:
                self._declare(sender, message, queues[id(message)])
                prepared.append((message, sender.prepare(message, mandatory=True)))
        except (BrokerUnreachable, ConfigError):
            self._drop()
            return receipt  # they are nowhere, which is what it says of them
        second = self._checked(sender, sender.send(prepared, TIMEOUT))
        return Receipt(
            second.unroutable,
            receipt.refused + second.refused,
            receipt.unknown + second.unknown,
            receipt.cause or second.cause,
        )

    def length(self, queue: str) -> int:
        """See Publisher."""
        with self._turn:
            return self._attempt(lambda sender: sender.length(queue))

    def purge(self, queue: str) -> int:
        """See Publisher."""
        with self._turn:
            return self._attempt(lambda sender: sender.purge(queue))

    def _drop(self) -> None:
        sender, self._sender = self._sender, None
        self._declared.clear()
        if sender is not None:
            try:
                sender.close()
            except BrokerUnreachable:
                return  # it was lost, which is why it is dropped

    def close(self) -> None:
        """See Publisher."""
        with self._turn:
            self._drop()


def _verdict(job: _Job, receipt: Receipt) -> GreenqError | None:
    """What the caller of one job is told, None if all is well."""
    mine = {id(message) for message in job.messages}
    for message in receipt.unknown:
        if id(message) in mine:
            task_id = message.properties.get("correlation_id")
            error = PublishUncertain(f"task {task_id} may or may not be in the broker: {receipt.cause}", task_id)
            error.__cause__ = receipt.cause
            return error
    for message in receipt.refused:
        if id(message) in mine:
            return BrokerPaused(f"the broker refused a message for {message.routing_key!r}: its queue is full")
    for message in receipt.unroutable:
        if id(message) in mine:
            return ConfigError(
                f"no queue is bound to exchange {message.exchange!r} with key {message.routing_key!r}, "
                "and the message was not sent: bind one, or send to a queue by its name"
            )
    return None


def _id_of(job: _Job) -> str | None:
    task_id = job.messages[0].properties.get("correlation_id")
    return None if task_id is None else str(task_id)
