"""--statedb: what was revoked stays so, whatever became of the worker, its file or its disk meanwhile."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from greenq.exceptions import TaskRevokedError
from tests.integration.conftest import Stage
from tests.support.node import Node
from tests.support.processes import wait_for

MODULE = "tests.support.worker_tasks"
# To whoever listens now: what is meant for all is in the broker's log too, and here only the file is to know it.
LISTENERS: dict[str, Any] = {"pattern": "*", "matcher": "glob"}


def worker(stage: Stage, path: Path, *options: str, **more: Any) -> Node:
    return stage.worker(options=["-S", str(path), *options], **more)


def revoke(stage: Stage, *ids: str, destination: str | None = None) -> None:
    """Revoke, and see the answer."""
    chosen = {"destination": destination} if destination else LISTENERS
    replies = stage.app.control.revoke(list(ids), reply=True, timeout=20, limit=1, **chosen)
    assert replies, "nobody answered"


def known(stage: Stage, node: Node) -> list[str]:
    found = wait_for(lambda: stage.app.control.inspect(node.name, timeout=5).revoked(), 20, node.output)
    ids: list[str] = found[node.name]
    return ids


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_an_answered_revoke_outlives_a_kill(redis_stage: Stage, tmp_path: Path, pool: str) -> None:
    stage = redis_stage
    path = tmp_path / "%n-%i.state"
    node = worker(stage, path, pool=pool, concurrency=1, name="keeper")
    held = stage.send("nap", "held", 0, countdown=3600)
    stamped = {"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}}
    revoke(stage, held.id, "one", "two")
    stage.app.control.revoke_by_stamped_headers({"tenant": "a"}, reply=True, timeout=5, limit=1, **LISTENERS)
    node.kill()
    late = stage.send("nap", "late", 0, headers=stamped)
    stage.send("nap", "again", 0, task_id="one")
    again = worker(stage, path, pool=pool, concurrency=1, name="keeper")
    assert known(stage, again) == [held.id, "one", "two"]
    with pytest.raises(TaskRevokedError):
        late.get(10)
    with pytest.raises(TaskRevokedError):
        stage.app.AsyncResult("one").get(10)
    assert stage.send("nap", "plain", 0).get(10) == "plain"
    assert {"held", "late", "again"}.isdisjoint(stage.ledger.starts())
    file = tmp_path / "keeper-0.state"
    assert file.stat().st_mode & 0o777 == 0o600
    # A warm stop writes it anew, and with it the clock.
    again.term()
    assert again.wait(15) == 0
    assert b'"clock":' in file.read_bytes()


def test_every_answered_revoke_is_there_however_the_worker_died(redis_stage: Stage, tmp_path: Path) -> None:
    stage, path = redis_stage, tmp_path / "state"
    answered: list[str] = []
    for number in range(4):
        node = worker(stage, path, name="keeper")
        assert known(stage, node) == answered
        timer = threading.Timer(random.uniform(0.05, 0.6), node.kill)
        timer.start()
        asking = stage.app.control
        while node.running:
            task_id = f"{number}-{uuid4()}"
            if asking.revoke(task_id, reply=True, timeout=0.5, limit=1, **LISTENERS):
                answered.append(task_id)
            else:
                # Nobody knows whether it was heard, but the next worker does.
                break
        timer.join()
        node.wait(5)
        again = worker(stage, path, name="keeper")
        heard = known(stage, again)
        assert heard[: len(answered)] == answered
        assert len(heard) <= len(answered) + 1
        answered = heard
        again.kill()
    assert len(answered) > 4
    assert [each.name for each in tmp_path.glob("state*")] == ["state"]


def test_what_has_expired_does_not_come_back(redis_stage: Stage, tmp_path: Path) -> None:
    env = {"CELERY_WORKER_REVOKE_EXPIRES": "2.5"}
    node = worker(redis_stage, tmp_path / "state", env=env, name="keeper")
    revoke(redis_stage, "old")
    began = time.monotonic()
    node.kill()
    again = worker(redis_stage, tmp_path / "state", env=env, name="keeper")
    assert known(redis_stage, again) == ["old"]
    revoke(redis_stage, "new")
    wait_for(lambda: known(redis_stage, again) == ["new"])
    assert time.monotonic() - began > 1.4, "the file knows whole seconds"
    again.kill()
    third = worker(redis_stage, tmp_path / "state", env=env, name="keeper")
    assert "old" not in known(redis_stage, third)


@pytest.mark.parametrize("what", ["garbage", "changed"])
def test_a_damaged_file_is_kept_aside_and_the_worker_starts_empty(
    redis_stage: Stage, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "state"
    node = worker(redis_stage, path, name="keeper")
    revoke(redis_stage, "one", "two")
    node.kill()
    content = path.read_bytes()
    damaged = os.urandom(300) if what == "garbage" else content.replace(b'"two"', b'"six"')
    path.write_bytes(damaged)
    again = worker(redis_stage, path, name="keeper")
    assert known(redis_stage, again) == []
    assert again.output().count("is damaged") == 1
    assert (tmp_path / "state.corrupt-1").read_bytes() == damaged
    revoke(redis_stage, "three")
    again.kill()
    assert known(redis_stage, worker(redis_stage, path, name="keeper")) == ["three"]


def test_what_cannot_be_a_state_file_stops_the_start_with_2(redis_stage: Stage, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    (tmp_path / "other").write_text("somebody's")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    first = worker(redis_stage, tmp_path / "shared", name="first")
    for path, said in (
        (str(directory), "cannot be used: Is a directory"),
        (str(tmp_path / "link"), "it is a symbolic link, which is not followed"),
        (str(tmp_path / "no" / "state"), "cannot be used: No such file or directory"),
        (str(tmp_path / "shared"), "another worker uses the state file"),
        ("%q.state", "unknown '%q' in the path"),
    ):
        options = ["-S", path]
        env = {"GREENQ_BROKER_URL": redis_stage.url}
        node = Node(MODULE, cwd=tmp_path, env=env, options=options, name=f"second{len(path)}")
        node.start()
        assert node.wait(15) == 2, node.output()
        assert said in node.output()
        assert "Traceback" not in node.output()
    assert (tmp_path / "other").read_text() == "somebody's"
    revoke(redis_stage, "one")
    assert known(redis_stage, first) == ["one"]


def test_a_full_disk_is_one_warning_and_the_file_is_whole_again_later(redis_stage: Stage, tmp_path: Path) -> None:
    stage, path = redis_stage, tmp_path / "state"
    node = worker(stage, path, name="keeper")
    revoke(stage, "before")
    # No file may grow beyond this: as of a full disk, the kernel takes part of a write and refuses the rest.
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    many = [str(uuid4()) for _ in range(1_000)]
    for start in range(0, 1_000, 100):
        revoke(stage, *many[start : start + 100])
    node.wait_output("cannot be written")
    assert known(stage, node) == ["before", *many]
    assert stage.send("add", 1, 2).get(10) == 3
    assert path.stat().st_size <= 20_000
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    node.wait_output("is written again", 15)
    assert node.output().count("cannot be written") == 1
    node.kill()
    assert known(stage, worker(stage, path, name="keeper")) == ["before", *many]


def test_the_file_of_many_revokes_stays_small_and_so_does_the_time_to_read_it(
    redis_stage: Stage, tmp_path: Path
) -> None:
    stage, path = redis_stage, tmp_path / "state"
    env = {"CELERY_WORKER_REVOKES_MAX": "1000"}
    node = worker(stage, path, env=env, name="keeper")
    for _ in range(20):
        last = [str(uuid4()) for _ in range(2_000)]
        revoke(stage, *last)
    assert path.stat().st_size < 600_000
    node.kill()
    again = worker(stage, path, env=env, name="keeper")
    assert known(stage, again) == last[1_000:]
    again.term()
    assert again.wait(15) == 0
    assert path.stat().st_size < 60_000


def test_the_file_is_named_by_a_setting_or_the_environment_too(redis_stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "state"
    node = redis_stage.worker(env={"GREENQ_WORKER_STATE_DB": str(tmp_path / "%n.state")}, name="keeper")
    revoke(redis_stage, "one")
    assert b'"one"' in (tmp_path / "keeper.state").read_bytes()
    node.kill()
    settings = {"GREENQ_TEST_SETTINGS": f'{{"worker_state_db": "{path}"}}'}
    node = redis_stage.worker(env=settings, name="keeper")
    revoke(redis_stage, "two")
    assert b'"two"' in path.read_bytes()
    assert node.running
