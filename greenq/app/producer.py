"""The sending side of one app: plans, routes, publishers and the result store, each made at its first use."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from greenq.app.options import resolved
from greenq.app.publishing import Outgoing, Plan, build, make_plan, tell
from greenq.app.routing import Router
from greenq.broker.publisher import Publisher, open_publisher
from greenq.config import Settings
from greenq.model import TaskMessage
from greenq.results.base import ResultStore
from greenq.results.opening import open_results
from greenq.wire.results import Meta, decode_meta
from greenq.wire.serializers import Accept, mime_type

if TYPE_CHECKING:
    from greenq.app.base import GreenQ


class Producer:
    """What an app keeps in order to send messages and to read results. Safe to use from several threads."""

    def __init__(self, app: GreenQ) -> None:
        self._app = app
        self._lock = threading.RLock()
        self._publishers: dict[tuple[Any, ...], Publisher] = {}
        self._results: ResultStore | None = None
        self._name = str(uuid.uuid4())
        self._origin = (0, "")
        self.forget()

    def forget(self) -> None:
        """Drop what was worked out from the settings; it is worked out again when it is needed."""
        self._plans: dict[str, Plan] = {}
        self._router: Router | None = None
        self._reading: tuple[Accept, str] | None = None
        self._default_options: Mapping[str, Any] | None = None
        self._default: Publisher | None = None

    def forget_plan(self, name: str) -> None:
        """Work out the plan of one task again at its next sending."""
        self._plans.pop(name, None)

    @property
    def router(self) -> Router:
        """Where messages go, by the settings in force."""
        if self._router is None:
            self._router = Router(self._app.conf)
        return self._router

    @property
    def default_options(self) -> Mapping[str, Any]:
        """The options in force for a task this app does not know."""
        if self._default_options is None:
            self._default_options = resolved(self._app.conf, {})
        return self._default_options

    def plan(self, name: str) -> Plan:
        """What all messages of one task have in common."""
        plan = self._plans.get(name)
        if plan is None:
            plan = make_plan(self._app, name)
            if name in self._app.tasks:  # names from outside are not kept: there is no end to them
                self._plans[name] = plan
        return plan

    def build(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Outgoing:
        """Make the message of one call; see `publishing.build`."""
        return build(self._app, name, args, kwargs, options)

    def deliver(self, outgoing: Sequence[Outgoing], options: Mapping[str, Any]) -> None:
        """Send messages, and tell the run that sends them of its children.

        Blocks until the broker has them. Of `options` only `retry` and `retry_policy` count here.
        """
        expected = [each.task_id for each in outgoing if not each.ignored]
        if expected:
            # Before the message leaves: a fast worker's answer must find somebody listening.
            self.results.expect(expected)
        publisher = self.publisher(retry=options.get("retry"), policy=options.get("retry_policy"))
        publisher.publish([each.message for each in outgoing])
        for each in outgoing:
            if each.parent is not None:
                tell(each.parent, each.task_id)

    def publish(self, messages: Sequence[TaskMessage]) -> None:
        """Send finished messages; blocks until the broker has them."""
        self.publisher().publish(messages)

    def publisher(self, *, retry: bool | None = None, policy: Mapping[str, float] | None = None) -> Publisher:
        """The connection messages leave by, with the retries of the settings or with others."""
        if retry is None and policy is None:
            if self._default is None:
                self._default = self._publisher(retry=None, policy=None)
            return self._default
        return self._publisher(retry=retry, policy=policy)

    def _publisher(self, *, retry: bool | None, policy: Mapping[str, float] | None) -> Publisher:
        conf = self._app.conf
        retries = bool(conf.task_publish_retry if retry is None else retry)
        own = tuple(sorted(policy.items())) if policy and retries else None
        key = (self._app.broker.url, retries, own)
        found = self._publishers.get(key)
        if found is None:
            with self._lock:
                found = self._publishers.get(key)
                if found is None:
                    found = open_publisher(key[0], _with_retries(conf, own, retries=retries))
                    self._publishers[key] = found
        return found

    @property
    def results(self) -> ResultStore:
        """The result store."""
        if self._results is None:
            with self._lock:
                if self._results is None:
                    url, conf = self._app.backend, self._app.conf
                    if url is not None and url.startswith("rpc") and not conf.broker_url:
                        conf = conf.copy(broker_url=self._app.broker.url)
                    self._results = open_results(url, conf)
        return self._results

    def decode(self, payload: bytes) -> Meta:
        """Read a stored result, if its content is let in."""
        if self._reading is None:
            conf = self._app.conf
            accept = Accept.of(conf.result_accept_content or conf.accept_content)
            self._reading = accept, mime_type(conf.result_serializer)
        accept, content_type = self._reading
        return decode_meta(payload, accept, content_type)

    @property
    def origin(self) -> str:
        """The header `origin`: this process and host."""
        pid = os.getpid()
        if self._origin[0] != pid:
            self._origin = (pid, f"gen{pid}@{socket.gethostname()}")
        return self._origin[1]

    @property
    def reply_to(self) -> str:
        """The property `reply_to`: the queue on which an rpc store listens, else a name for this app."""
        return getattr(self.results, "reply_to", None) or self._name

    def close(self) -> None:
        """Let go of all connections; the next use opens them again."""
        with self._lock:
            self._default = None
            publishers, self._publishers = self._publishers, {}
            results, self._results = self._results, None
        for publisher in publishers.values():
            publisher.close()
        if results is not None:
            results.close()


def _with_retries(conf: Settings, policy: tuple[tuple[str, float], ...] | None, *, retries: bool) -> Settings:
    if policy is None and retries == conf.task_publish_retry:
        return conf
    merged = {**conf.task_publish_retry_policy, **dict(policy or ())}
    return conf.copy(task_publish_retry=retries, task_publish_retry_policy=merged)
