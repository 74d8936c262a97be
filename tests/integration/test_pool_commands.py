"""Commands that change a pool while it runs: size, limits, child processes; in a real worker of each pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from greenq import AsyncResult, GreenQ, TimeLimitExceeded
from greenq.control.client import Control
from greenq.pools import table
from tests.integration.conftest import Stage
from tests.support.control import client_of
from tests.support.node import Node
from tests.support.processes import wait_for

POOLS = sorted(table.POOLS)
SIZED = sorted(set(POOLS) - {"solo"})
WITHOUT_CHILDREN = sorted(set(POOLS) - {"prefork"})

PROJECT = """
from greenq import GreenQ
app = GreenQ("proj", worker_pool_restarts=True, include=["proj_tasks"])
"""
VERSION = """
from proj import app

@app.task(name="version")
def version():
    return {version}
"""
NEW = """
import os
from proj import app

@app.task(name="brand.new", rate_limit="100/s")
def brand_new():
    return os.getpid()
"""


class Asking:
    """Commands to one node, one reply each."""

    def __init__(self, client: Control, node: Node) -> None:
        self._client = client
        self.node = node

    def __call__(self, name: str, **arguments: Any) -> Any:
        replies = self._client.broadcast(name, arguments, self.node.name, reply=True, limit=1, timeout=5)
        return replies[0][self.node.name]  # type: ignore[index]

    def pool(self) -> dict[str, Any]:
        """The pool object of stats."""
        found: dict[str, Any] = self("stats")["pool"]
        return found


Ask = Callable[..., Asking]


@pytest.fixture
def ask_on() -> Iterator[Callable[[str, Node], Asking]]:
    clients: list[Control] = []

    def make(url: str, node: Node) -> Asking:
        clients.append(client_of(url))
        return Asking(clients[-1], node)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def worker(redis_stage: Stage, ask_on: Callable[[str, Node], Asking]) -> Ask:
    """A worker on Redis, and a way to ask it."""
    return lambda **options: ask_on(redis_stage.url, redis_stage.worker(**options))


def wait_running(stage: Stage, count: int) -> None:
    wait_for(lambda: len(stage.ledger.running()) == count, 15, lambda: f"{count} running: {stage.ledger.running()}")


@pytest.mark.parametrize("pool", SIZED)
def test_a_grown_pool_runs_more_at_once_and_a_shrunk_one_less(redis_stage: Stage, worker: Ask, pool: str) -> None:
    ask = worker(pool=pool, concurrency=2)
    sent = redis_stage.send_many("nap", 7, 2.0)
    wait_running(redis_stage, 2)
    assert ask("pool_grow", n=2) == {"ok": "pool will grow"}
    wait_running(redis_stage, 4)
    stats = ask("stats")
    assert (stats["pool"]["max-concurrency"], stats["prefetch_count"]) == (4, 16)
    assert ask("pool_shrink", n=3) == {"ok": "pool will shrink"}
    assert ask("stats")["prefetch_count"] == 4
    wait_running(redis_stage, 1)
    wait_for(lambda: redis_stage.ledger.check(sent).ok == frozenset(sent), 30)
    assert not redis_stage.ledger.check(sent).restarted  # shrinking has interrupted none
    assert len(ask.pool().get("processes", [0])) == 1


def test_prefetch_follows_the_size_on_every_broker(stage: Stage, ask_on: Callable[[str, Node], Asking]) -> None:
    ask = ask_on(stage.url, stage.worker(concurrency=2))
    sent = stage.send_many("nap", 18, 1.0)
    wait_running(stage, 2)
    assert ask("pool_grow", n=8) == {"ok": "pool will grow"}
    wait_running(stage, 10)
    assert ask("stats")["prefetch_count"] == 40
    assert ask("pool_shrink", n=7) == {"ok": "pool will shrink"}
    assert ask("stats")["prefetch_count"] == 12
    wait_for(lambda: stage.ledger.check(sent).ok == frozenset(sent), 30)
    assert not stage.ledger.check(sent).restarted


@pytest.mark.parametrize("pool", SIZED)
def test_a_size_that_cannot_be_is_an_error_reply_and_changes_nothing(worker: Ask, pool: str) -> None:
    ask = worker(pool=pool, concurrency=2)
    most = 50_000 if pool != "prefork" else max(64, 32 * len(os.sched_getaffinity(0)))
    assert "it can shrink by 1, not by 100" in ask("pool_shrink", n=100)["error"]
    assert f"may make them {most} at most" in ask("pool_grow", n=most)["error"]
    assert "n must be at least 1, not 0" in ask("pool_grow", n=0)["error"]
    assert "n must be at least 1, not -3" in ask("pool_shrink", n=-3)["error"]
    assert "argument 'n' must be int, not 'x'" in ask("pool_grow", n="x")["error"]
    assert ask("autoscale", max=5) == {"error": "ValueError('Autoscale not enabled')"}
    stats = ask("stats")
    assert (stats["pool"]["max-concurrency"], stats["prefetch_count"]) == (2, 8)
    assert "autoscaler" not in stats
    assert ask("pool_shrink", n=1) == {"ok": "pool will shrink"}
    assert "it can shrink by 0, not by 1" in ask("pool_shrink")["error"]
    assert ask.pool()["max-concurrency"] == 1


def test_the_one_slot_of_solo_stays_one(worker: Ask) -> None:
    ask = worker(pool="solo", concurrency=1)
    for name in ("pool_grow", "pool_shrink"):
        assert ask(name)["error"].startswith("PoolCannot('the solo pool has exactly one slot: run more workers")
    assert ask.pool()["max-concurrency"] == 1


def test_a_busy_hub_accepts_what_makes_sense_and_refuses_the_rest_at_once(redis_stage: Stage, worker: Ask) -> None:
    ask = worker(pool="gevent", concurrency=2)
    redis_stage.send("compute", "long", 3.0)
    wait_running(redis_stage, 1)
    assert ask("pool_grow")["ok"].startswith("accepted: takes effect when tests.support.worker_tasks.compute[")
    assert "it can shrink by 1, not by 5" in ask("pool_shrink", n=5)["error"]
    assert ask.pool()["max-concurrency"] == 2
    wait_for(lambda: ask.pool()["max-concurrency"] == 3, 10)


@pytest.mark.parametrize("pool", POOLS)
def test_a_time_limit_counts_from_the_next_task_on(redis_stage: Stage, worker: Ask, pool: str) -> None:
    ask = worker(pool=pool, concurrency=1)
    name = "tests.support.worker_tasks.nap"
    before = redis_stage.send("nap", "before", 1.5)
    wait_running(redis_stage, 1)
    done = {"ok": "time limits set successfully"}
    assert ask("time_limit", task_name=name, hard=0.4) == done
    assert before.get(timeout=15) == "before"
    began = time.monotonic()
    with pytest.raises(TimeLimitExceeded):
        redis_stage.send("nap", "after", 30.0).get(timeout=15)
    assert time.monotonic() - began < 5
    assert ask("time_limit", task_name=name, soft=0.3, hard=20) == done
    with pytest.raises(Exception, match="0.3") as caught:
        redis_stage.send("nap", "soft", 30.0).get(timeout=15)
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"
    assert ask("time_limit", task_name=name) == done
    assert redis_stage.send("nap", "lifted", 0.6).get(timeout=15) == "lifted"


def test_time_limits_that_make_no_sense_are_an_error_reply(worker: Ask) -> None:
    ask = worker(pool="gevent", options=["--time-limit", "30", "--soft-time-limit=20"])
    name = "tests.support.worker_tasks.nap"
    assert ask.pool()["timeouts"] == [20.0, 30.0]
    assert ask("time_limit", task_name="nope", hard=1) == {"error": "unknown task"}
    refused = ask("time_limit", task_name=name, soft=3, hard=2)
    assert "the soft limit, 3 s, is above the hard one, 2 s" in refused["error"]
    assert "argument 'hard' must be float" in ask("time_limit", task_name=name, hard="abc")["error"]
    assert "needs the argument 'task_name'" in ask("time_limit", hard=1)["error"]


@pytest.mark.parametrize("pool", POOLS)
def test_the_limits_of_the_line_hold_for_every_task(redis_stage: Stage, worker: Ask, pool: str) -> None:
    ask = worker(pool=pool, concurrency=1, options=["--time-limit", "0.4"])
    assert ask.pool()["timeouts"] == [0, 0.4]
    with pytest.raises(TimeLimitExceeded):
        redis_stage.send("nap", "late", 30.0).get(timeout=15)


def test_children_are_replaced_after_as_many_tasks_as_the_line_says(redis_stage: Stage, worker: Ask) -> None:
    ask = worker(pool="prefork", concurrency=1, options=["--max-tasks-per-child", "2"])
    assert ask.pool()["max-tasks-per-child"] == 2
    first = ask.pool()["processes"]
    for number in range(3):
        assert redis_stage.send("add", number, 1).get(timeout=15) == number + 1
    wait_for(lambda: ask.pool()["processes"] not in ([], first), 10)


@pytest.mark.parametrize("whose", ["greenq", "celery"])
def test_both_clients_have_a_method_for_each(redis_stage: Stage, start_node: Callable[..., Node], whose: str) -> None:
    node = redis_stage.worker(pool="gevent", concurrency=2)
    scaling = redis_stage.worker(pool="gevent", concurrency=None, options=["--autoscale=5"])
    celery = Celery("asker", broker=redis_stage.url, set_as_current=False)
    with client_of(redis_stage.url) as ours:
        control: Any = ours if whose == "greenq" else celery.control
        here = {"destination": [node.name], "reply": True, "limit": 1, "timeout": 5}
        there = here | {"destination": [scaling.name]}
        name = "tests.support.worker_tasks.nap"
        limited = {"ok": "time limits set successfully"}
        assert control.time_limit(name, soft=1, hard=2, **here) == [{node.name: limited}]
        assert control.pool_grow(3, **here) == [{node.name: {"ok": "pool will grow"}}]
        assert control.pool_shrink(2, **here) == [{node.name: {"ok": "pool will shrink"}}]
        assert control.autoscale(8, 2, **there) == [{scaling.name: {"ok": "autoscale now max=8 min=2"}}]
        refused = {"error": "ValueError('Pool restarts not enabled')"}
        assert control.pool_restart(**here) == [{node.name: refused}]
        assert Asking(ours, node).pool()["max-concurrency"] == 3
    celery.close()


class Project:
    """An app in files that change while its worker runs."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.app = GreenQ("client", broker=url, backend=url)
        (folder / "proj.py").write_text(PROJECT)
        self.write(1)

    def write(self, version: object, module: str = "proj_tasks") -> None:
        """Change the code; its size too, for Python compares time in whole seconds and size."""
        text = VERSION.format(version=version) + "#" * int(time.monotonic() * 1000 % 5000)
        (self.folder / f"{module}.py").write_text(text)

    def call(self, name: str) -> Any:
        """The value of a task."""
        result: AsyncResult[Any] = self.app.send_task(name)
        return result.get(timeout=15)


