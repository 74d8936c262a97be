"""Queues of real workers: chosen at the prompt and in settings, added and cancelled while they run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from greenq import GreenQ
from greenq.broker.pushed import PushedConsumer
from greenq.config import Settings
from greenq.exceptions import BrokerError, ConfigError
from greenq.pools import table
from greenq.runtime.threads import ThreadsRuntime
from tests.integration.conftest import Stage
from tests.support.asked import Asked
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for
from tests.support.services import RabbitServer

POOLS = sorted(table.POOLS)


class QueueAsker(Asked):
    """Of queues and their consumers."""

    def add(self, queue: str, **options: Any) -> Any:
        return self("add_consumer", queue=queue, **options)

    def cancel(self, queue: str) -> Any:
        return self("cancel_consumer", queue=queue)

    def queues(self) -> list[str]:
        return sorted(info["name"] for info in self("active_queues"))

    def queues_if_answered(self) -> list[str] | None:
        """For when connections have just been cut, the asking one too."""
        try:
            found = self._control.inspect(self._node, timeout=1).active_queues()
        except BrokerError:
            return None
        return sorted(info["name"] for info in found[self._node]) if found else None


def settings(**values: Any) -> dict[str, dict[str, str]]:
    return {"env": {"GREENQ_TEST_SETTINGS": json.dumps(values)}}


def waiting(stage: Stage, queue: str) -> int:
    return stage.app.producer.publisher().length(queue)


def done(stage: Stage, what: str) -> None:
    wait_for(lambda: stage.ledger.dones()[what], 15, f"task {what}")


@pytest.mark.parametrize("pool", POOLS)
def test_a_queue_is_added_and_cancelled_while_the_worker_runs(stage: Stage, pool: str) -> None:
    node = stage.worker(pool=pool, concurrency=1 if pool == "solo" else 2)
    ask = QueueAsker(stage.app, node)
    stage.send("nap", "waited", 0, queue="more")
    for _ in range(2):
        assert ask.add("more") == {"ok": "add consumer more"}
        assert ask.queues() == ["celery", "more"]
    done(stage, "waited")
    stage.send("nap", "sent", 0, queue="more")
    done(stage, "sent")
    for _ in range(2):
        assert ask.cancel("more") == {"ok": "no longer consuming from more"}
        assert ask.queues() == ["celery"]
    assert ask.cancel("never heard of") == {"ok": "no longer consuming from never heard of"}
    stage.send("nap", "left", 0, queue="more")
    stage.send("nap", "elsewhere", 0)
    done(stage, "elsewhere")
    assert waiting(stage, "more") == 1
    assert ask.cancel("celery") == {"ok": "no longer consuming from celery"}
    assert ask.queues() == []
    assert ask.add("more")["ok"]
    done(stage, "left")


@pytest.mark.parametrize("pool", POOLS)
def test_a_full_pool_adds_and_cancels_at_once(stage: Stage, pool: str) -> None:
    node = stage.worker(pool=pool, concurrency=1)
    ask = QueueAsker(stage.app, node)
    stage.send("nap", "long", 1.5)
    wait_for(lambda: stage.ledger.starts()["long"], 10)
    stage.send("nap", "urgent", 0, queue="more")
    assert ask.add("more") == {"ok": "add consumer more"}
    assert ask.queues() == ["celery", "more"]
    assert ask.add("other") == {"ok": "add consumer other"}
    assert ask.cancel("other") == {"ok": "no longer consuming from other"}
    assert ask.queues() == ["celery", "more"]
    assert not stage.ledger.dones()["long"], "it was to be full all the time"
    done(stage, "urgent")
    stage.send("nap", "nothere", 0, queue="other")
    assert ask.cancel("more")["ok"] == "no longer consuming from more"
    assert (waiting(stage, "other"), stage.ledger.starts()["nothere"]) == (1, 0)


def test_what_was_taken_from_a_cancelled_queue_runs(stage: Stage) -> None:
    node = stage.worker(concurrency=1, options=["-Q", "celery,more", "--prefetch-multiplier", "4"])
    ask = QueueAsker(stage.app, node)
    for number in range(8):
        stage.send("nap", str(number), 0.1, queue="more")
    wait_for(lambda: stage.ledger.starts()["0"], 10)
    assert ask.cancel("more")["ok"] == "no longer consuming from more"
    left = waiting(stage, "more")
    assert 0 < left < 8
    wait_for(lambda: sum(stage.ledger.dones().values()) == 8 - left, 10)
    stage.send("nap", "last", 0)
    done(stage, "last")
    assert waiting(stage, "more") == left


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_hub_that_computes_is_no_obstacle(stage: Stage, pool: str) -> None:
    node = stage.worker(pool=pool)
    ask = QueueAsker(stage.app, node)
    stage.send("nap", "urgent", 0, queue="more")
    task_id = stage.send("compute", "long", 2.5).id
    wait_for(lambda: stage.ledger.starts()["long"], 10)
    pushed = stage.url.startswith("amqp")
    name = "tests.support.worker_tasks.compute"
    reply = f"accepted: takes effect when {name}[{task_id}] yields" if pushed else "add consumer more"
    assert ask.add("more") == {"ok": reply}
    assert not stage.ledger.dones()["long"], "it was to compute all the time"
    done(stage, "urgent")
    assert ask.queues() == ["celery", "more"]


def test_the_guides_topic_queue_gets_what_is_sent_to_its_exchange(stage: Stage) -> None:
    ask = QueueAsker(stage.app, stage.worker())
    (reply,) = stage.app.control.add_consumer(
        queue="baz",
        exchange="ex",
        exchange_type="topic",
        routing_key="media.*",
        options={"queue_durable": False, "exchange_durable": False},
        reply=True,
        limit=1,
    )
    assert list(reply.values()) == [{"ok": "add consumer baz"}]
    (info,) = [info for info in ask("active_queues") if info["name"] == "baz"]
    assert (info["exchange"]["name"], info["exchange"]["type"], info["routing_key"]) == ("ex", "topic", "media.*")
    assert (info["durable"], info["exchange"]["durable"]) == (False, False)
    # A sender that knows the queue, as Celery's must too before it knows the exchange's type.
    address = {"exchange": "ex", "exchange_type": "topic", "exchange_durable": False, "queue_durable": False}
    stage.app.conf.task_queues = {"celery": {}, "baz": {**address, "routing_key": "media.*"}}
    stage.send("nap", "video", 0, exchange="ex", routing_key="media.video")
    done(stage, "video")


def test_lifetimes_of_an_added_queue_hold(sqlite_url: str, make_stage: Callable[[str], Stage]) -> None:
    stage = make_stage(sqlite_url)
    ask = QueueAsker(stage.app, stage.worker(concurrency=1))
    assert ask.add("short", message_ttl=0.3)["ok"]
    assert ask.add("temporary", expires=0.5)["ok"]
    stage.send("nap", "busy", 1.5)
    wait_for(lambda: stage.ledger.starts()["busy"], 10)
    stage.send("nap", "late", 0, queue="short")
    stage.send("nap", "kept", 0, queue="temporary")  # its consumer is busy, and there
    done(stage, "kept")
    stage.send("nap", "timely", 0, queue="short")
    done(stage, "timely")
    assert stage.ledger.starts()["late"] == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"queue": "bad", "exchange_type": "bad"}, "exchange_type must be one of direct, fanout, headers, topic"),
        ({"queue": "bad", "exchange_type": 5}, "argument 'exchange_type' must be str or null, not 5"),
        ({"queue": "bad", "queue_durabel": False}, "no option 'queue_durabel'"),
        ({"queue": "bad", "queue_durable": "no"}, "queue_durable must be bool, not 'no'"),
        ({"queue": "bad", "max_length": -1}, "max_length cannot be -1"),
        ({"queue": "bad", "no_ack": True}, "cannot be consumed with no_ack"),
        ({"queue": "a\x06\x163"}, "no control characters"),
        ({"queue": ""}, "a name has 1 to 255 bytes"),
        ({"queue": "x" * 256}, "a name has 1 to 255 bytes"),
        ({"queue": ["bad"]}, "argument 'queue' must be str"),
        ({}, "needs the argument 'queue'"),
        ({"queue": "celery", "routing_key": "other"}, "'celery' is consumed with routing_key 'celery', not 'other'"),
        ({"queue": "known", "exchange": "other"}, "'known' is in the settings with exchange 'celery', not 'other'"),
    ],
)
def test_a_request_that_makes_no_sense_is_an_error_that_names_it(
    refusing: QueueAsker, arguments: dict[str, Any], names: str
) -> None:
    reply = refusing("add_consumer", **arguments)
    assert reply["error"].startswith("BadArgument(")
    assert names in reply["error"]
    assert refusing.queues() == ["celery"]


@pytest.fixture(scope="module")
def refusing_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusing")


@pytest.fixture(scope="module")
def refusing(refusing_home: Path) -> Any:
    """One worker for all that is refused before a broker is asked."""
    url = f"sqlite:///{refusing_home}/broker.db"
    env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": "disabled://"}
    env |= settings(task_queues={"celery": {}, "known": {}})["env"]
    with Node("tests.support.worker_tasks", cwd=refusing_home, env=env, options=["-Q", "celery"]) as node:
        app = GreenQ("asks", broker=url)
        yield QueueAsker(app, node)
        app.close()


def test_what_a_broker_refuses_is_an_error_and_the_worker_goes_on(stage: Stage) -> None:
    node = stage.worker(concurrency=2, **settings(task_create_missing_queues=True))
    ask = QueueAsker(stage.app, node)
    for queue, options, error in REFUSED[stage.url.partition(":")[0].replace("+", "")](stage):
        reply = ask.add(queue, **options)
        assert error in reply.get("error", ""), (queue, reply)
        assert ask.queues() == ["celery"], queue
        stage.send("nap", f"after-{queue}", 0)
        done(stage, f"after-{queue}")
    assert "no longer" not in node.output()
    assert "Traceback" not in node.output(), node.output()


def refused_by_redis(_stage: Stage) -> list[tuple[str, dict[str, Any], str]]:
    return [
        ("fan", {"exchange": "f", "exchange_type": "fanout"}, "Use a topic exchange with the routing key '#'"),
        ("head", {"exchange": "h", "exchange_type": "headers"}, "this broker has no headers exchanges"),
    ]


def refused_by_sqlite(stage: Stage) -> list[tuple[str, dict[str, Any], str]]:
    with kombu.Connection(stage.url, transport="greenq.transports.sqlite:Transport") as connection:
        kombu.Exchange("taken", type="topic")(connection.channel()).declare()
    return [
        ("other", {"exchange": "taken", "exchange_type": "direct"}, "exchange 'taken' exists with its type"),
        ("head", {"exchange": "h", "exchange_type": "headers"}, "this broker has no headers exchanges"),
    ]


def refused_by_rabbitmq(stage: Stage) -> list[tuple[str, dict[str, Any], str]]:
    with kombu.Connection(stage.url) as connection:
        channel = connection.channel()
        kombu.Queue("short", max_length=5)(channel).declare()
        kombu.Exchange("taken", type="topic")(channel).declare()
    return [
        ("short", {}, "queue 'short' exists with x-max-length = 5"),
        ("other", {"exchange": "taken"}, "exchange 'taken' exists with type"),
        ("delayed", {"exchange": "d", "exchange_type": "x-no-such-plugin"}, "exchange type"),
        ("amq.mine", {}, "ACCESS_REFUSED"),
        ("many", {"queue_arguments": {"x-max-priority": 1000}}, "x-max-priority"),
    ]


REFUSED = {"redis": refused_by_redis, "sqlite": refused_by_sqlite, "amqp": refused_by_rabbitmq}


def test_a_queue_that_the_broker_will_not_let_be_consumed_is_given_up(
    rabbitmq_url: str, make_stage: Callable[[str], Stage]
) -> None:
    stage = make_stage(rabbitmq_url)
    ask = QueueAsker(stage.app, node := stage.worker())
    with kombu.Connection(rabbitmq_url) as connection:
        channel = connection.channel()
        kombu.Queue("mine")(channel).declare()
        channel.basic_consume("mine", exclusive=True)
        ask.add("mine")
        node.wait_output("Queue mine, which a command added, is consumed no longer: .*exclusive use")
        wait_for(lambda: ask.queues() == ["celery"], 10)
        stage.send("nap", "after", 0)
        done(stage, "after")
    assert ask.add("mine") == {"ok": "add consumer mine"}
    stage.send("nap", "mine", 0, queue="mine")
    done(stage, "mine")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_an_added_queue_is_consumed_after_a_reconnect_too(
    broker: str, request: pytest.FixtureRequest, make_stage: Callable[[str], Stage]
) -> None:
    url = request.getfixturevalue(f"{broker}_url")
    stage = make_stage(url)
    ask = QueueAsker(stage.app, node := stage.worker())
    topic = {"exchange": "ex", "exchange_type": "topic", "routing_key": "media.*"}
    assert ask.add("plain")["ok"] and ask.add("topic", **topic)["ok"] and ask.add("gone")["ok"]
    assert ask.cancel("gone")["ok"]
    if broker == "redis":
        with redis.Redis.from_url(url) as client:
            client.flushall()  # the bindings too
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
    else:
        server: RabbitServer = request.getfixturevalue("rabbitmq_server")
        server.ctl("delete_queue", "plain", "--vhost", url.rpartition("/")[2])
        server.ctl("close_all_connections", "--vhost", url.rpartition("/")[2], "test")
    node.wait_output("consumes? again|broker.*(lost|closed)")
    stage.app.conf.task_queues = {"celery": {}, "topic": topic, "plain": {}}
    wait_for(lambda: ask.queues_if_answered() == ["celery", "plain", "topic"], 20)
    for queue in ("plain", "topic"):
        stage.send("nap", queue, 0, queue=queue, **({"routing_key": "media.x"} if queue == "topic" else {}))
        done(stage, queue)


def test_a_queue_that_was_changed_meanwhile_is_left_out_after_a_reconnect(rabbitmq_url: str) -> None:
    runtime = ThreadsRuntime()
    runtime.attach()

    def make() -> PushedConsumer:
        return PushedConsumer(rabbitmq_url, Settings({}), ["celery", "changed"], 10, runtime)

    consumer, other = make(), make()
    consumer.start()
    consumer.close()
    with kombu.Connection(rabbitmq_url) as connection:
        channel = connection.channel()
        channel.queue_delete("changed")
        kombu.Queue("changed", max_length=5)(channel).declare()
    consumer.start()
    assert [info["name"] for info in consumer.queues()] == ["celery"]
    consumer.close()
    with pytest.raises(ConfigError, match="queue 'changed' exists with x-max-length = 5"):
        other.start()
    other.close()


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line against an embedded broker in the test's directory."""

    def typed(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "HOME": str(tmp_path)}
        env |= {"GREENQ_BROKER_URL": f"sqlite:///{tmp_path}/broker.db"} | settings(**given)["env"]
        argv = [sys.executable, "-m", "greenq", "-A", "tests.support.worker_tasks", *words]
        return run(argv, cwd=tmp_path, env=env)

    return typed


