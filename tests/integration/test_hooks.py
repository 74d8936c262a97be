"""Hooks in a real worker: a connection for each child, around each task, and at every kind of stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from greenq import AsyncResult, TaskRevokedError, TimeLimitExceeded
from greenq.pools import table
from tests.support import hooked_tasks
from tests.support.hooked_tasks import BROKEN, FAILING, HANGING, NOTES
from tests.support.node import Node
from tests.support.processes import ended, wait_for

POOLS = sorted(table.POOLS)
GREEN = [name for name in POOLS if name in {"gevent", "eventlet"}]
SIZE = {"solo": 1, "prefork": 2}

Note = dict[str, Any]


class Scene:
    """A worker of tests.support.hooked_tasks, what its hooks wrote down, and a client."""

    def __init__(self, url: str, folder: Path) -> None:
        self._env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": url, NOTES: str(folder / "notes")}
        self._folder = folder
        self.app = hooked_tasks.app
        self.app.conf.update({"broker_url": url, "result_backend": url}, source="the test")

    def node(
        self, pool: str, env: dict[str, str] | None = None, *, size: int | None = None, loglevel: str = "INFO"
    ) -> Node:
        """A worker, not started."""
        return Node(
            "tests.support.hooked_tasks",
            cwd=self._folder,
            pool=pool,
            concurrency=size or SIZE.get(pool, 4),
            env=self._env | (env or {}),
            loglevel=loglevel,
        )

    def notes(self, *moments: str) -> list[Note]:
        """What was written down so far, of these moments or of all."""
        found = hooked_tasks.notes(self._folder / "notes")
        return [each for each in found if not moments or each["moment"] in moments]

    def wait(self, moment: str, count: int = 1) -> list[Note]:
        """The notes of this moment, once there are `count`."""
        wait_for(lambda: len(self.notes(moment)) >= count, 15, lambda: f"{count} {moment} in {self.notes()}")
        return self.notes(moment)


@pytest.fixture
def scene(redis_url: str, tmp_path: Path) -> Any:
    made = Scene(redis_url, tmp_path)
    yield made
    made.app.close()


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def get(results: list[AsyncResult[Any]]) -> list[Any]:
    return [result.get(timeout=20) for result in results]


def test_a_child_has_its_connection_before_its_first_task_and_until_after_its_last(scene: Scene, pool: str) -> None:
    with scene.node(pool) as node:
        assert get([hooked_tasks.query.delay(n) for n in range(30)]) == list(range(30))
        node.term()
        assert node.wait() == 0
    notes = scene.notes()
    (began,), (stopped,) = scene.notes("worker_start"), scene.notes("worker_stop")
    assert notes[0] is not None
    assert notes[0]["moment"] == "worker_start"
    assert notes[-1]["moment"] == "worker_stop"
    assert began["pid"] == stopped["pid"] == node.pid
    assert (began["pool"], began["concurrency"], began["hostname"]) == (pool, SIZE.get(pool, 4), node.name)
    assert stopped["queues"] == ["celery"]
    children = {each["pid"] for each in scene.notes("child_start")}
    indexes = [each["index"] for each in scene.notes("child_start")]
    if pool == "prefork":
        assert node.pid not in children
        assert sorted(indexes) == [1, 2]
    else:
        assert children == {node.pid}
        assert indexes == [0]
    for child in children:
        moments = [each["moment"] for each in notes if each["pid"] == child and "worker" not in each["moment"]]
        assert moments[0] == "child_start"
        assert moments[-1] == "child_stop"
        assert moments.count("child_start") == moments.count("child_stop") == 1
    assert {each["pid"] for each in scene.notes("runs")} <= children


def test_the_hooks_around_a_task_share_its_context_and_nobody_elses(scene: Scene, pool: str) -> None:
    with scene.node(pool):
        sent = [hooked_tasks.who.apply_async(task_id=f"id{n}") for n in range(20)]
        assert get(sent) == [f"nobody+id{n}" for n in range(20)]
        after = scene.wait("after_task", 20)
    assert {(each["task"], each["tenant"]) for each in after} == {(f"id{n}", f"nobody+id{n}") for n in range(20)}
    assert all(each["current"] for each in scene.notes("before_task"))


def test_every_run_of_user_code_ends_in_exactly_one_after_task(scene: Scene, pool: str) -> None:
    expected = {
        "query": [("SUCCESS", "NoneType")],
        "fail": [("FAILURE", "ValueError")],
        "left": [("FAILURE", "SystemExit")],
        "ignored": [("IGNORED", "Ignore")],
        "rejected": [("REJECTED", "Reject")],
        "retried": [("RETRY", "Retry"), ("SUCCESS", "NoneType")],
        "autoretried": [("RETRY", "OSError"), ("FAILURE", "OSError")],
        "unsendable": [("FAILURE", "EncodeError")],
    }
    with scene.node(pool) as node:
        for name in expected:
            scene.app.send_task(f"tests.support.hooked_tasks.{name}", (5,) if name == "query" else (), task_id=name)
        # None of these calls user code.
        scene.app.send_task("tests.support.hooked_tasks.nothing", task_id="unknown")
        hooked_tasks.who.apply_async(task_id="expired", expires=-1)
        scene.wait("after_task", 10)
        node.term()
        assert node.wait() == 0
    found: dict[str, list[tuple[str, str]]] = {}
    for each in scene.notes("after_task"):
        found.setdefault(each["task"], []).append((each["state"], each["error"]))
    assert found == expected
    values = {each["task"]: each["value"] for each in scene.notes("after_task") if each["state"] == "SUCCESS"}
    assert values == {"query": 5, "retried": "second"}
    before = [each["task"] for each in scene.notes("before_task")]
    assert sorted(before) == sorted(each["task"] for each in scene.notes("after_task"))


def test_a_run_cut_short_has_its_after_task_too(scene: Scene, pool: str) -> None:
    with scene.node(pool) as node:
        with pytest.raises(TimeLimitExceeded):
            hooked_tasks.overdue.apply_async(task_id="overdue").get(timeout=20)
        terminated = hooked_tasks.nap.apply_async((30,), task_id="terminated")
        scene.wait("naps")
        terminated.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            terminated.get(timeout=20)
        hooked_tasks.nap.apply_async((30,), task_id="cold")
        scene.wait("naps", 2)
        node.signal(signal.SIGQUIT)
        assert node.wait() == 0
    after = {each["task"]: (each["state"], each["error"]) for each in scene.notes("after_task")}
    expected = {"overdue": ("FAILURE", "HardTimeLimit"), "cold": ("CANCELLED", "ColdStop")}
    if pool != "prefork":  # there the process itself is ended, and nothing of it runs any more
        expected["terminated"] = ("REVOKED", "Killed")
    assert after == expected
    moments = [each["moment"] for each in scene.notes()]
    assert moments[-2:] == ["child_stop", "worker_stop"]


def test_the_limits_of_a_task_hold_for_the_hook_before_it(scene: Scene, pool: str) -> None:
    with scene.node(pool, {HANGING: "before_task=20"}):
        began = time.monotonic()
        with pytest.raises(TimeLimitExceeded):
            hooked_tasks.overdue.delay().get(timeout=15)
        assert time.monotonic() - began < 5
        (after,) = scene.wait("after_task")
    assert (after["state"], after["error"]) == ("FAILURE", "HardTimeLimit")


@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_a_failing_hook_around_tasks_changes_nothing_and_is_logged_once(scene: Scene, pool: str, error: str) -> None:
    with scene.node(pool, {FAILING: f"before_task={error} after_task={error}"}) as node:
        assert get([hooked_tasks.query.delay(n) for n in range(100)]) == list(range(100))
        scene.wait("after_task", 100)
        node.term()
        assert node.wait() == 0
    for moment, name in (("before_task", "enter"), ("after_task", "leave")):
        text = f"The {moment} hook tests.support.hooked_tasks.{name} failed: {error}: {moment} is out of order"
        assert 1 <= node.output().count(text) <= (2 if pool == "prefork" else 1), "once in each process"
        assert len([each for each in scene.notes("raises") if each["at"] == moment]) == 100
    assert "in misbehave" in node.output()


@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_a_failing_worker_start_ends_the_worker_with_a_sentence(scene: Scene, pool: str, error: str) -> None:
    sent = hooked_tasks.who.delay()
    node = scene.node(pool, {FAILING: f"worker_start={error}"}, loglevel="WARNING")
    with ended(node):
        assert node.wait(20) == 1
    (line,) = node.output().strip().splitlines()
    sentence = f"the worker_start hook tests.support.hooked_tasks.begin failed: {error}: worker_start is out of order"
    assert line.startswith(f"greenq: {sentence} (")
    assert [each["moment"] for each in scene.notes()] == ["worker_start", "raises"]
    assert sent.state == "PENDING"
    with scene.node(pool):
        sent.get(timeout=20)


def test_a_worker_whose_first_child_is_unfit_ends_with_a_sentence(scene: Scene, pool: str) -> None:
    sent = hooked_tasks.who.delay()
    node = scene.node(pool, {FAILING: "child_start=ValueError"}, loglevel="WARNING")
    with ended(node):
        assert node.wait(20) != 0
    last = node.output().strip().splitlines()[-1]
    assert last.startswith("greenq: ")
    assert "the child_start hook tests.support.hooked_tasks.connect failed: ValueError: child_start is out of" in last
    moments = [each["moment"] for each in scene.notes()]
    assert (moments[0], moments[-1]) == ("worker_start", "worker_stop")
    assert "child_stop" not in moments
    assert sent.state == "PENDING"


def test_an_unfit_child_gets_no_task_and_another_is_tried(scene: Scene, tmp_path: Path) -> None:
    down = tmp_path / "down"
    with scene.node("prefork", {BROKEN: str(down)}, size=1) as node:
        running = hooked_tasks.nap.delay(30)
        scene.wait("naps")
        down.touch()
        running.revoke(terminate=True)
        waiting = hooked_tasks.query.delay(1)
        node.wait_output(
            r"did not come up: .*the child_start hook tests.support.hooked_tasks.connect failed: "
            r"ConnectionError: the database is down"
        )
        scene.wait("child_start", 3)
        assert not scene.notes("runs")
        down.unlink()
        assert waiting.get(timeout=20) == 1
        assert node.running


def test_stop_hooks_run_after_what_ran_has_ended(scene: Scene, pool: str) -> None:
    with scene.node(pool) as node:
        sent = hooked_tasks.nap.delay(1.0)
        scene.wait("naps")
        node.term()
        assert node.wait(20) == 0
        sent.get(timeout=5)
    moments = [each["moment"] for each in scene.notes()]
    assert moments.index("slept") < moments.index("child_stop") < moments.index("worker_stop")


@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_a_failing_stop_hook_is_logged_and_the_next_one_runs(scene: Scene, pool: str, error: str) -> None:
    with scene.node(pool, {FAILING: f"child_stop={error} worker_stop={error}"}) as node:
        assert get([hooked_tasks.query.delay(1)]) == [1]
        node.term()
        assert node.wait() == 0
    for moment, name in (("child_stop", "disconnect"), ("worker_stop", "end")):
        assert f"The {moment} hook tests.support.hooked_tasks.{name} failed: {error}: {moment}" in node.output()


def test_hooks_of_the_worker_may_send_tasks(scene: Scene, pool: str) -> None:
    with scene.node(pool, {"GREENQ_TEST_SENDING": "1"}) as node:
        assert scene.wait("value")[0]["text"] == "sent by worker_start"
        node.term()
        assert node.wait() == 0
    with scene.node(pool):
        assert scene.wait("value", 2)[1]["text"] == "sent by worker_stop"


@pytest.mark.parametrize("pool", GREEN)
def test_hooks_that_wait_on_a_green_pool_let_the_others_run(scene: Scene, pool: str) -> None:
    with scene.node(pool, {HANGING: "before_task=0.3 after_task=0.3"}, size=20):
        began = time.monotonic()
        get([hooked_tasks.who.delay() for _ in range(20)])
        assert time.monotonic() - began < 3, "one after the other they would take 12 s"


def test_a_child_stop_that_hangs_on_prefork_is_left_behind_soon(scene: Scene) -> None:
    with scene.node("prefork", {HANGING: "child_stop=100"}) as node:
        assert get([hooked_tasks.query.delay(1)]) == [1]
        node.term()
        assert node.wait(10) == 0
    assert scene.notes()[-1]["moment"] == "worker_stop"


@pytest.mark.slow
def test_a_stop_hook_that_hangs_is_left_behind_by_a_cold_stop(scene: Scene, pool: str) -> None:
    with scene.node(pool, {HANGING: "worker_stop=100"}) as node:
        node.term()
        scene.wait("worker_stop")
        node.signal(signal.SIGQUIT)
        assert node.wait(25) == 1
    assert "Leaving: a stop hook does not return" in node.output()


@pytest.mark.parametrize("moment", ["worker_start", "child_start"])
def test_ctrl_c_ends_a_start_hook_that_hangs(scene: Scene, pool: str, moment: str) -> None:
    node = scene.node(pool, {HANGING: f"{moment}=100"})
    with ended(node):
        scene.wait(moment)
        node.interrupt()
        assert node.wait(10) == 1
    inside = pool != "prefork" or moment == "worker_start"
    expected = f"the {moment} hook tests.support.hooked_tasks." if inside else "greenq: aborted"
    assert expected in node.output()
    assert "Traceback" not in node.output()