@pytest.fixture
def project(tmp_path: Path, redis_url: str) -> Iterator[Project]:
    made = Project(tmp_path, redis_url)
    yield made
    made.app.close()


@pytest.fixture
def restarting(
    project: Project, start_node: Callable[..., Node], ask_on: Callable[[str, Node], Asking]
) -> Callable[[str], Asking]:
    """A worker of the project whose pool may be restarted."""
    env = {"GREENQ_BROKER_URL": project.url, "GREENQ_RESULT_BACKEND": project.url}
    return lambda pool: ask_on(project.url, start_node("proj", pool=pool, concurrency=1, env=env))


def test_a_restarted_pool_runs_the_new_code_and_knows_new_tasks(
    project: Project, restarting: Callable[[str], Asking]
) -> None:
    ask = restarting("prefork")
    assert project.call("version") == 1
    (child,) = ask.pool()["processes"]
    project.write(2)
    assert ask("pool_restart") == {"ok": "reload started"}
    wait_for(lambda: ask.pool()["processes"] not in ([], [child]), 10)
    assert project.call("version") == 2

    (project.folder / "brand.py").write_text(NEW)
    assert "brand.new" not in str(ask("registered"))
    assert ask("pool_restart", modules=["brand", "proj_tasks"], reload=True) == {"ok": "reload started"}
    # It is known here as soon as no child is asked that does not know it.
    wait_for(lambda: "brand.new [rate_limit=100/s]" in ask("registered"), 10)
    assert project.call("brand.new") in ask.pool()["processes"]

    # What was brought in by one restart is there after the next, in the parent and in its children.
    project.write(3)
    assert ask("pool_restart") == ask("pool_restart", reload=True) == {"ok": "reload started"}
    wait_for(lambda: project.call("version") == 3, 10)
    assert project.call("brand.new") in ask.pool()["processes"]


