"""Revoked tasks: what waits leaves at once, what comes later never starts, and who waits for a result learns it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.canvas import StampingVisitor
from celery.exceptions import TaskRevokedError as CeleryRevokedError
from redis import Redis

from greenq.app.results import AsyncResult, GroupResult
from greenq.exceptions import TaskRevokedError
from tests.integration.conftest import Stage
from tests.support.node import ROOT, Node
from tests.support.processes import ended, run, wait_for

MODULE = "tests.support.worker_tasks"


def asked(stage: Stage, name: str, node: Node) -> Any:
    """What one inspect command of one node says."""
    found = wait_for(lambda: getattr(stage.app.control.inspect(node.name, timeout=5), name)(), 20, node.output)
    return found[node.name]


def ids_in(stage: Stage, node: Node) -> set[str]:
    """The ids of everything that the node holds and that does not run."""
    scheduled = [entry["request"] for entry in asked(stage, "scheduled", node)]
    return {info["id"] for info in [*scheduled, *asked(stage, "reserved", node)]}


def discarded(node: Node, task_id: str) -> int:
    """How often the node's log says that a task was discarded."""
    return len(re.findall(rf"Discarding revoked task: [\w.]+\[{re.escape(task_id)}\]", node.output()))


def revoked(result: Any, timeout: float = 10) -> bool:
    """Does the result say that the task was revoked?"""
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout)
    return True


def test_what_waits_leaves_memory_and_the_broker_at_once_with_one_outcome(stage: Stage) -> None:
    node = stage.worker(concurrency=2)
    stage.app.control.rate_limit(f"{MODULE}.limited", "1/h", reply=True, timeout=5, limit=1)
    held = stage.send("nap", "held", 0, countdown=3600)
    ready = stage.send("nap", "ready", 0, countdown=1.5)
    limited = [stage.send("limited", f"l{number}") for number in range(3)]
    running = [stage.send("nap", f"r{number}", 5) for number in range(2)]
    waiting = {ready.id, held.id, limited[2].id}
    wait_for(lambda: waiting - {held.id} <= {info["id"] for info in asked(stage, "reserved", node)})
    assert waiting <= ids_in(stage, node)
    began = time.monotonic()
    (reply,) = stage.app.control.revoke(sorted(waiting), reply=True, timeout=5, limit=1)
    assert "flagged as revoked" in reply[node.name]["ok"]
    wait_for(lambda: not waiting & ids_in(stage, node), 2)
    assert revoked(ready)
    assert revoked(held)
    assert revoked(limited[2])
    assert time.monotonic() - began < 3, "long before their time"
    for task_id in waiting:
        assert discarded(node, task_id) == 1
    assert [each.get(20) for each in running] == ["r0", "r1"]
    # A broker that still had them would give them to the next worker.
    node.term()
    assert node.wait(15) == 0
    after = stage.worker()
    assert stage.send("nap", "after", 0).get(15) == "after"
    assert not waiting & ids_in(stage, after)
    assert {"ready", "held", "l2"}.isdisjoint(stage.ledger.starts())


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_a_revoke_is_answered_at_once_while_tasks_compute_and_keeps_what_waits_from_starting(
    redis_stage: Stage, pool: str
) -> None:
    stage = redis_stage
    for number in range(300):  # so short that many more are fetched than there are slots
        stage.send("add", number, 1)
    busy = stage.send("compute", "busy", 2.5)
    waiting = [stage.send("nap", f"n{number}", 0) for number in range(3)]
    node = stage.worker(pool=pool, concurrency=1)
    wait_for(lambda: stage.ledger.starts()["busy"])
    there = ids_in(stage, node)
    held = [number for number, each in enumerate(waiting) if each.id in there]
    assert held, "the next ones have been fetched already; how many depends on how fast the short ones went"
    victim = waiting[held[0]]
    began = time.monotonic()
    replies = victim.revoke(reply=True, timeout=5, destination=node.name)
    assert time.monotonic() - began < 0.5
    assert replies == [{node.name: {"ok": f"tasks {{'{victim.id}'}} flagged as revoked"}}]
    assert not stage.ledger.dones()["busy"], "the task was to compute all the while"
    assert revoked(victim)
    others = {f"n{number}": each for number, each in enumerate(waiting) if each is not victim}
    assert [each.get(15) for each in (*others.values(), busy)] == [*others, "busy"]
    assert not stage.ledger.starts()[f"n{held[0]}"]
    assert discarded(node, victim.id) == 1


