"""Asking: the client of the control plane, for greenq's and Celery's workers alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from greenq.broker.mailbox import ReplyMailbox
from greenq.broker.publisher import open_publisher
from greenq.config import Settings
from greenq.control.inspection import Inspect
from greenq.control.mailboxes import Mailboxes
from greenq.control.revoking import revoked_by
from greenq.wire.control import LogicalClock, command_body, with_reply
from greenq.wire.revoked import LOGGED, Revoked

if TYPE_CHECKING:
    from typing_extensions import Self

Reply = dict[str, Any]
Destination = str | Sequence[str] | None
class Broker(Protocol):
    """Where an app's broker is."""

    @property
    def url(self) -> str:
        """Its URL, password included."""


class App(Protocol):
    """What the client needs of an application."""

    @property
    def conf(self) -> Settings:
        """Its settings."""

    @property
    def broker(self) -> Broker:
        """Its broker."""


class Control:
    """Sends commands to workers and collects their replies.

    Safe to use from several greenlets or threads: each call in progress has a connection and a reply queue of
    its own, kept for the next call and deleted by `close` or when the process ends.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.clock = LogicalClock()
        self._mailboxes = Mailboxes(lambda: ReplyMailbox(app.broker.url, app.conf, self.clock))

    def broadcast(  # noqa: PLR0913, PLR0917  (Celery's signature)
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Destination = None,
        reply: bool = False,  # noqa: FBT001, FBT002  (Celery's signature)
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[Reply], object] | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **more: Any,
    ) -> list[Reply] | None:
        """Send a command to all workers, to those named, or to those whose name matches a pattern.

        Blocks until `limit` replies (by default the number of nodes named) are in or `timeout` seconds have
        passed; without `reply`, until the broker has the command. `callback` is called with each reply as it
        comes in. The command's arguments may be keywords too. The matcher is "glob"; Celery's workers know
        "pcre" besides. What a command for all workers revokes is also kept in the broker, where that is possible,
        for workers that are away.

        Returns:
            The replies in the order of their arrival, {node: data} each; None without `reply`.

        Raises:
            BrokerUnreachable: the command may or may not have been sent.
        """
        nodes = [destination] if isinstance(destination, str) else list(destination or ())
        body = command_body(
            command, {**(arguments or {}), **more}, destination=nodes, pattern=pattern, matcher=matcher
        )
        revoked = Revoked() if nodes or (pattern and matcher) else revoked_by(command, body["arguments"])
        if not reply:
            with self._mailboxes.lent(lambda mailbox: _send(mailbox, body, 0.0, revoked)):
                return None
        ticket = str(uuid.uuid4())
        namespace = self.app.conf.control_exchange

        def ask(mailbox: ReplyMailbox) -> None:
            mailbox.listen()
            _send(mailbox, with_reply(body, ticket, mailbox.key, namespace), timeout, revoked)

        with self._mailboxes.lent(ask) as mailbox:
            enough = limit or len(nodes) or None
            return _collect(mailbox, ticket, timeout, enough, callback)

    def close(self) -> None:
        """Delete the reply queues and let go of the connections. The client may be used again."""
        self._mailboxes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def inspect(
        self,
        destination: Destination = None,
        timeout: float = 1.0,
        callback: Callable[[Reply], object] | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Make an object whose methods ask for one thing each and return {node: data}, or None."""

        def ask(command: str, arguments: Mapping[str, Any], nodes: Destination) -> list[Reply] | None:
            return self.broadcast(
                command,
                arguments,
                destination=nodes or destination,
                reply=True,
                timeout=timeout,
                limit=limit,
                callback=callback,
                pattern=pattern,
                matcher=matcher,
            )

        return Inspect(ask)

    def ping(self, destination: Destination = None, timeout: float = 1.0, **options: Any) -> list[Reply]:
        """Ask who is there: [{node: {"ok": "pong"}}]."""
        return self.broadcast("ping", destination=destination, reply=True, timeout=timeout, **options) or []

    def revoke(
        self,
        task_id: str | Sequence[str],
        destination: Destination = None,
        terminate: bool = False,  # noqa: FBT001, FBT002  (Celery's signature)
        signal: str | int | None = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """Never start the tasks of these ids; with `terminate`, end those that run."""
        ids = task_id if isinstance(task_id, str) else list(task_id)
        arguments = {"task_id": ids, "terminate": terminate, "signal": signal}
        return self.broadcast("revoke", arguments, destination=destination, **options)

    def terminate(
        self,
        task_id: str | Sequence[str],
        destination: Destination = None,
        signal: str | int | None = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """End the tasks of these ids though they run."""
        return self.revoke(task_id, destination=destination, terminate=True, signal=signal, **options)

    def rate_limit(
        self, task_name: str, rate_limit: str | float | None, destination: Destination = None, **options: Any
    ) -> list[Reply] | None:
        """Set how often tasks of a type may start: 5, "10/s", "200/m", "5/h"; 0 or None lifts the limit."""
        arguments = {"task_name": task_name, "rate_limit": rate_limit}
        return self.broadcast("rate_limit", arguments, destination=destination, **options)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Destination = None,
        **options: Any,
    ) -> list[Reply] | None:
        """Set a task's time limits, in seconds; None lifts one."""
        arguments = {"task_name": task_name, "hard": hard, "soft": soft}
        return self.broadcast("time_limit", arguments, destination=destination, **options)

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, str | Sequence[str]],
        destination: Destination = None,
        terminate: bool = False,  # noqa: FBT001, FBT002  (Celery's signature)
        signal: str | int | None = "SIGTERM",
        **options: Any,
    ) -> list[Reply] | None:
        """Never start tasks that carry one of these stamps; with `terminate`, end those that run."""
        arguments = {"headers": dict(headers), "terminate": terminate, "signal": signal}
        return self.broadcast("revoke_by_stamped_headers", arguments, destination=destination, **options)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Destination = None,
        **more: Any,
    ) -> list[Reply] | None:
        """Have workers consume from one more queue; `options` are those of a queue, such as `queue_durable`."""
        arguments = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", arguments, destination=destination, **more)

    def cancel_consumer(self, queue: str, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Have workers consume from a queue no longer."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination=destination, **options)

    def enable_events(self, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Have workers send task events."""
        return self.broadcast("enable_events", {}, destination=destination, **options)

    def disable_events(self, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Have workers send task events no longer."""
        return self.broadcast("disable_events", {}, destination=destination, **options)

    def heartbeat(self, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Have workers send a heartbeat event now."""
        return self.broadcast("heartbeat", {}, destination=destination, **options)

    def election(self, id: str, topic: str, action: Any = None, **options: Any) -> list[Reply] | None:  # noqa: A002
        """Have the workers choose one of them to do `action` of `topic`."""
        return self.broadcast("election", {"id": id, "topic": topic, "action": action}, **options)

    def pool_grow(self, n: int = 1, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Add slots to pools."""
        return self.broadcast("pool_grow", {"n": n}, destination=destination, **options)

    def pool_shrink(self, n: int = 1, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Take slots from pools, as they become free."""
        return self.broadcast("pool_shrink", {"n": n}, destination=destination, **options)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,  # noqa: FBT001, FBT002  (Celery's signature)
        destination: Destination = None,
        **options: Any,
    ) -> list[Reply] | None:
        """Replace child processes by new ones with fresh code; `modules` are imported first, anew if `reload`."""
        arguments = {"modules": None if modules is None else list(modules), "reload": reload}
        return self.broadcast("pool_restart", arguments, destination=destination, **options)

    def autoscale(
        self,
        max: int | None = None,  # noqa: A002  (Celery's signature)
        min: int | None = None,  # noqa: A002
        destination: Destination = None,
        **options: Any,
    ) -> list[Reply] | None:
        """Set the bounds of workers that scale; None leaves one as it is."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination=destination, **options)

    def shutdown(self, destination: Destination = None, **options: Any) -> list[Reply] | None:
        """Stop workers warmly; they never answer this."""
        return self.broadcast("shutdown", {}, destination=destination, **options)

    def purge(self, queues: Sequence[str] | None = None) -> int:
        """Delete what waits in the queues, by default all the app knows; returns how many messages."""
        names = known_queues(self.app.conf) if queues is None else queues
        publisher = open_publisher(self.app.broker.url, self.app.conf)
        try:
            return sum(publisher.purge(name) for name in names)
        finally:
            publisher.close()

    discard_all = purge


def known_queues(conf: Settings) -> list[str]:
    """The queues the settings name: those of `task_queues`, else the default queue."""
    queues = conf.task_queues
    if not queues:
        return [conf.task_default_queue]
    return [_queue_name(queue) for queue in queues]


def _queue_name(queue: Any) -> str:
    if isinstance(queue, str):
        return queue
    name: str = queue["name"] if isinstance(queue, Mapping) else queue.name
    return name


def _send(mailbox: ReplyMailbox, body: dict[str, Any], timeout: float, revoked: Revoked) -> None:
    if any(revoked) and mailbox.keep(revoked):
        body = {**body, LOGGED: True}  # or each worker would see to that
    mailbox.send(body, timeout)


def _collect(
    mailbox: ReplyMailbox,
    ticket: str,
    timeout: float,
    enough: int | None,
    callback: Callable[[Reply], object] | None,
) -> list[Reply]:
    replies: list[Reply] = []
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        for reply in mailbox.receive(ticket, left):
            replies.append(reply)
            if callback is not None:
                callback(reply)
            if len(replies) == enough:
                return replies
    return replies
