"""The queues that a pushing consumer wants, and those it consumes, as they are in the broker."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from greenq.broker.links import open_link
from greenq.broker.queue_requests import asked_queue
from greenq.broker.topology import Declarations, declare, describe, is_quorum
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.transports.link import Link, LinkRefused

logger = logging.getLogger(__name__)


class QueueSet:
    """What is wanted is changed from any thread, what is consumed by the owner of the link alone.

    Each change and each copy of a dict is one step under the interpreter lock.
    """

    def __init__(self, url: str, conf: Settings, names: Sequence[str]) -> None:
        self._url = url
        self._conf = conf
        self._declarations = Declarations(conf)
        self._wanted: dict[str, Any] = {name: self._declarations.queue(name) for name in names}  # kombu.Queue
        self._added: set[str] = set()  # those that were asked for while the worker ran
        self._consumed: dict[str, Any] = {}
        self._changes: deque[str] = deque()  # names to look at: wanted or not, consumed or not

    def add(self, name: str, options: Mapping[str, Any]) -> bool:
        """Want one more; False if it is consumed already. Blocks while it is declared, on a connection of its own.

        What the broker refuses then costs that connection, and not the one which consumes.

        Raises:
            ConfigError: there can be no such queue, or it exists with other arguments.
            BrokerUnreachable: no connection, or the broker ended it for what it was asked.
        """
        found = self._wanted.get(name)
        queue = asked_queue(self._declarations, name, options, found)
        if found is not None and name in self._consumed:
            return False
        link = open_link(self._url, self._conf, "greenq declaring")
        try:
            queue = declare(link, queue)
        finally:
            link.close()
        self._added.add(name)
        self._wanted[name] = queue
        self._changes.append(name)
        return True

    def cancel(self, name: str) -> None:
        """Want it no more."""
        self._wanted.pop(name, None)
        self._added.discard(name)
        self._changes.append(name)

    def begin(self, link: Link, prefetch: int, *, strict: bool) -> None:
        """Declare and consume all on a new link; what cannot be had is left out, or an error if `strict`."""
        queues = self._declared(link, strict=strict)
        if any(map(is_quorum, queues.values())):
            link.unshare_prefetch()
        link.prefetch(prefetch)
        for name, queue in queues.items():
            link.consume(name, queue.consumer_arguments or {})
        self._consumed = queues

    def _declared(self, link: Link, *, strict: bool) -> dict[str, Any]:
        queues: dict[str, Any] = {}
        for name, queue in list(self._wanted.items()):
            try:
                queues[name] = declare(link, queue)
            except ConfigError:
                if strict:
                    raise
                logger.exception("Queue %s is not consumed.", name)
        return queues

    def change(self, link: Link) -> None:
        """Consume what has come to be wanted or was withdrawn by the broker, and nothing else."""
        for name in link.withdrawn():
            if name in self._wanted:
                logger.warning("The broker has ended our consumption of queue %s; declaring it again.", name)
                self._consumed.pop(name, None)
                self._changes.append(name)
        while self._changes:
            self._change(link, self._changes.popleft())

    def _change(self, link: Link, name: str) -> None:
        wanted = self._wanted.get(name)
        if wanted is not None and wanted is self._consumed.get(name):
            return
        self._consumed.pop(name, None)
        link.cancel(name)
        if wanted is None:
            return
        try:
            queue = declare(link, wanted)
        except ConfigError:
            # One queue that cannot be had is no reason to leave the others.
            logger.exception("Queue %s is not consumed.", name)
            return
        if is_quorum(queue):
            link.unshare_prefetch()
        link.consume(name, queue.consumer_arguments or {})
        self._consumed[name] = queue

    def lost(self, exc: Exception) -> None:
        """The link is gone. A queue that was added, and that it was ended for, would only end the next one too."""
        for name in list(self._added) if isinstance(exc, LinkRefused) else ():
            if f"queue '{name}'" in str(exc):
                logger.error("Queue %s, which a command added, is consumed no longer: %s", name, exc)
                self._wanted.pop(name, None)
                self._added.discard(name)

    def describe(self) -> list[dict[str, Any]]:
        """What is consumed, as QUEUE_INFO objects (wire.md 3.4)."""
        return [describe(queue) for queue in list(self._consumed.values())]