def test_a_task_that_expires_while_it_waits_for_a_slot_does_not_start(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker(concurrency=1)
    late = stage.send("nap", "late", 0, countdown=0.8, expires=1.5)
    busy = stage.send("nap", "busy", 2.5)
    wait_for(lambda: late.id in {info["id"] for info in asked(stage, "reserved", node)})
    with pytest.raises(TaskRevokedError, match="expired"):
        late.get(10)
    assert busy.get(10) == "busy"
    assert not stage.ledger.starts()["late"]


def test_who_waits_for_a_task_no_worker_has_learns_of_its_end(stage: Stage) -> None:
    first, second = (stage.worker(concurrency=1) for _ in range(2))
    far = stage.send("nap", "far", 0, queue="nobody")
    began = time.monotonic()
    far.revoke()
    assert revoked(far)
    assert time.monotonic() - began < 2
    # A finished task keeps its result, and so does one that runs somewhere.
    done = stage.send("nap", "done", 0)
    assert done.get(10) == "done"
    failed = stage.send("fail", "so be it")
    with pytest.raises(ValueError, match="so be it"):
        failed.get(10)
    running = stage.send("nap", "running", 2.0)
    wait_for(lambda: stage.ledger.starts()["running"])
    stage.app.control.revoke([done.id, failed.id, running.id], reply=True, timeout=5, limit=2)
    assert AsyncResult(running.id, stage.app).get(10) == "running"
    fresh = AsyncResult[Any](failed.id, stage.app)
    assert (AsyncResult[Any](done.id, stage.app).state, fresh.state) == ("SUCCESS", "FAILURE")
    assert first.running
    assert second.running


def test_celerys_client_learns_it_too(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker(concurrency=1)
    celery = Celery("asker", broker=stage.url, backend=stage.backend, set_as_current=False)
    far = celery.send_task(f"{MODULE}.nap", ["far", 0], queue="nobody")
    held = celery.send_task(f"{MODULE}.nap", ["held", 0], countdown=3600)
    wait_for(lambda: held.id in ids_in(stage, node))
    celery.control.revoke([far.id, held.id], reply=True, timeout=5, limit=1)
    for result in (far, held):
        with pytest.raises(CeleryRevokedError, match="revoked"):
            result.get(timeout=10)
    assert celery.AsyncResult(far.id).children is None
    done = celery.send_task(f"{MODULE}.add", [2, 3])
    assert done.get(timeout=10) == 5
    done.revoke()
    node.wait_output(rf"1 ids are revoked: {done.id}")
    assert celery.AsyncResult(done.id).get(timeout=5) == 5
    celery.close()


def test_a_group_is_revoked_in_one_message(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker(concurrency=1)
    sent = [stage.send("nap", f"g{number}", 0, countdown=3600) for number in range(5)]
    group = GroupResult("g", sent)
    replies = group.revoke(reply=True, timeout=5, limit=1)
    assert replies is not None
    assert [list(reply) for reply in replies] == [[node.name]]
    assert all(revoked(each) for each in group)
    assert re.findall(r"(\d+) ids are revoked", node.output()) == ["5"]
    assert GroupResult[Any]("empty", []).revoke(reply=True) == []


def with_stamps(**stamps: Any) -> dict[str, Any]:
    """The headers of a stamped message (wire.md 5.1)."""
    return {"stamped_headers": list(stamps), "stamps": stamps}


def test_stamped_tasks_are_revoked_and_ended(stage: Stage) -> None:
    node = stage.worker(concurrency=4)
    control, many = stage.app.control, with_stamps(tenant=["a", "b"], n=5)
    held = stage.send("nap", "held", 0, countdown=3600, headers=many)
    runs = stage.send("nap", "runs", 30, headers=many)
    other = stage.send("nap", "other", 1.0, headers=with_stamps(tenant="c"))
    wait_for(lambda: {"runs", "other"} <= set(stage.ledger.starts()) and held.id in ids_in(stage, node))
    flagged = control.revoke_by_stamped_headers({"tenant": ["a", "x"]}, reply=True, timeout=5, limit=1)
    assert flagged == [
        {node.name: {"ok": "headers {'tenant': ['a', 'x']} flagged as revoked, but not terminated"}}
    ]
    assert revoked(held)
    later = stage.send("nap", "later", 0, headers=many)
    assert revoked(later)
    assert discarded(node, held.id) == discarded(node, later.id) == 1
    assert not stage.ledger.dones()["runs"], "what runs goes on"

    nobody = control.revoke_by_stamped_headers({"tenant": "z"}, terminate=True, reply=True, timeout=5, limit=1)
    assert nobody == [{node.name: {"ok": "headers {'tenant': 'z'} were not terminated"}}]
    ended = control.revoke_by_stamped_headers({"n": "5"}, terminate=True, reply=True, timeout=5, limit=1)
    assert ended == [{node.name: {"ok": "headers defaultdict(<class 'set'>, {'n': {'5'}}) revoked"}}]
    with pytest.raises(TaskRevokedError, match="terminated"):
        runs.get(10)
    assert other.get(10) == "other"
    assert stage.send("nap", "plain", 0).get(10) == "plain"
    assert {"held", "later"}.isdisjoint(stage.ledger.starts())


@pytest.mark.parametrize("pool", ["eventlet", "prefork"])
def test_a_stamp_ends_what_runs_on_the_other_pools(redis_stage: Stage, pool: str) -> None:
    stage = redis_stage
    node = stage.worker(pool=pool, concurrency=2)
    runs = stage.send("nap", "runs", 30, headers=with_stamps(tenant="a"))
    plain = stage.send("nap", "plain", 1.5)
    wait_for(lambda: len(stage.ledger.starts()) == 2)
    (reply,) = stage.app.control.revoke_by_stamped_headers(
        {"tenant": "a"}, terminate=True, signal="KILL", reply=True, timeout=5, limit=1
    )
    assert reply == {node.name: {"ok": "headers defaultdict(<class 'set'>, {'tenant': {'a'}}) revoked"}}
    with pytest.raises(TaskRevokedError, match="terminated"):
        runs.get(10)
    assert plain.get(15) == "plain"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_stamps_of_celerys_canvas_are_revoked_by_celerys_client(
    broker: str, request: pytest.FixtureRequest, make_stage: Callable[[str], Stage]
) -> None:
    class Stamps(StampingVisitor):  # type: ignore[misc]
        def on_signature(self, *_sig: Any, **_headers: Any) -> dict[str, Any]:
            return {"tenant": ["a", "b"], "stamped_headers": ["tenant"]}

    stage = make_stage(request.getfixturevalue(f"{broker}_url"))
    node = stage.worker(concurrency=2)
    celery = Celery("stamper", broker=stage.url, backend="disabled://", set_as_current=False)
    held = celery.signature(f"{MODULE}.nap", args=("held", 0), countdown=3600)
    held.stamp(visitor=Stamps())
    sent = held.apply_async()
    celery.send_task(f"{MODULE}.nap", ["plain", 0], countdown=3600)
    wait_for(lambda: len(ids_in(stage, node)) == 2)
    (reply,) = celery.control.revoke_by_stamped_headers({"tenant": "b"}, reply=True, timeout=5, limit=1)
    assert reply == {node.name: {"ok": "headers {'tenant': 'b'} flagged as revoked, but not terminated"}}
    wait_for(lambda: len(ids_in(stage, node)) == 1)
    assert discarded(node, sent.id) == 1
    celery.close()


def test_stamps_are_revoked_from_the_prompt(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker()
    held = stage.send("nap", "held", 0, countdown=3600, headers=with_stamps(tenant="a=b", n=[1, 2]))
    wait_for(lambda: held.id in ids_in(stage, node))
    argv = [sys.executable, "-m", "greenq", "-A", MODULE, "control", "revoke_by_stamped_headers"]
    env = {**os.environ, "GREENQ_BROKER_URL": stage.url, "NO_COLOR": "1"}
    for words, code, said in (
        (["tenant=a"], 0, "headers {'tenant': 'a'} flagged as revoked, but not terminated"),
        (["tenant"], 0, "write header=value, not 'tenant'"),
        (["n=7", "tenant=a=b"], 0, "headers {'n': '7', 'tenant': 'a=b'} flagged as revoked"),
    ):
        assert held.id in ids_in(stage, node)
        done = run([*argv, *words], cwd=ROOT, env=env)
        assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert revoked(held)


@pytest.mark.parametrize("variable", ["CELERY_WORKER_REVOKES_MAX", "GREENQ_WORKER_REVOKES_MAX"])
def test_the_bound_is_the_environments(redis_stage: Stage, variable: str) -> None:
    node = redis_stage.worker(env={variable: "3"})
    ids = [str(uuid4()) for _ in range(5)]
    redis_stage.app.control.revoke(ids, reply=True, timeout=5, limit=1)
    assert asked(redis_stage, "revoked", node) == ids[2:]


def test_a_bound_that_makes_no_sense_is_a_mistake_of_the_configuration(redis_stage: Stage, tmp_path: Path) -> None:
    for value, said in (("0", "worker_revokes_max"), ("many", "CELERY_WORKER_REVOKES_MAX: expected a whole number")):
        env = {"GREENQ_BROKER_URL": redis_stage.url, "CELERY_WORKER_REVOKES_MAX": value}
        node = Node(MODULE, cwd=tmp_path, env=env, name=f"wrong-{value}")
        with ended(node):
            assert node.wait(15) == 2
        assert said in node.output()


def test_a_flood_of_revokes_is_bounded_and_slows_nothing_down_for_long(redis_stage: Stage) -> None:
    stage = redis_stage
    node = stage.worker(concurrency=10)
    held = [stage.send("nap", f"h{number}", 0, countdown=3600) for number in range(200)]
    wait_for(lambda: len(asked(stage, "scheduled", node)) == 200)
    for _ in range(6):
        stage.app.control.revoke([str(uuid4()) for _ in range(10_000)])
    stage.app.control.revoke([each.id for each in held[:100]], reply=True, timeout=10, limit=1)
    wait_for(lambda: len(asked(stage, "scheduled", node)) == 100)
    known = asked(stage, "revoked", node)
    assert len(known) == 50_000
    assert {each.id for each in held[:100]} <= set(known)
    assert stage.send("add", 1, 2).get(10) == 3


def test_a_revoke_while_a_worker_reconnects_is_learned_from_a_neighbour(redis_stage: Stage) -> None:
    stage = redis_stage
    near, far = stage.worker(), stage.worker()
    known = stage.app.control

    def cut() -> None:
        with Redis.from_url(stage.url) as client:
            for connection in client.client_list(_type="pubsub"):
                client.client_kill_filter(_id=connection["id"])

    cut()
    # Sent to one alone, as if the other had not been there to hear it.
    wait_for(lambda: known.revoke("meanwhile", destination=near.name, reply=True, timeout=0.5))
    cut()
    wait_for(lambda: known.inspect(far.name, timeout=2).revoked() == {far.name: ["meanwhile"]})
    assert far.output().count("mingle: in step") >= 2
    assert near.running
