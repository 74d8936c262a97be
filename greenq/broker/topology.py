"""Queues and exchanges as Celery declares them, so that neither side's declaration refuses the other's."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from kombu import Exchange, Queue  # queues are Any below: kombu's annotations leave out what **kwargs bring

from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.model import TaskMessage
from greenq.transports.link import Link, QueueMismatch, Sender

logger = logging.getLogger(__name__)

DEAD_LENGTH = 10_000  # messages a dead queue keeps; the oldest go first

_TYPE = "x-queue-type"


class Declarations:
    """The queues of one application by name; one that no setting names is made up (wire.md 5.10).

    Reads the settings once. Safe to use from several threads.
    """

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        name = conf.task_default_exchange or conf.task_default_queue
        self._exchange = Exchange(name, type=conf.task_default_exchange_type or "direct")
        self._default_key = conf.task_default_routing_key or conf.task_default_queue
        self._known: dict[str, Any] = {}
        for queue in self._configured(conf.task_queues):
            self._known[queue.name] = queue
        if not self._known:
            kind = {_TYPE: "quorum"} if conf.task_default_queue_type == "quorum" else None
            default = Queue(
                conf.task_default_queue, self._exchange, routing_key=self._default_key, queue_arguments=kind
            )
            self._known[default.name] = self._completed(default)

    def _configured(self, queues: Any) -> list[Any]:
        """Those of `task_queues`: a dict by name, or a list; each a kombu Queue, a dict of options, or a name."""
        pairs = queues.items() if isinstance(queues, Mapping) else [(None, each) for each in queues or ()]
        return [self._read(name, value) for name, value in pairs]

    def _read(self, name: str | None, value: Any) -> Any:
        if isinstance(value, Queue):
            return self._completed(value)
        if not isinstance(value, Mapping):
            return self.make(name or str(value), {})
        options = dict(value)
        return self.make(name or str(options.pop("name", "")), options)

    def make(self, name: str, options: Mapping[str, Any]) -> Any:
        """A queue from the keywords of kombu's Queue.from_dict; what is not given is as for `task_queues`."""
        values = dict(options)
        values["routing_key"] = values.get("routing_key") or values.get("binding_key") or name
        return self._completed(Queue.from_dict(name, **values))

    def missing(self, name: str) -> Any:
        """The queue that producers make up where no setting names it (wire.md 5.10)."""
        conf = self._conf
        kind = conf.task_create_missing_queue_exchange_type or conf.task_default_exchange_type or "direct"
        arguments = {_TYPE: "quorum"} if conf.task_create_missing_queue_type == "quorum" else None
        return self._completed(Queue(name, Exchange(name, type=kind), routing_key=name, queue_arguments=arguments))

    def _completed(self, queue: Any) -> Any:
        """Fill in what a queue may leave out; on a copy, because the object is the user's."""
        queue = copy.copy(queue)
        if queue.exchange is None or not queue.exchange.name:
            queue.exchange = self._exchange
        if not queue.routing_key:
            queue.routing_key = self._default_key
        priorities = self._conf.task_queue_max_priority
        # Quorum queues have priorities of their own and refuse the argument.
        if priorities is not None and not is_quorum(queue):
            queue.queue_arguments = {"x-max-priority": priorities, **(queue.queue_arguments or {})}
        return queue

    def known(self, name: str) -> Any:
        """The queue of that name in the settings, or None."""
        return self._known.get(name)

    def queue(self, name: str) -> Any:
        """The queue of that name.

        Raises:
            ConfigError: no setting names it, and `task_create_missing_queues` is off.
        """
        found = self._known.get(name)
        if found is not None:
            return found
        if not self._conf.task_create_missing_queues:
            raise ConfigError(
                f"queue {name!r} is not in task_queues ({', '.join(sorted(self._known))}), "
                "and task_create_missing_queues is off"
            )
        return self.missing(name)

    def of(self, message: TaskMessage) -> Any:
        """The queue a message is sent to, or None where only the broker can know."""
        if not message.exchange:
            return self.queue(message.routing_key)
        for queue in self._known.values():
            if queue.exchange.name == message.exchange and queue.routing_key == message.routing_key:
                return queue
        return None

    def on(self, exchange: str) -> list[Any]:
        """The configured queues of an exchange."""
        return [queue for queue in self._known.values() if exchange and queue.exchange.name == exchange]

    def exchange_type(self, name: str) -> str | None:
        """The type of a configured exchange, None for any other."""
        kinds = {queue.exchange.name: str(queue.exchange.type) for queue in self._known.values()}
        return kinds.get(name)


def declare(link: Link | Sender, queue: Any) -> Any:
    """Declare the queue and return it as it is in the broker.

    A queue of another type than the default one, made by somebody else, is used as it is: what a worker needs
    to know of it is whether it is a quorum queue.

    Raises:
        QueueMismatch: it exists with other arguments than those asked for.
    """
    try:
        link.declare(queue)
    except QueueMismatch as exc:
        asked = (queue.queue_arguments or {}).get(_TYPE)
        if exc.argument != _TYPE or asked is not None or not exc.current:
            raise
        logger.info("Queue %s exists as a %s queue and is used as such.", queue.name, exc.current)
        adopted = copy.copy(queue)
        adopted.queue_arguments = {**(queue.queue_arguments or {}), _TYPE: exc.current}
        link.declare(adopted)
        return adopted
    return queue


def is_quorum(queue: Any) -> bool:
    """Whether the queue is declared as a quorum queue."""
    return (queue.queue_arguments or {}).get(_TYPE) == "quorum"


def dead_queue(name: str) -> Any:
    """Where the messages of a queue go that cannot be run: durable, bounded, on the default exchange."""
    return Queue(f"{name}.dead", Exchange(""), routing_key=f"{name}.dead", max_length=DEAD_LENGTH)


def describe(queue: Any) -> dict[str, Any]:
    """The queue as a QUEUE_INFO object (wire.md 3.4)."""
    info: dict[str, Any] = queue.as_dict(recurse=True)
    info["bindings"] = list(info.get("bindings") or ())
    return info
