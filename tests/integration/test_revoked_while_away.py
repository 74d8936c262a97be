"""Revokes that no worker heard: kept in the broker, read on each new connection, and obeyed as commands are."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from greenq.app.results import GroupResult
from greenq.broker.revoked_log import RevokeLog
from greenq.config import Settings
from greenq.exceptions import TaskRevokedError
from greenq.wire.control import command_body
from greenq.wire.revoked import Revoked
from tests.integration.conftest import Stage
from tests.support.control import client_of, listening
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for

MODULE = "tests.support.worker_tasks"
NEW = {"new": "a secret of many characters"}


@pytest.fixture(params=["redis", "sqlite"])
def stage(request: pytest.FixtureRequest, make_stage: Callable[[str], Stage]) -> Stage:
    """A stage on each broker that keeps a log."""
    return make_stage(request.getfixturevalue(f"{request.param}_url"))


def settings(**values: Any) -> dict[str, str]:
    """The environment of a worker with these settings."""
    return {"GREENQ_TEST_SETTINGS": json.dumps(values)}


def known(stage: Stage, node: Node, **control: Any) -> list[str]:
    """The ids that a node knows to be revoked."""
    with client_of(stage.url, Settings({}).copy(**control)) as client:
        found: Any = wait_for(lambda: client.inspect(node.name, timeout=2).revoked(), 20, node.output)
    ids: list[str] = found[node.name]
    return ids


def counts(stage: Stage, node: Node, **control: Any) -> dict[str, int]:
    """What a node has refused, by kind."""
    with client_of(stage.url, Settings({}).copy(**control)) as client:
        found: Any = wait_for(lambda: client.inspect(node.name, timeout=2).stats(), 20, node.output)
    rejected: dict[str, int] = found[node.name]["control"]["rejected"]
    return rejected


def logged(stage: Stage) -> list[str]:
    """The ids in the broker's log."""
    log = RevokeLog(stage.url, Settings({}))
    try:
        return [task_id for task_id, _ in log.read().ids]
    finally:
        log.close()


def revoked(result: Any) -> bool:
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(15)
    return True


# No worker at all


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_a_task_revoked_while_no_worker_is_there_never_starts(stage: Stage, pool: str) -> None:
    one, two, three, stamped, prompt, free = (
        stage.send("nap", name, 0, headers=headers)
        for name, headers in (
            ("one", {}),
            ("two", {}),
            ("three", {}),
            ("stamped", {"stamped_headers": ["tenant"], "stamps": {"tenant": ["a", "b"]}}),
            ("prompt", {}),
            ("free", {"stamped_headers": ["tenant"], "stamps": {"tenant": "c"}}),
        )
    )
    one.revoke()
    assert GroupResult("g", [two]).revoke(reply=True, timeout=0.1) == []
    stage.app.control.terminate([three.id])
    stage.app.control.revoke_by_stamped_headers({"tenant": ["b", "x"]})
    argv = [sys.executable, "-m", "greenq", "-A", MODULE, "control", "revoke", prompt.id, "-t", "0.1"]
    done = run(argv, cwd=ROOT, env={**os.environ, "GREENQ_BROKER_URL": stage.url})
    assert done.returncode != 0, "nobody has answered"
    # Its neighbours cannot have told it: there are none.
    node = stage.worker(pool=pool, concurrency=1, options=["--without-mingle"])
    assert free.get(15) == "free"
    assert all(revoked(each) for each in (one, two, three, stamped, prompt))
    assert list(stage.ledger.starts()) == ["free"]
    assert known(stage, node) == [one.id, two.id, three.id, prompt.id]
    assert "4 ids and 2 stamps are revoked according to the broker." in node.output()


def test_what_runs_is_not_ended_by_the_log(stage: Stage) -> None:
    stage.app.control.terminate(["again"])
    node = stage.worker(concurrency=1, options=["--without-mingle"])
    assert known(stage, node) == ["again"]
    result = stage.send("nap", "running", 1.0)
    wait_for(lambda: stage.ledger.starts()["running"])
    with client_of(stage.url) as client:
        client.revoke(result.id)
    assert result.get(15) == "running"


def test_the_bounds_are_the_workers(stage: Stage) -> None:
    with client_of(stage.url) as client:
        client.revoke([f"id-{number}" for number in range(10)])
    bounded = stage.worker(env=settings(worker_revokes_max=3), options=["--without-mingle"])
    assert known(stage, bounded) == ["id-7", "id-8", "id-9"]
    bounded.kill()
    began = time.monotonic()
    expired = settings(worker_revoke_expires=0.001)
    assert known(stage, stage.worker(env=expired, options=["--without-mingle"])) == []
    # What was read expires when it would have if it had been heard.
    left = 12.0 - (time.monotonic() - began)
    brief = settings(worker_revoke_expires=left)
    with client_of(stage.url, Settings({}).copy(worker_revoke_expires=12.0)) as client:
        client.revoke("brief")
        sent = time.monotonic()
    node = stage.worker(env=brief, options=["--without-mingle"])
    assert "brief" in known(stage, node)
    wait_for(lambda: "brief" not in known(stage, node), 20)
    assert time.monotonic() - sent < left + 1.0


