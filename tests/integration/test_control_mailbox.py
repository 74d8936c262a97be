"""The listener and both clients, greenq's and an installed Celery's, over real Redis, RabbitMQ and SQLite."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis
from celery import Celery

from greenq.broker.connections import connect
from greenq.config import Settings
from greenq.control import Registry, default_registry
from greenq.control.registry import make_command
from greenq.exceptions import BrokerUnreachable
from tests.support.control import Ear, client_of, listening
from tests.support.panel import make_request
from tests.support.processes import wait_for
from tests.support.services import RedisServer


@pytest.fixture
def ear(broker_url: str) -> Iterator[Ear]:
    with listening(broker_url) as ear:
        yield ear


@pytest.fixture
def celery(broker_url: str) -> Iterator[Celery]:
    if broker_url.startswith("sqlite"):
        from greenq.transports.sqlite import register

        register()
    app = Celery("asker", broker=broker_url, set_as_current=False)
    yield app
    app.close()


def send_frame(url: str, body: object, *, content_type: str = "application/json", raw: bytes | None = None) -> None:
    """Publish anything at all on the control exchange."""
    with connect(url, Settings({})) as connection:
        channel = connection.default_channel
        exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode=1)(channel)
        exchange.declare()
        kombu.Producer(channel, auto_declare=False).publish(
            json.dumps(body).encode() if raw is None else raw,
            exchange="celery.pidbox",
            content_type=content_type,
            content_encoding="utf-8",
        )


def test_greenqs_client_asks_everything_there_is(ear: Ear) -> None:
    ear.panel.requests["active"].append(make_request("id-1"))
    with client_of(ear.url) as client:
        assert client.ping(limit=1) == [{"w@h": {"ok": "pong"}}]
        asking = client.inspect("w@h")
        assert asking.ping() == {"w@h": {"ok": "pong"}}
        assert [info["id"] for info in asking.active()["w@h"]] == ["id-1"]  # type: ignore[index]
        assert asking.active(safe=True)["w@h"][0]["args"] == "[2, 2]"  # type: ignore[index]
        for ask in (asking.reserved, asking.scheduled, asking.registered, asking.revoked):
            assert ask() == {"w@h": []}
        assert asking.query_task("id-1", "nope")["w@h"]["id-1"][0] == "active"  # type: ignore[index]
        assert asking.active_queues() == {"w@h": [{"name": "celery"}]}
        assert isinstance(asking.clock()["w@h"]["clock"], int)  # type: ignore[index]
        assert asking.stats()["w@h"]["pid"] == os.getpid()  # type: ignore[index]
        assert "broker_url" in asking.conf(with_defaults=True)["w@h"]  # type: ignore[index]
        assert asking.hello("x@y", ["aaa"])["w@h"]["revoked"] == ["aaa"]  # type: ignore[index]
        assert asking.report()["w@h"]["ok"]  # type: ignore[index]
        assert asking.memsample()["w@h"].endswith("MB")  # type: ignore[index]
        assert client.revoke(["b"], destination="w@h", reply=True) == [
            {"w@h": {"ok": "tasks {'b'} flagged as revoked"}}
        ]
        assert client.terminate("id-1", destination="w@h", reply=True) == [{"w@h": {"ok": "terminate: id-1"}}]
        assert client.rate_limit("nope", "1/s", destination="w@h", reply=True) == [{"w@h": {"error": "unknown task"}}]


def test_celerys_client_is_answered(ear: Ear, celery: Celery) -> None:
    ear.panel.requests["active"].append(make_request("id-1"))
    control = celery.control
    assert control.ping(destination=["w@h"]) == [{"w@h": {"ok": "pong"}}]
    asking = control.inspect(destination=["w@h"])
    assert asking.ping() == {"w@h": {"ok": "pong"}}
    assert asking.active()["w@h"][0]["args"] == [2, 2]
    assert asking.active(safe=True)["w@h"][0]["args"] == "[2, 2]"
    assert asking.stats()["w@h"]["total"] == {"proj.add": 3}
    assert asking.scheduled() == asking.reserved() == asking.revoked() == asking.registered() == {"w@h": []}
    assert asking.query_task("id-1")["w@h"]["id-1"][0] == "active"
    assert asking.clock()["w@h"]["clock"] > 0
    assert asking.hello("x@y")["w@h"]["revoked"] == []
    assert "ok" in asking.report()["w@h"]
    assert asking.conf()["w@h"]["broker_url"] is None
    assert asking.memsample()["w@h"].endswith("MB")
    assert asking.active_queues() == {"w@h": [{"name": "celery"}]}
    reply = control.revoke("b", destination=["w@h"], reply=True, terminate=True, signal="KILL")
    assert reply == [{"w@h": {"ok": "terminate: tasks unknown"}}]
    assert control.rate_limit("nope", "1/s", destination=["w@h"], reply=True) == [{"w@h": {"error": "unknown task"}}]
    assert asking._request("nosuch") == {"w@h": {"error": """UnknownCommand("no command 'nosuch'")"""}}


def test_a_cast_takes_effect_and_gets_no_answer(ear: Ear) -> None:
    with client_of(ear.url) as client:
        assert client.revoke("id-7") is None
        client.shutdown()
        wait_for(lambda: ("shutdown", "Got shutdown from remote") in ear.panel.asked)
    assert ("revoke", ["id-7"]) in ear.panel.asked


def test_nobody_answers_shutdown_even_when_asked_to(ear: Ear) -> None:
    with client_of(ear.url) as client:
        assert client.broadcast("shutdown", reply=True, timeout=0.3) == []
    assert ear.alive


def test_nodes_are_chosen_by_name_and_by_glob(broker_url: str) -> None:
    with listening(broker_url, "a@h"), listening(broker_url, "b@h"), client_of(broker_url) as client:
        both = client.ping(limit=2)
        assert sorted(node for reply in both for node in reply) == ["a@h", "b@h"]
        assert client.ping("a@h") == [{"a@h": {"ok": "pong"}}]
        assert client.ping(pattern="b@*", matcher="glob", limit=1) == [{"b@h": {"ok": "pong"}}]
        assert client.ping("c@h", timeout=0.2) == []


def test_a_call_returns_as_soon_as_those_named_have_answered(ear: Ear) -> None:
    with client_of(ear.url) as client:
        started = time.monotonic()
        assert client.ping(["w@h"], timeout=30.0)
        assert client.inspect("w@h", timeout=30.0).stats()
        assert client.ping(timeout=30.0, limit=1)
        assert time.monotonic() - started < 10.0


def test_replies_are_handed_over_as_they_come(ear: Ear) -> None:
    seen: list[Any] = []
    with client_of(ear.url) as client:
        assert client.ping("w@h", callback=seen.append) == seen
    assert seen == [{"w@h": {"ok": "pong"}}]


def test_no_reply_is_lost_with_short_timeouts(ear: Ear) -> None:
    with client_of(ear.url) as client:
        client.ping(limit=1)
        assert [len(client.ping(timeout=0.15)) for _ in range(20)] == [1] * 20


def test_a_reply_that_comes_late_is_not_taken_for_the_next(broker_url: str) -> None:
    registry = default_registry()

    def slow(panel: object) -> str:
        """Take a while."""
        time.sleep(0.3)
        return "slow"

    registry.add(make_command(slow, "inspect"))
    with listening(broker_url, registry=registry), client_of(broker_url) as client:
        assert client.broadcast("slow", reply=True, timeout=0.05) == []
        for _ in range(10):
            assert client.ping("w@h") == [{"w@h": {"ok": "pong"}}]
            time.sleep(0.05)


def test_several_threads_may_ask_at_once(ear: Ear) -> None:
    answers: list[Any] = []
    with client_of(ear.url) as client:
        threads = [
            threading.Thread(target=lambda: answers.extend(client.ping("w@h", timeout=20) for _ in range(5)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [[{"w@h": {"ok": "pong"}}]] * 30


def test_a_forked_child_leaves_its_parents_connection_alone(ear: Ear) -> None:
    with client_of(ear.url) as client:
        assert client.ping("w@h")
        pid = os.fork()
        if pid == 0:
            os._exit(0 if client.ping("w@h", timeout=10) == [{"w@h": {"ok": "pong"}}] else 1)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert client.ping("w@h")


FRAMES: list[object] = [
    5,
    "not an object",
    None,
    [],
    [1],
    {},
    {"method": 5},
    {"method": "ping", "arguments": [1]},
    {"method": "ping", "destination": 5},
    {"method": "ping", "destination": [5]},
    {"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"},
    {"method": "ping", "reply_to": "x"},
    {"method": "ping", "reply_to": {"exchange": "", "routing_key": "celery"}},
    {"method": "nosuch"},
    {"method": "ping", "ticket": {"a": 1}},
    {"method": "rate_limit", "arguments": {"bad": 1}},
    {"method": "query_task", "arguments": {"ids": 5}},
]


def test_no_frame_ends_the_listener(ear: Ear) -> None:
    for body in FRAMES:
        send_frame(ear.url, body)
    send_frame(ear.url, None, raw=b"{not json")
    send_frame(ear.url, None, raw=b"\xff\xfe\x00")
    send_frame(ear.url, None, raw=b"[" * 100_000)
    send_frame(ear.url, None, raw=b"cos\nsystem\n(S'true'\ntR.", content_type="application/x-python-serialize")
    with client_of(ear.url) as client:
        assert client.ping("w@h", timeout=10) == [{"w@h": {"ok": "pong"}}]
    assert ear.alive
    wait_for(lambda: sum(ear.listener.hearing.rejected.values()) == len(FRAMES) + 4)
    assert ear.listener.hearing.rejected["undecodable"] == 4
    assert ear.listener.hearing.rejected["reply_to"] == 2


def test_a_kind_of_bad_frame_is_logged_once(ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(5):
        send_frame(ear.url, [])
    wait_for(lambda: ear.listener.hearing.rejected["not_an_object"] == 5)
    assert len([record for record in caplog.records if "not_an_object" in record.getMessage()]) == 1


@pytest.mark.parametrize("frame", [b"5", b"not json", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"body": 5}'])
def test_what_is_no_message_at_all_changes_nothing_on_redis(redis_url: str, frame: bytes) -> None:
    with listening(redis_url) as ear, redis.Redis.from_url(redis_url) as server, client_of(redis_url) as client:
        assert server.publish("/0.celery.pidbox", frame) == 1
        assert client.ping("w@h", timeout=10) == [{"w@h": {"ok": "pong"}}]
        assert ear.listener.connected


def test_replies_go_nowhere_but_to_the_reply_exchange(redis_url: str) -> None:
    with listening(redis_url) as ear, redis.Redis.from_url(redis_url) as server:
        server.sadd("_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
        for reply_to in (
            {"exchange": "", "routing_key": "celery"},
            {"exchange": "celery", "routing_key": "celery"},
            {"exchange": "reply.celery.pidbox", "routing_key": "celery"},
        ):
            send_frame(redis_url, {"method": "ping", "ticket": "t", "reply_to": reply_to})
        with client_of(redis_url) as client:
            assert client.ping("w@h", timeout=10)
        assert ear.listener.hearing.rejected["reply_to"] == 2
        assert server.llen("celery") == 0


def test_nothing_is_left_behind_on_redis(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        with listening(redis_url):
            with client_of(redis_url) as client:
                assert client.ping("w@h")
                assert server.smembers("_kombu.binding.reply.celery.pidbox")
            assert not server.exists("_kombu.binding.reply.celery.pidbox")
            assert not server.keys("*.reply.celery.pidbox")
        # kombu's own note of when to sweep a table of bindings; it sweeps it itself.
        assert set(server.keys()) <= {b"_kombu.binding_deadlines"}


def test_a_reply_to_a_client_that_has_gone_expires_on_redis(redis_url: str) -> None:
    with listening(redis_url) as ear, redis.Redis.from_url(redis_url) as server:
        server.sadd("_kombu.binding.reply.celery.pidbox", "gone\x06\x16\x06\x16gone.reply.celery.pidbox")
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "gone"}
        send_frame(redis_url, {"method": "ping", "ticket": "t", "reply_to": reply_to})
        wait_for(lambda: server.llen("gone.reply.celery.pidbox") == 1 and server.ttl("gone.reply.celery.pidbox") > 0)
        assert ear.alive


def test_an_error_in_a_command_is_its_reply(broker_url: str) -> None:
    registry = Registry()

    def broken(panel: object) -> None:
        """Break."""
        raise ValueError("no way")

    def leaving(panel: object) -> None:
        """Leave."""
        raise SystemExit(3)

    def odd(panel: object) -> object:
        """Return what no serializer takes."""
        return {"ok": object()}

    for function in (broken, leaving, odd):
        registry.add(make_command(function, "inspect"))
        registry.add(make_command(function, "inspect", name=f"{function.__name__}_now", instant=True))
    with listening(broker_url, registry=registry) as ear, client_of(broker_url) as client:
        for suffix in ("", "_now"):
            assert client.inspect("w@h").ask("broken" + suffix) == {"w@h": {"error": "ValueError('no way')"}}
            assert client.inspect("w@h").ask("leaving" + suffix) == {"w@h": {"error": "SystemExit(3)"}}
            reply = client.inspect("w@h").ask("odd" + suffix)
            assert "cannot be serialized" in reply["w@h"]["error"]  # type: ignore[index]
        assert ear.alive


def test_a_command_that_takes_long_does_not_hold_up_a_ping(broker_url: str) -> None:
    registry, released = default_registry(), threading.Event()

    def waiting(panel: object) -> str:
        """Wait."""
        released.wait(20)
        return "done"

    registry.add(make_command(waiting, "control"))
    with listening(broker_url, registry=registry), client_of(broker_url) as client:
        client.broadcast("waiting")
        assert client.ping("w@h", timeout=10) == [{"w@h": {"ok": "pong"}}]
        released.set()


def test_a_verb_the_hub_has_no_time_for_is_accepted_within_the_default_timeout(ear: Ear) -> None:
    ear.panel.app.tasks["proj.add"] = object()
    ear.panel.busy = "proj.loop[id-1]"
    with client_of(ear.url) as client:
        reply = client.rate_limit("proj.add", "1/s", destination="w@h", reply=True)
    assert reply == [{"w@h": {"ok": "accepted: takes effect when proj.loop[id-1] yields"}}]


def test_two_nodes_of_one_name_on_rabbitmq_the_second_waits(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(rabbitmq_url), listening(rabbitmq_url, wait=False) as second:
        wait_for(lambda: "another live node is called w@h" in caplog.text)
        assert not second.listener.connected
    with listening(rabbitmq_url):
        pass


def test_the_listener_comes_back_with_its_broker() -> None:
    with RedisServer() as server, listening(server.url) as ear:
        server.shutdown()
        wait_for(lambda: not ear.listener.connected, 10)
        with client_of(server.url) as client, pytest.raises(BrokerUnreachable, match=str(server.port)):
            client.ping()
        server.start()
        wait_for(lambda: ear.listener.connected, 15)
        with client_of(server.url) as client:
            assert client.ping("w@h", timeout=5) == [{"w@h": {"ok": "pong"}}]


def test_a_client_whose_broker_was_restarted_connects_again() -> None:
    with RedisServer() as server, listening(server.url) as ear, client_of(server.url) as client:
        assert client.ping("w@h")
        server.restart()
        wait_for(lambda: ear.listener.connected and _answers(client.ping, "w@h"), 15)


def _answers(ask: Callable[..., list[Any]], node: str) -> bool:
    try:
        return bool(ask(node, timeout=0.5))
    except BrokerUnreachable:
        return False


def test_a_namespace_of_its_own_is_kept_apart(broker_url: str) -> None:
    settings = Settings({})
    settings.update(control_exchange="other")
    with listening(broker_url, settings=settings):
        with client_of(broker_url) as client:
            assert client.ping(timeout=0.2) == []
        with client_of(broker_url, settings) as client:
            assert client.ping(limit=1, timeout=5)
