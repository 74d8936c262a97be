"""Who may ask a node what: profiles, signatures, and what nobody gets to see or to break."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery

from greenq.broker.connections import connect
from greenq.config import Settings
from greenq.control.client import Control
from greenq.wire.control import command_body
from greenq.wire.signing import Claim, signed
from tests.integration.conftest import Stage
from tests.support.control import Ear, client_of, listening
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for
from tests.support.services import RedisServer
from tests.support.sources import SPIN

NEW, OLD = {"new": "a secret of many characters"}, {"old": "another secret of many more"}
PONG = [{"w@h": {"ok": "pong"}}]


def settings_with(**values: Any) -> Settings:
    settings = Settings({})
    settings.update(values)
    return settings


def publish(url: str, *bodies: object, headers: dict[str, Any] | None = None) -> None:
    """Publish frames on the control exchange, as they are."""
    with connect(url, Settings({})) as connection:
        channel = connection.default_channel
        exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode=1)(channel)
        exchange.declare()
        producer = kombu.Producer(channel, auto_declare=False)
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            producer.publish(
                raw,
                exchange="celery.pidbox",
                content_type="application/json",
                content_encoding="utf-8",
                headers=headers,
            )


def error_of(client: Control, command: str, node: str = "w@h", **arguments: Any) -> str:
    (reply,) = client.broadcast(command, arguments, destination=node, reply=True, timeout=5) or ({},)
    return str(reply[node]["error"])


# Signatures


def test_a_node_with_keys_obeys_those_who_have_one(broker_url: str) -> None:
    with listening(broker_url, settings=settings_with(worker_control_keys={**NEW, **OLD})) as ear:
        for keys in (NEW, OLD):
            with client_of(broker_url, settings_with(worker_control_keys=keys)) as client:
                assert client.ping("w@h", timeout=5) == PONG
                assert client.ping(pattern="w@*", matcher="glob", limit=1, timeout=5) == PONG
                client.revoke(f"id-{next(iter(keys))}")
        wait_for(lambda: ear.panel.revokes.ids() == ["id-new", "id-old"])
        assert ear.listener.hearing.info()["signed"] is True
        assert ear.listener.hearing.rejected == {}


def test_who_has_no_key_is_refused_and_told_so(redis_url: str) -> None:
    with listening(redis_url, settings=settings_with(worker_control_keys=NEW)) as ear:
        with client_of(redis_url) as client:
            assert "unsigned" in error_of(client, "ping")
            client.revoke("id-1")
        with client_of(redis_url, settings_with(worker_control_keys={"new": OLD["old"]})) as client:
            assert "signature_wrong" in error_of(client, "ping")
        with client_of(redis_url, settings_with(worker_control_keys=OLD)) as client:
            assert "signature_key: no key 'old'" in error_of(client, "ping")
        celery = Celery("asker", broker=redis_url, set_as_current=False)
        (reply,) = celery.control.ping(destination=["w@h"], timeout=5)
        assert "CommandRefused" in reply["w@h"]["error"]
        celery.close()
        wait_for(lambda: ear.listener.hearing.rejected == {"unsigned": 3, "signature_wrong": 1, "signature_key": 1})
        assert (ear.panel.asked, ear.listener.hearing.handled) == ([], 0)


def test_a_signed_command_is_obeyed_once_and_unaltered_and_in_time(redis_url: str) -> None:
    def frame(nonce: str, *, issued: float = 0.0, expires: float = 30.0, task: str = "id-1") -> dict[str, Any]:
        now = time.time()
        body = command_body("revoke", {"task_id": task}, destination=["w@h"])
        return signed(body, Claim("new", now + issued, now + expires, nonce), "celery", NEW["new"])

    with listening(redis_url, settings=settings_with(worker_control_keys=NEW)) as ear:
        rejected = ear.listener.hearing.rejected
        first = frame("a")
        publish(redis_url, first)
        wait_for(lambda: ear.panel.revokes.ids() == ["id-1"])
        publish(redis_url, first, first)
        publish(redis_url, {**frame("b"), "arguments": {"task_id": "id-2"}}, {**frame("c"), "destination": None})
        publish(redis_url, frame("d", issued=-61), frame("e", issued=61), frame("f", expires=-1))
        wait_for(lambda: sum(rejected.values()) == 7)
        assert rejected == {"replayed": 2, "signature_wrong": 2, "signature_time": 3}
        assert ear.panel.revokes.ids() == ["id-1"]


def test_a_celery_worker_understands_a_client_that_signs(
    redis_url: str, tmp_path: Path, start_celery_node: Callable[..., Node]
) -> None:
    (tmp_path / "ctasks.py").write_text("from celery import Celery\napp = Celery('proj')\n")
    node = start_celery_node("ctasks", env={"CELERY_BROKER_URL": redis_url}, pool="solo", concurrency=1)
    with client_of(redis_url, settings_with(worker_control_keys=NEW)) as client:
        assert client.ping(node.name, timeout=5) == [{node.name: {"ok": "pong"}}]
        assert client.revoke("abc", destination=node.name, reply=True, timeout=5) == [
            {node.name: {"ok": "tasks {'abc'} flagged as revoked"}}
        ]


# Profiles of a real worker


def test_a_profile_decides_what_a_worker_obeys(redis_stage: Stage) -> None:
    node = redis_stage.worker(concurrency=10, options=["--control-profile", "standard"])
    with client_of(redis_stage.url) as client:
        for _ in range(2):
            error = error_of(client, "pool_restart", node.name)
        assert "CommandRefused" in error
        assert "pool_restart is not allowed by the profile 'standard'" in error
        assert "worker_control_profile = 'full'" in error
        assert "with terminate" in error_of(client, "revoke", node.name, task_id="x", terminate=True)
        assert "more than 20 slots" in error_of(client, "pool_grow", node.name, n=11)
        grown = client.pool_grow(5, destination=node.name, reply=True, timeout=5)
        assert grown == [{node.name: {"ok": "pool will grow"}}]
        client.shutdown()
        stats = (client.inspect(node.name, timeout=5).stats() or {})[node.name]["control"]
        assert stats["profile"] == "standard"
        assert stats["rejected"] == {"not_allowed": 5}
        assert stats["handled"] >= 2
        assert client.revoke("abc", reply=True, limit=1, timeout=5)
        assert node.running


def test_a_list_of_commands_replaces_the_profile(redis_stage: Stage) -> None:
    chosen = {"GREENQ_TEST_SETTINGS": json.dumps({"worker_control_allow": ["ping", "terminate", "stats"]})}
    node = redis_stage.worker(env=chosen)
    with client_of(redis_stage.url) as client:
        assert client.ping(node.name, timeout=5)
        assert "terminate: tasks unknown" in str(
            client.broadcast("terminate", {"task_id": "x", "signal": "TERM"}, node.name, reply=True, timeout=5)
        )
        assert "active is not in worker_control_allow" in error_of(client, "active", node.name)
        assert (client.inspect(node.name, timeout=5).stats() or {})[node.name]["control"]["profile"] == "listed"


def test_a_worker_that_is_off_hears_nothing(redis_stage: Stage) -> None:
    node = redis_stage.worker(options=["--control-profile", "off"])
    with redis.Redis.from_url(redis_stage.url) as server, client_of(redis_stage.url) as client:
        assert server.pubsub_numpat() == 0
        assert client.ping(timeout=0.3) == []
    assert redis_stage.send("add", 1, 2).get(timeout=10) == 3
    assert node.running


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"worker_control_allow": ["pong"]}, "worker_control_allow names 'pong'"),
        ({"worker_control_allow": ["ping"], "worker_control_profile": "read"}, "write one of them"),
        ({"worker_control_profile": "none"}, "one of full, standard, read, off"),
        ({"worker_control_keys": {"k": "short7"}}, "fewer than 16 characters"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_at_start(
    settings: dict[str, Any], said: str, redis_url: str, tmp_path: Path
) -> None:
    source = f"from greenq import GreenQ\napp = GreenQ('p')\napp.conf.update({settings!r})\n"
    (tmp_path / "tasks.py").write_text(source)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GREENQ_BROKER_URL": redis_url}
    argv = [sys.executable, "-m", "greenq", "-A", "tasks", "worker", "-P", "solo"]
    done = run(argv, cwd=tmp_path, env=env)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "short7" not in done.stdout + done.stderr


# What strangers send

HOSTILE: list[tuple[object, str]] = [
    (5, "not_an_object"),
    (None, "not_an_object"),
    ([], "not_an_object"),
    ({}, "method"),
    (b"not json", "undecodable"),
    (b"\xff\xfe", "undecodable"),
    (b"[" * 50_000, "undecodable"),
    (b" " * 5_000_000, "too_large"),
    ({"method": "ping", "arguments": 5}, "arguments"),
    ({"method": "ping", "destination": 5}, "destination"),
    ({"method": "ping", "destination": {"worker@test": 1}}, "destination"),
    ({"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"}, "matcher"),
    ({"method": "ping", "pattern": "*" * 300, "matcher": "glob"}, "pattern"),
    ({"method": "ping", "ticket": 5}, "ticket"),
    ({"method": "ping", "reply_to": 5}, "reply_to"),
    ({"method": "ping", "ticket": "t", "reply_to": {"exchange": "", "routing_key": "celery"}}, "reply_to"),
    ({"method": "ping", "ticket": "t", "reply_to": {"exchange": "celery", "routing_key": "celery"}}, "reply_to"),
    ({"method": "nosuch"}, "unknown"),
    ({"method": "__class__"}, "unknown"),
    ({"method": "rate_limit", "arguments": {"task_name": 5, "rate_limit": "1/s"}}, "refused"),
    ({"method": "revoke", "arguments": {}}, "refused"),
    ({"method": "shutdown", "arguments": {"forged": 1}}, "refused"),
]
HARMLESS: list[object] = [
    {"method": "ping", "destination": [f"w{number}@h" for number in range(10_000)]},
    {"method": "ping", "ticket": "t", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "celery"}},
    {"method": "ping", "ticket": "t"},
    {"method": "ping", "more": {"a": 1}, "signature": 5},
]


def test_nothing_a_stranger_sends_is_more_than_counted(stage: Stage) -> None:
    node = stage.worker(concurrency=2)
    publish(stage.url, *(body for body, _ in HOSTILE), *HARMLESS)
    big = 10**300 if stage.url.startswith("redis") else 2**63 - 1  # which is all that AMQP carries
    for clock in (big, "7", -1, [1], None):
        publish(stage.url, {"method": "ping"}, headers={"clock": clock, "expires": clock})
    wanted: dict[str, int] = {}
    for _, kind in HOSTILE:
        wanted[kind] = wanted.get(kind, 0) + 1
    with client_of(stage.url) as client:

        def rejected() -> dict[str, int]:
            found = client.inspect(node.name, timeout=5).stats() or {}
            counts: dict[str, int] = found[node.name]["control"]["rejected"]
            return counts

        wait_for(lambda: rejected() == wanted, 20, lambda: f"{wanted}; there is {rejected()}")
        assert client.ping(node.name, timeout=5) == [{node.name: {"ok": "pong"}}]
    # What was to go to the task queue would be read from there, and refused.
    assert stage.send("add", 1, 2).get(timeout=10) == 3
    assert "Traceback" not in node.output()


def test_what_is_no_message_changes_nothing_and_is_counted(redis_stage: Stage) -> None:
    node = redis_stage.worker(concurrency=2)
    frames = [b"5", b"not json", b"[]", b"{}", b"null", b'{"body": 5}', b'{"headers": [1]}', b"\xff\xfe"]
    frames.append(b"[" * 50_000)
    with redis.Redis.from_url(redis_stage.url) as server, client_of(redis_stage.url) as client:
        for frame in frames:
            assert server.publish("/0.celery.pidbox", frame) == 1
        assert client.ping(node.name, timeout=5) == [{node.name: {"ok": "pong"}}]
        counts = (client.inspect(node.name, timeout=5).stats() or {})[node.name]["control"]["rejected"]
    assert counts == {"undecodable": len(frames)}
    assert node.output().count("Traceback") == 0


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_compressed_frame_is_never_inflated(broker: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(f"{broker}_url")
    with listening(url) as ear, connect(url, Settings({})) as connection, client_of(url) as client:
        exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode=1)
        producer = kombu.Producer(connection.default_channel, exchange)
        producer.publish({"method": "shutdown", "arguments": {}}, serializer="json", compression="zlib")
        assert client.ping("w@h", timeout=5) == PONG
        assert ear.listener.hearing.rejected == {"undecodable": 1}
        assert ear.panel.asked == []


# Commands of the user's that do their worst

OWN_COMMANDS = (
    """