def test_a_reloaded_app_brings_its_new_tasks_along(project: Project, restarting: Callable[[str], Asking]) -> None:
    ask = restarting("prefork")
    (project.folder / "proj.py").write_text(PROJECT + NEW.replace("from proj import app\n", ""))
    project.write(2)
    assert ask("pool_restart", modules=["proj", "proj_tasks"], reload=True) == {"ok": "reload started"}
    wait_for(lambda: "brand.new [rate_limit=100/s]" in ask("registered"), 10)
    assert project.call("brand.new") in ask.pool()["processes"]
    assert project.call("version") == 2


def test_a_module_that_cannot_be_imported_restarts_nothing(
    project: Project, restarting: Callable[[str], Asking]
) -> None:
    ask = restarting("prefork")
    processes = ask.pool()["processes"]
    names = ask("registered")
    assert "No module named 'nosuch'" in ask("pool_restart", modules=["nosuch"])["error"]
    (project.folder / "good.py").write_text(NEW)
    project.write("undefined")
    (project.folder / "bad.py").write_text("import sys\nsys.exit(3)\n")
    reply = ask("pool_restart", modules=["good", "proj_tasks", "bad"], reload=True)
    assert "module bad cannot be imported: SystemExit: 3; nothing has been restarted" in reply["error"]
    assert ask("registered") == names
    assert ask.pool()["processes"] == processes
    assert project.call("version") == 1
    assert "is not the name of a module" in ask("pool_restart", modules=["../x"])["error"]


@pytest.mark.parametrize("pool", WITHOUT_CHILDREN)
def test_a_pool_without_children_says_that_it_cannot_be_restarted(
    restarting: Callable[[str], Asking], pool: str
) -> None:
    ask = restarting(pool)
    error = f"PoolCannot('the {pool} pool has no child processes to restart: restart the worker')"
    assert ask("pool_restart", modules=["os"], reload=True) == {"error": error}


def test_a_restart_has_to_be_allowed(worker: Ask) -> None:
    ask = worker(pool="prefork", concurrency=1)
    assert ask("pool_restart") == {"error": "ValueError('Pool restarts not enabled')"}
