"""Where a task's message goes: by task_routes, task_queues and the options of a call (wire.md 5.7)."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import translate
from typing import Any, NamedTuple

from greenq.config import Settings
from greenq.exceptions import ConfigError

Route = Mapping[str, Any]
Lookup = Callable[[str, Any, Any, Mapping[str, Any], Any], "Route | None"]
_ADDRESS = ("queue", "exchange", "routing_key")


class QueueDef(NamedTuple):
    """A queue as the settings describe it."""

    name: str
    exchange: str = ""
    exchange_type: str = "direct"
    routing_key: str = ""


class Destination(NamedTuple):
    """Where one message is published; without an exchange, straight to the queue named by `routing_key`."""

    exchange: str
    routing_key: str


class Router:
    """Routes for one state of the settings; the app makes a new one when they change.

    Raises:
        ConfigError: when made, if task_routes or task_queues cannot be understood.
    """

    def __init__(self, conf: Settings) -> None:
        self.default = str(conf.task_default_queue)
        self._default_type = str(conf.task_default_exchange_type)
        self._missing_type = str(conf.task_create_missing_queue_exchange_type or self._default_type)
        self._create_missing = bool(conf.task_create_missing_queues)
        self.queues = self._read_queues(conf)
        routes = _as_list(conf.task_routes)
        self._lookups = [_lookup(each) for each in routes]
        self.static = all(isinstance(each, (Mapping, list, tuple)) for each in routes)

    def route(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None
    ) -> dict[str, Any]:
        """The options of a call with what task_routes says laid under them."""
        for lookup in self._lookups:
            found = lookup(name, args, kwargs, options, task)
            if found is not None:
                return {**found, **{key: value for key, value in options.items() if value is not None}}
        return dict(options)

    def destination(self, queue: Any = None, exchange: Any = None, routing_key: Any = None) -> Destination:
        """Turn the address options of a message into an exchange and a routing key.

        Raises:
            ConfigError: for a queue that is unknown while task_create_missing_queues is off, or a routing key
                that leads nowhere.
        """
        exchange = getattr(exchange, "name", exchange)
        if queue is None and exchange is None:
            if routing_key is None:
                return self._to(self.queue(self.default), None)
            return self._by_key(routing_key)
        if queue is None:
            return Destination(exchange, routing_key or self.default)
        found = self.queue(queue)
        if exchange is not None and routing_key is not None:
            return Destination(exchange, routing_key)
        return self._to(found, routing_key)

    def queue(self, wanted: Any) -> QueueDef:
        """The queue of that name; one that the settings do not name is made up if they allow it."""
        name = getattr(wanted, "name", wanted)
        if not isinstance(name, str):
            raise ConfigError(f"{wanted!r:.200} is no queue: write its name")
        known = self.queues.get(name)
        if known is not None:
            return known
        if not isinstance(wanted, str):
            return _queue_from_object(wanted, QueueDef(wanted.name, wanted.name, self._default_type, wanted.name))
        if not self._create_missing:
            near = get_close_matches(name, self.queues, n=1)
            hint = f": did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(self.queues))}"
            raise ConfigError(
                f"there is no queue {name!r} in task_queues, and task_create_missing_queues is off{hint}"
            )
        return QueueDef(name, name, self._missing_type, name)

    def _to(self, queue: QueueDef, routing_key: str | None) -> Destination:
        if queue.exchange_type == "direct":
            return Destination("", queue.name)
        return Destination(queue.exchange, routing_key or queue.routing_key)

    def _by_key(self, routing_key: str) -> Destination:
        for queue in self.queues.values():
            if routing_key in (queue.routing_key, queue.name):
                return self._to(queue, routing_key)
        if self._default_type != "direct":
            return Destination(self.queue(self.default).exchange, routing_key)
        raise ConfigError(
            f"routing_key {routing_key!r} alone leads to no known queue: give queue= or exchange= with it"
        )

    def _read_queues(self, conf: Settings) -> dict[str, QueueDef]:
        default = QueueDef(
            self.default,
            conf.task_default_exchange or self.default,
            self._default_type,
            conf.task_default_routing_key or self.default,
        )
        queues: dict[str, QueueDef] = {}
        given = conf.task_queues or ()
        pairs: Iterable[tuple[Any, Any]] = (
            given.items() if isinstance(given, Mapping) else ((None, each) for each in given)
        )
        for name, value in pairs:
            queue = _read_queue(name, value, default)
            queues[queue.name] = queue
        if not queues:
            queues[default.name] = default
        return queues


def _read_queue(name: str | None, value: Any, default: QueueDef) -> QueueDef:
    if isinstance(value, str):
        name, value = name or value, {}
    if value is None:
        value = {}
    if isinstance(value, Mapping):
        name = name or value.get("name")
        if not name:
            raise ConfigError(f"setting task_queues: {value!r} has no name")
        # Without an exchange of its own it is on the default one, whatever type is written beside (wire.md 5.10).
        exchange = value.get("exchange")
        return QueueDef(
            str(name),
            exchange or default.exchange,
            (value.get("exchange_type") or "direct") if exchange else default.exchange_type,
            value.get("routing_key") or value.get("binding_key") or str(name),
        )
    if isinstance(getattr(value, "name", None), str):
        return _queue_from_object(value, default)
    raise ConfigError(f"setting task_queues: {value!r} is no queue: write a name, a dict or a kombu Queue")


def _queue_from_object(queue: Any, default: QueueDef) -> QueueDef:
    """Read a kombu Queue by its attributes, without importing kombu; what it leaves out is as in `default`."""
    exchange = getattr(queue, "exchange", None)
    name = getattr(exchange, "name", None)
    return QueueDef(
        queue.name,
        name or default.exchange,
        (getattr(exchange, "type", None) or "direct") if name else default.exchange_type,
        getattr(queue, "routing_key", None) or default.routing_key,
    )


def _as_list(routes: Any) -> list[Any]:
    if routes is None:
        return []
    return list(routes) if isinstance(routes, (list, tuple)) else [routes]


def _lookup(routes: Any) -> Lookup:
    if isinstance(routes, str):
        routes = _imported(routes)
    if isinstance(routes, Mapping):
        return _from_mapping(routes)
    if isinstance(routes, (list, tuple)):
        return _from_mapping(dict(_pairs(routes)))
    if hasattr(routes, "route_for_task"):  # Celery's older form, of three arguments
        router = routes() if isinstance(routes, type) else routes
        return lambda name, args, kwargs, _options, _task: _as_route(router.route_for_task(name, args, kwargs), name)
    if callable(routes):
        return lambda name, args, kwargs, options, task: _as_route(
            routes(name, args, kwargs, options, task=task), name
        )
    raise ConfigError(f"setting task_routes: {routes!r} is no dict, function or path to one")


def _imported(path: str) -> Any:
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"setting task_routes: {path!r} cannot be imported: {exc}") from exc


def _pairs(routes: Sequence[Any]) -> list[tuple[Any, Any]]:
    """One (pattern, route), or several in order."""
    if len(routes) == 2 and isinstance(routes[0], (str, re.Pattern)):
        routes = [routes]
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in routes):
        return [(pattern, route) for pattern, route in routes]
    raise ConfigError(f"setting task_routes: {routes!r:.200} is no list of (pattern, route)")


def _from_mapping(routes: Mapping[Any, Any]) -> Lookup:
    exact: dict[str, Route] = {}
    patterns: list[tuple[re.Pattern[str], Route]] = []
    for key, value in routes.items():
        route = _as_route(value, str(key)) or {}
        if isinstance(key, re.Pattern):
            patterns.append((key, route))
        elif "*" in key:
            patterns.append((re.compile(translate(key)), route))
        else:
            exact[key] = route

    def lookup(name: str, _args: Any, _kwargs: Any, _options: Any, _task: Any) -> Route | None:
        found = exact.get(name)
        if found is not None:
            return found
        return next((route for pattern, route in patterns if pattern.match(name)), None)

    return lookup


def _as_route(value: Any, name: str) -> Route | None:
    if value is None:
        return None
    if isinstance(value, str):
        return {"queue": value}
    if isinstance(value, Mapping):
        return value
    if isinstance(getattr(value, "name", None), str):
        return {"queue": value}
    raise ConfigError(f"setting task_routes: the route of {name!r} is {value!r}: write a queue name or a dict")