import time
from greenq import GreenQ
from greenq.control import control_command, inspect_command

app = GreenQ("proj")

@app.task
def add(x, y):
    return x + y
"""
    + SPIN
    + """
@inspect_command
def leaves(state):
    raise SystemExit(3)

@inspect_command
def interrupts(state):
    raise KeyboardInterrupt

@inspect_command(instant=True)
def computes(state):
    while True:
        pass

@control_command
def sleeps(state):
    time.sleep(1000)
"""
)


@pytest.fixture
def own(tmp_path: Path, redis_url: str, start_node: Callable[..., Node]) -> Callable[..., Node]:
    (tmp_path / "own.py").write_text(OWN_COMMANDS)
    env = {"GREENQ_BROKER_URL": redis_url, "GREENQ_RESULT_BACKEND": redis_url}
    return lambda **options: start_node("own", env=env, **options)


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_a_command_that_does_its_worst_harms_nobody_else(
    pool: str, own: Callable[..., Node], redis_url: str
) -> None:
    node = own(pool=pool, concurrency=1)
    with client_of(redis_url) as client:
        assert error_of(client, "leaves", node.name) == "SystemExit(3)"
        assert error_of(client, "interrupts", node.name) == "KeyboardInterrupt()"
        client.broadcast("computes")
        for _ in range(20):
            client.broadcast("sleeps")
        assert client.ping(node.name, timeout=10) == [{node.name: {"ok": "pong"}}]
        assert client.revoke("abc", destination=node.name, reply=True, timeout=10)
        assert "16 of sleeps" in error_of(client, "sleeps", node.name)
        node.term()
        assert node.wait(15) == 0


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_every_command_that_acts_is_answered_while_a_task_computes(
    pool: str, own: Callable[..., Node], redis_url: str
) -> None:
    node = own(pool=pool, concurrency=1)
    samples: dict[str, dict[str, Any]] = {
        "revoke": {"task_id": "abc"},
        "terminate": {"task_id": "abc", "signal": "TERM"},
        "revoke_by_stamped_headers": {"headers": {"a": "b"}},
        "rate_limit": {"task_name": "own.add", "rate_limit": "10/s"},
        "time_limit": {"task_name": "own.add", "soft": 5.0, "hard": 10.0},
        "pool_grow": {"n": 1},
        "pool_shrink": {"n": 1},
        "add_consumer": {"queue": "other"},
        "cancel_consumer": {"queue": "other"},
        "enable_events": {},
        "disable_events": {},
        "heartbeat": {},
    }
    with Celery("asker", broker=redis_url, set_as_current=False) as celery, client_of(redis_url) as client:
        task_id = celery.send_task("own.spin", [6]).id
        node.wait_output(r"own\.spin\[.*received")
        replies = {}
        for name, arguments in samples.items():
            began = time.monotonic()
            (reply,) = client.broadcast(name, arguments, destination=node.name, reply=True, timeout=3) or ({},)
            assert time.monotonic() - began < 2, name
            replies[name] = reply[node.name]
        assert "own.spin" in str(client.inspect(node.name).active())
    accepted = [name for name, reply in replies.items() if "accepted" in str(reply)]
    if pool in ("gevent", "eventlet"):
        assert "rate_limit" in accepted
        assert all(f"own.spin[{task_id}]" in replies[name]["ok"] for name in accepted)
    if pool == "prefork":
        assert accepted == []
    assert [name for name in samples if "Traceback" in str(replies[name])] == []


# Secrets

CANARY = "c4n4ry"


def canaries() -> list[str]:
    return [f"{CANARY}{number}" for number in range(12)]


def test_no_output_and_no_reply_shows_a_secret(
    tmp_path: Path, start_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    with RedisServer() as server:
        plain = redis.Redis(port=server.port)
        plain.config_set("requirepass", f"{CANARY}0")
        url = f"redis://:{CANARY}0@127.0.0.1:{server.port}/0"
        settings = {
            "broker_url": f"{url};redis://u:{CANARY}1@other.example:6379/0",
            "result_backend": f"{url}?password={CANARY}0",
            "broker_transport_options": {
                "fallback": [f"redis://:{CANARY}2@h/1"],
                "nested": {"password": f"{CANARY}3", "dsn": f"host=h password={CANARY}4"},
                f"redis://:{CANARY}5@h/1": 1,
            },
            "beat_schedule": {"a": {"args": [f"amqp://u:{CANARY}6@h//"]}},
            "worker_control_keys": {"k1": f"{CANARY}7-and-many-more"},
            "task_annotations": {"*": {"serializer": f"json://u:{CANARY}8@x"}},
            "redis_password": f"{CANARY}9",
            "security_key": f"{CANARY}10",
        }
        (tmp_path / "tasks.py").write_text(
            "import os\nfrom greenq import GreenQ\napp = GreenQ('proj')\n"
            f"app.conf.update({settings!r})\n\n@app.task\ndef add(x, y):\n    return x + y\n"
        )
        node = start_node("tasks", loglevel="DEBUG")
        keys = settings_with(worker_control_keys=settings["worker_control_keys"])
        with client_of(url, keys) as client:
            asking = client.inspect(node.name, timeout=5)
            shown = [
                json.dumps(reply)
                for reply in (
                    asking.conf(with_defaults=True),
                    asking.conf(),
                    asking.report(),
                    asking.stats(),
                    asking.active_queues(),
                    asking.registered("note", "app"),
                    client.broadcast("nosuch", reply=True, destination=node.name, timeout=5),
                )
            ]
            assert all(node.name in reply for reply in shown)
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            for words in (["inspect", "conf"], ["inspect", "report"], ["inspect", "stats"], ["status"]):
                done = run([sys.executable, "-m", "greenq", "-A", "tasks", *words], cwd=tmp_path, env=env)
                assert done.returncode == 0, done.stderr
                shown.append(done.stdout + done.stderr)
        server.shutdown()  # a broker that goes away has the most to say
        node.wait_output("waits for the broker")
        time.sleep(1)
        node.kill()
        shown.append(node.output())
    assert [text for text in shown if CANARY in text] == []


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{CANARY}@127.0.0.1:1/0",
        f"redis://:{CANARY}/{CANARY}@127.0.0.1:1/0",
        f"redis://u:1/{CANARY}@127.0.0.1/0",
        f"amqp://u:{CANARY}@127.0.0.1:1//",
        f"amqp://u:{CANARY}:x@127.0.0.1:port//",
        f"u:{CANARY}@127.0.0.1",
        f"nosuch://u:{CANARY}@127.0.0.1",
        f"rediss://:{CANARY}@127.0.0.1:1/0?ssl_cert_reqs=nonsense",
    ],
)
def test_no_error_about_a_broker_shows_its_password(url: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("from greenq import GreenQ\napp = GreenQ('p')\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": "disabled://"}
    argv = [sys.executable, "-m", "greenq", "-A", "tasks", "inspect", "ping"]
    done = run(argv, cwd=tmp_path, env=env)
    assert done.returncode in {2, 69}, done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_a_listener_over_an_unreachable_broker_says_why_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening(f"redis://:{CANARY}@127.0.0.1:1/0", wait=False) as ear:
        wait_for(lambda: "waits for the broker" in caplog.text, 10)
        assert isinstance(ear, Ear)
    assert CANARY not in caplog.text
