"""Routing: where options, task_routes and task_queues send a message (wire.md 5.7)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kombu import Exchange, Queue

from greenq import GreenQ
from greenq.broker.topology import Declarations
from greenq.exceptions import ConfigError


def address(app: GreenQ, name: str = "proj.mail.send", *args: Any, **options: Any) -> tuple[str, str]:
    message = app.build_message(name, args, **options)
    return message.exchange, message.routing_key


def route_by_argument(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
    return {"queue": f"q{args[0]}"} if args else None


class Older:
    """Celery's form of a router before it took options."""

    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return f"q{args[0]}"


ROUTES: list[tuple[Any, str]] = [
    (None, "celery"),
    ({"proj.mail.send": "exact"}, "exact"),
    ({"proj.*": "glob", "proj.mail.send": "exact"}, "exact"),
    ({"proj.mail.*": "near", "proj.*": "far"}, "near"),
    ({"*": {"queue": "all"}}, "all"),
    ({re.compile(r"proj\.(mail|sms)\..*"): {"queue": "regex"}}, "regex"),
    ({"other.*": "other"}, "celery"),
    ([{"other.*": "other"}, {"proj.*": "second"}], "second"),
    ([("proj.*", {"queue": "pair"})], "pair"),
    (route_by_argument, "q7"),
    ([lambda *args, **kwargs: None, {"proj.*": "after"}], "after"),
    (f"{__name__}.route_by_argument", "q7"),
    (f"{__name__}:route_by_argument", "q7"),
    (Older(), "q7"),
    (f"{__name__}.Older", "q7"),
    ([[("other.*", "other"), ("proj.*", {"queue": "of-pairs"})]], "of-pairs"),
    ([[("other.*", "other"), (re.compile("proj"), "third"), ("proj.*", "fourth")]], "third"),
    ({"proj.*": Queue("from-object")}, "from-object"),
]


@pytest.mark.parametrize(("routes", "queue"), ROUTES)
def test_a_route_leads_to_its_queue(app: GreenQ, routes: Any, queue: str) -> None:
    app.conf.task_routes = routes
    assert address(app, "proj.mail.send", 7) == ("", queue)


def test_options_of_the_call_beat_those_of_the_task_and_these_beat_routes(app: GreenQ) -> None:
    app.conf.task_routes = {"*": {"queue": "route", "priority": 5, "expires": 30}}
    app.task(name="plain")(lambda: None)
    app.task(name="own", queue="own", priority=1)(lambda: None)
    assert address(app, "plain") == ("", "route")
    assert address(app, "own") == ("", "own")
    assert address(app, "own", queue="call") == ("", "call")
    assert app.build_message("plain").properties["priority"] == 5
    assert app.build_message("plain").properties["expiration"] == "30000"
    assert app.build_message("own").properties["priority"] == 1
    assert app.build_message("own", priority=9).properties["priority"] == 9
    assert app.build_message("plain", queue="call").properties["priority"] == 5


def test_the_default_queue_has_a_name_of_its_own(app: GreenQ) -> None:
    app.conf.task_default_queue = "mine"
    assert address(app) == ("", "mine")


def test_a_direct_exchange_means_straight_to_the_queue(app: GreenQ) -> None:
    app.conf.task_queues = {"feeds": {"exchange": "feeds", "routing_key": "feed.new"}}
    assert address(app, queue="feeds") == ("", "feeds")
    assert address(app, routing_key="feed.new") == ("", "feeds")
    assert address(app, queue="feeds", exchange="x", routing_key="k") == ("x", "k")
    assert address(app, exchange="x", routing_key="k") == ("x", "k")


@pytest.mark.parametrize(
    "queues",
    [
        {"news": {"exchange": "topics", "exchange_type": "topic", "routing_key": "news.#"}},
        [Queue("news", Exchange("topics", type="topic"), routing_key="news.#")],
        [{"name": "news", "exchange": "topics", "exchange_type": "topic", "routing_key": "news.#"}],
    ],
)
def test_any_other_exchange_is_published_to(app: GreenQ, queues: Any) -> None:
    app.conf.task_queues = queues
    assert address(app, queue="news") == ("topics", "news.#")
    assert address(app, queue="news", routing_key="news.de") == ("topics", "news.de")


def test_a_queue_may_be_named_by_a_string_or_an_object(app: GreenQ) -> None:
    app.conf.task_queues = ["a", Queue("b")]
    assert list(app.producer.router.queues) == ["a", "b"]
    assert address(app, queue=Queue("c")) == ("", "c")
    assert address(app, queue=Queue("c", Exchange("t", type="topic"), routing_key="k")) == ("t", "k")


def test_a_queue_nobody_named_is_refused_when_the_settings_say_so(app: GreenQ) -> None:
    app.conf.update(task_queues=["mail", "celery"], task_create_missing_queues=False)
    assert address(app, queue="mail") == ("", "mail")
    with pytest.raises(ConfigError, match="no queue 'mial' in task_queues.*: did you mean mail?"):
        address(app, queue="mial")
    app.conf.task_routes = {"proj.*": "elsewhere"}
    with pytest.raises(ConfigError, match="no queue 'elsewhere' in task_queues.* off; there are celery, mail"):
        address(app)


@pytest.mark.parametrize("queue", ["news", {"name": "news"}, {"name": "news", "exchange_type": "fanout"}])
def test_a_queue_without_an_exchange_is_on_the_default_one_for_sender_and_worker(app: GreenQ, queue: Any) -> None:
    app.conf.update(task_queues=[queue], task_default_exchange="tasks", task_default_exchange_type="topic")
    consumed = Declarations(app.conf).queue("news")
    assert (consumed.exchange.name, consumed.exchange.type, consumed.routing_key) == ("tasks", "topic", "news")
    assert address(app, queue="news") == ("tasks", "news")


def test_a_queue_object_without_a_key_gets_the_default_key(app: GreenQ) -> None:
    app.conf.update(task_queues=[Queue("news")], task_default_exchange_type="topic", task_default_routing_key="all")
    consumed = Declarations(app.conf).queue("news")
    assert (consumed.exchange.name, consumed.exchange.type, consumed.routing_key) == ("celery", "topic", "all")
    assert address(app, queue="news") == ("celery", "all")


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("task_routes", 3, "task_routes: 3 is no dict, function or path"),
        ("task_routes", "no.such:thing", "'no.such:thing' cannot be imported"),
        ("task_routes", {"a": 3}, "the route of 'a' is 3"),
        ("task_routes", [["a", "b", "c"]], "['a', 'b', 'c'] is no list of (pattern, route)"),
        ("task_queues", [3], "3 is no queue"),
        ("task_queues", [{"exchange": "x"}], "has no name"),
    ],
)
def test_what_cannot_be_understood_is_found_at_start(app: GreenQ, setting: str, value: Any, text: str) -> None:
    app.task(name="t")(lambda: None)
    app.conf.update({setting: value})
    with pytest.raises(ConfigError, match=re.escape(text)):
        app.finalize()


def test_a_change_of_routes_is_seen_by_the_next_message(app: GreenQ) -> None:
    app.task(name="t")(lambda: None)
    assert address(app, "t") == ("", "celery")
    app.conf.task_routes = {"t": "new"}
    assert address(app, "t") == ("", "new")