# Reconnecting


def test_a_task_revoked_while_the_only_worker_reconnects_never_starts(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.worker(concurrency=2)
    with Redis.from_url(stage.url) as client:
        held = away = None
        for number in range(20):
            held = stage.send("nap", f"held-{number}", 0, countdown=2.0)
            fresh = f"fresh-{number}"
            wait_for(client.pubsub_numpat)
            client.client_kill_filter(_type="pubsub")
            stage.app.control.revoke([held.id, fresh])
            if client.pubsub_numpat():
                continue  # it was quicker; only a revoke that nobody heard says anything
            away = fresh
            # All it has is cut, and what was revoked comes to the queue before it is back.
            mine = client.client_id()
            for connection in client.client_list(_type="normal"):
                if int(connection["id"]) != mine:
                    client.client_kill_filter(_id=connection["id"])
            late = stage.send("nap", fresh, 0, task_id=fresh)
            break
        assert held is not None
        assert away is not None, "the worker is never away for long enough"
    assert revoked(late)
    assert revoked(held)
    assert stage.send("nap", "after", 0).get(15) == "after"
    assert "held-" not in "".join(stage.ledger.starts())
    assert away not in stage.ledger.starts()


def test_nothing_is_fetched_before_the_log_was_read(stage: Stage) -> None:
    # As many as make reading take a while, and what is to be stopped is read last.
    first = stage.send("nap", "first", 0)
    first.revoke()
    for _ in range(2):
        stage.app.control.revoke([f"{time.monotonic_ns()}-{number}" for number in range(9_000)])
    node = stage.worker(options=["--without-mingle"])
    assert revoked(first)
    assert not stage.ledger.starts()
    assert len(known(stage, node)) == 18_001


# Celery's clients, and commands for some only


def test_what_celerys_client_revokes_is_kept_by_a_worker_that_heard_it(stage: Stage) -> None:
    celery = stage.url.startswith("redis")  # its sqlite:// is another thing
    with client_of(stage.url) as client:
        node = stage.worker(concurrency=2)
        if celery:
            asker = Celery("asker", broker=stage.url, set_as_current=False)
            asker.control.revoke(["theirs"])
            asker.control.revoke_by_stamped_headers({"tenant": "a"})
            asker.control.revoke(["for one"], destination=[node.name])
            asker.close()
        else:
            stranger(client, {"task_id": ["theirs"]})
            client.broadcast("revoke", {"task_id": "for one"}, destination=node.name)
        client.revoke("some", pattern="w*", matcher="glob")
        client.revoke("own")
        wait_for(lambda: {"theirs", "own"} <= set(logged(stage)))
        wait_for(lambda: {"theirs", "own", "for one", "some"} <= set(known(stage, node)))
    node.term()
    assert node.wait(15) == 0
    assert sorted(logged(stage)) == ["own", "theirs"]
    stamped = {"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}}
    sent = [stage.send("nap", "theirs", 0, task_id="theirs")]
    sent += [stage.send("nap", "stamped", 0, headers=stamped)] if celery else []
    again = stage.worker()
    assert all(revoked(each) for each in sent)
    assert sorted(known(stage, again)) == ["own", "theirs"]
    assert not stage.ledger.starts()


def stranger(client: Any, arguments: dict[str, Any]) -> None:
    """A revoke of a client that keeps nothing in the broker."""
    with client._mailboxes.lent(lambda mailbox: mailbox.send(command_body("revoke", arguments), 0.0)):
        return


def test_of_a_fleet_nobody_writes_what_the_sender_has_written(redis_stage: Stage) -> None:
    stage = redis_stage
    nodes = [stage.worker() for _ in range(2)]
    with Redis.from_url(stage.url) as client:
        client.config_resetstat()
        stage.app.control.revoke("own")
        wait_for(lambda: all("own" in known(stage, node) for node in nodes))
        for node in nodes:
            node.term()
            assert node.wait(15) == 0
        ((_, score),) = client.zrange("greenq.revoked.celery.ids", 0, -1, withscores=True)
        added = client.info("commandstats")
    assert logged(stage) == ["own"]
    assert score > 0
    # Nothing else trims by rank.
    assert added["cmdstat_zremrangebyrank"]["calls"] == 1


# Who may


def test_a_worker_with_keys_obeys_only_what_is_signed(stage: Stage) -> None:
    signing = Settings({}).copy(worker_control_keys=NEW)
    with client_of(stage.url) as client, client_of(stage.url, signing) as signer:
        client.revoke(["unsigned"])
        signer.revoke(["signed"])
    log = RevokeLog(stage.url, Settings({}).copy(worker_control_keys={"new": "another secret of many more"}))
    log.append(Revoked(["forged"], [("tenant", "a")]))
    log.close()
    stamped = {"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}}
    sent = [stage.send("nap", name, 0, task_id=name, headers=stamped) for name in ("unsigned", "forged")]
    signed = stage.send("nap", "signed", 0, task_id="signed")
    node = stage.worker(env=settings(worker_control_keys=NEW))
    assert revoked(signed)
    assert [each.get(15) for each in sent] == ["unsigned", "forged"]
    assert known(stage, node, worker_control_keys=NEW) == ["signed"]
    assert counts(stage, node, worker_control_keys=NEW) == {"log_unsigned": 1, "log_signature": 2}
    assert "passed over (log_signature: 2, log_unsigned: 1)" in node.output()


@pytest.mark.parametrize(
    ("chosen", "obeys"),
    [
        ({"worker_control_profile": "standard"}, ("id", "stamp")),
        ({"worker_control_profile": "read"}, ()),
        ({"worker_control_profile": "off"}, ()),
        ({"worker_control_allow": ["ping", "revoke"]}, ("id",)),
        ({"worker_control_allow": ["ping", "revoke_by_stamped_headers"]}, ("stamp",)),
    ],
)
def test_the_log_is_obeyed_where_the_command_would_be(
    redis_stage: Stage, chosen: dict[str, Any], obeys: tuple[str, ...]
) -> None:
    stage = redis_stage
    stage.app.control.revoke("id")
    stage.app.control.revoke_by_stamped_headers({"tenant": "a"})
    stage.send("nap", "id", 0, task_id="id")
    stage.send("nap", "stamp", 0, headers={"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}})
    stage.worker(concurrency=1, env=settings(**chosen))
    assert stage.send("nap", "free", 0).get(15) == "free"
    assert set(stage.ledger.starts()) == {"free", "id", "stamp"} - set(obeys)


# What may be wrong with the log


def test_what_is_no_entry_is_counted_once_and_nobody_minds(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.app.control.revoke("fine")
    with Redis.from_url(stage.url) as client:
        junk = {b"not json": 1e15, b"\xff\xfe": 2e15, b"[" * 10_000: 3e15, b"[5]": 4e15, b"x" * 10**6: float("inf")}
        client.zadd("greenq.revoked.celery.ids", junk)
        node = stage.worker()
        assert known(stage, node) == ["fine"]
        assert counts(stage, node) == {"log_shape": 5}
        assert "Traceback" not in node.output()
        stage.app.control.revoke("another")
        assert client.zcard("greenq.revoked.celery.ids") == 2, "what nobody can have written in time is gone"


def test_a_log_that_cannot_be_used_keeps_no_revoke_from_who_listens(
    redis_stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = redis_stage
    with Redis.from_url(stage.url) as client:
        client.set("greenq.revoked.celery.ids", "of somebody else")
        node = stage.worker()
        held = stage.send("nap", "held", 0, countdown=3600)
        with caplog.at_level(logging.WARNING):
            assert stage.app.control.revoke(held.id, reply=True, timeout=5, limit=1)
        assert "cannot be kept for others" in caplog.text
        assert "WRONGTYPE" in caplog.text
        assert revoked(held)
        node.wait_output("cannot be read from the broker")
        # The worker goes on trying what the sender could not do.
        node.wait_output("log of revokes: .*WRONGTYPE")
        client.delete("greenq.revoked.celery.ids")
        wait_for(lambda: logged(stage) == [held.id], 20)
    assert stage.send("add", 1, 2).get(10) == 3
    assert "Traceback" not in node.output()


def test_a_prefix_is_kept_to(redis_stage: Stage) -> None:
    stage = redis_stage
    prefix = {"broker_transport_options": {"global_keyprefix": "p:"}}
    stage.app.conf.update(prefix)
    waiting = stage.send("nap", "waiting", 0)
    waiting.revoke()
    with Redis.from_url(stage.url) as client:
        assert list(client.scan_iter("*revoked*")) == [b"p:greenq.revoked.celery.ids"]
    stage.worker(env=settings(**prefix))
    assert revoked(waiting)
    assert not stage.ledger.starts()


# Brokers without a log


@pytest.mark.parametrize("broker", ["rabbitmq", "memory"])
def test_other_brokers_go_without(broker: str, request: pytest.FixtureRequest) -> None:
    url: str = "memory://" if broker == "memory" else request.getfixturevalue("rabbitmq_url")
    with listening(url) as ear, client_of(url) as client:
        client.revoke(["a"])
        client.revoke_by_stamped_headers({"tenant": "b"})
        wait_for(lambda: ear.panel.revokes.ids() == ["a"] and ear.panel.revokes.stamps() == {"tenant": ["b"]})
        assert ear.listener.hearing.rejected == {}


def test_on_rabbitmq_a_revoke_that_nobody_heard_is_lost_unless_a_neighbour_has_it(
    rabbitmq_url: str, make_stage: Callable[[str], Stage], tmp_path: Path
) -> None:
    stage = make_stage(rabbitmq_url)
    lost = stage.send("nap", "lost", 0)
    lost.revoke()
    stage.worker(options=["-S", str(tmp_path / "state")])
    assert lost.get(15) == "lost"
    kept = stage.send("nap", "kept", 0, queue="later")
    assert kept.revoke(reply=True, timeout=5, limit=1)
    second = stage.worker(options=["-Q", "later"])
    assert revoked(kept)
    assert "according to the broker" not in second.output()