def test_the_prompt_adds_lists_and_cancels(
    sqlite_url: str, make_stage: Callable[[str], Stage], line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    node = make_stage(sqlite_url).worker()
    heading = f"->  {node.name}: OK\n"
    assert line("control", "add_consumer", "foo").stdout == f"{heading}    add consumer foo\n"
    added = line("control", "add_consumer", "baz", "ex", "topic", "media.*", "-d", node.name)
    assert added.stdout == f"{heading}    add consumer baz\n", added.stderr
    shown = json.loads(line("inspect", "-j", "active_queues").stdout)[node.name]
    found = {info["name"]: f"{info['exchange']['type']} {info['routing_key']}" for info in shown}
    assert found == {"celery": "direct celery", "foo": "direct foo", "baz": "topic media.*"}
    assert line("control", "cancel_consumer", "foo").stdout == f"{heading}    no longer consuming from foo\n"
    assert "foo" not in line("inspect", "active_queues").stdout
    strict = line("control", "--strict", "add_consumer", "bad", "ex", "nonsense")
    assert (strict.returncode, "must be one of direct, fanout" in strict.stdout) == (1, True)
    assert "needs queue" in line("control", "add_consumer").stderr


@pytest.mark.parametrize(
    ("words", "given", "error"),
    [
        (["-Q", "mial"], {"task_queues": ["mail", "celery"]}, "-Q mial: no such queue.* is off; did you mean mail"),
        (["-X", "news"], {"task_queues": ["mail", "celery"]}, "-X news: .*there are celery, mail"),
        (["-Q", "news"], {}, "-Q news: .*there are celery"),
        (["-X", "mail,celery"], {"task_queues": ["mail", "celery"]}, "no queue is left"),
    ],
)
def test_a_queue_nobody_named_is_refused_at_the_prompt_if_the_settings_say_so(
    line: Callable[..., subprocess.CompletedProcess[str]], words: list[str], given: dict[str, Any], error: str
) -> None:
    ended = line("worker", *words, **given, task_create_missing_queues=False)
    assert ended.returncode == 2
    assert re.search(error, ended.stderr), ended.stderr


QUEUES = {
    "celery": {},
    "mail": {"exchange": "mail", "routing_key": "post"},
    "media": {"exchange": "media", "exchange_type": "topic", "routing_key": "media.#"},
    "extra": {},
}


@pytest.mark.parametrize(
    ("options", "consumed"),
    [
        ([], ["celery", "extra", "mail", "media"]),
        (["-Q", "mail,media,mail"], ["mail", "media"]),
        (["-X", "extra,celery"], ["mail", "media"]),
        (["-Q", "mail,media,made-up", "-X", "mail,unknown"], ["made-up", "media"]),
    ],
)
def test_a_worker_consumes_what_the_prompt_and_the_settings_say(
    sqlite_url: str, make_stage: Callable[[str], Stage], options: list[str], consumed: list[str]
) -> None:
    stage = make_stage(sqlite_url)
    node = stage.worker(options=options, **settings(task_queues=QUEUES))
    assert QueueAsker(stage.app, node).queues() == consumed
    assert ("-X unknown excludes nothing" in node.output()) == ("-X" in options and "unknown" in options[-1])


def test_routes_lead_to_the_queues_that_a_worker_consumes(stage: Stage) -> None:
    stage.worker(options=["-X", "extra"], **settings(task_queues=QUEUES, task_create_missing_queues=False))
    stage.app.conf.update(task_queues=QUEUES, task_create_missing_queues=False)
    prefix = "tests.support.worker_tasks"
    for routes, queue in (
        (None, "celery"),
        ({f"{prefix}.ab*": {"queue": "mail"}}, "mail"),
        ([[(f"{prefix}.x", "mail"), (f"{prefix}.*", {"queue": "media", "routing_key": "media.new"})]], "media.new"),
        (f"{__name__}.route_about", "mail"),
    ):
        stage.app.conf.task_routes = routes
        assert stage.send("about").get(timeout=10)["queue"] == queue
    stage.app.conf.task_routes = {"*": "extra"}
    stage.send("about")
    assert waiting(stage, "extra") == 1


def route_about(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
    return {"queue": "mail"} if name.endswith(".about") else None
