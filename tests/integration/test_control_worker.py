"""Real workers asked from the command line, by greenq's client and by Celery's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.support.control import client_of
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for
from tests.support.sources import SPIN

TASKS = (
    """
import time
from greenq import GreenQ
from greenq.control import control_command, inspect_command

app = GreenQ("proj")

@app.task
def add(x, y):
    return x + y

@app.task(rate_limit="1/h")
def seldom():
    pass

@app.task
def sleep(seconds):
    time.sleep(seconds)
"""
    + SPIN
    + """
@inspect_command
def whoami(panel, *, loud: bool = False, times: int = 1):
    '''Say who I am.'''
    return {"ok": ("ME" if loud else "me") * times}

@control_command(args=[("n", int)], signature="[N=1]")
def increase(state, n=1):
    return {"ok": f"increased by {n}"}
"""
)

CELERY_TASKS = """
from celery import Celery
app = Celery("proj")

@app.task(name="tasks.add")
def add(x, y):
    return x + y
"""


class Line:
    """The command line in the project's directory, against one broker."""

    def __init__(self, cwd: Path, url: str) -> None:
        self.cwd = cwd
        self.url = url

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("GREENQ", "CELERY"))}
        env = {**clean, **environment(self.url), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        return run([sys.executable, "-m", "greenq", "-A", "tasks", *words], cwd=self.cwd, env=env, input=stdin)


def environment(url: str) -> dict[str, str]:
    results = url if url.startswith("redis") else "disabled://"
    return {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": results}


@pytest.fixture(params=["gevent", "solo"])
def pool(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def line(tmp_path: Path, broker_url: str) -> Line:
    (tmp_path / "tasks.py").write_text(TASKS)
    return Line(tmp_path, broker_url)


@pytest.fixture
def redis_line(tmp_path: Path, redis_url: str) -> Line:
    (tmp_path / "tasks.py").write_text(TASKS)
    return Line(tmp_path, redis_url)


StartNode = Callable[..., Node]


def test_a_ping_is_answered_while_a_task_computes(line: Line, pool: str, start_node: StartNode) -> None:
    node = start_node("tasks", pool=pool, concurrency=1, env=environment(line.url))
    assert line("call", "tasks.spin", "-a", "[20]").returncode == 0
    node.wait_output(r"tasks\.spin\[.*received")
    with client_of(line.url) as client:
        client.ping(limit=1)
        for _ in range(5):
            assert client.ping(node.name) == [{node.name: {"ok": "pong"}}]
        (info,) = client.inspect(node.name).active()[node.name]  # type: ignore[index]
        assert info["name"] == "tasks.spin"
    done = line("inspect", "ping")
    assert (done.returncode, done.stdout) == (0, f"->  {node.name}: OK\n    pong\n\n1 node online.\n"), done.stderr


def test_a_verb_for_a_busy_hub_is_accepted_and_names_the_task(redis_line: Line, start_node: StartNode) -> None:
    node = start_node("tasks", pool="gevent", env=environment(redis_line.url))
    task_id = redis_line("call", "tasks.spin", "-a", "[4]").stdout.strip()
    node.wait_output(r"tasks\.spin\[.*received")
    done = redis_line("control", "rate_limit", "tasks.add", "1/h")
    assert f"accepted: takes effect when tasks.spin[{task_id}] yields" in done.stdout, done.stdout + done.stderr
    node.wait_output(r"tasks\.spin\[.*succeeded")
    for _ in range(2):
        redis_line("call", "tasks.add", "-a", "[1, 2]")
    node.wait_output(r"tasks\.add\[.*succeeded")
    wait_for(lambda: "tasks.add" in redis_line("inspect", "reserved").stdout)


def test_the_command_line_shows_tables_and_steers(redis_line: Line, start_node: StartNode) -> None:
    node = start_node("tasks", env=environment(redis_line.url))
    sleeping = redis_line("call", "tasks.sleep", "-a", "[60]").stdout.strip()
    node.wait_output(rf"{sleeping}\] received")

    rows = redis_line("inspect", "active").stdout.splitlines()
    assert rows[0] == f"->  {node.name}: OK"
    assert rows[1].split() == ["ID", "TASK", "RUNNING", "PID", "ARGUMENTS"]
    assert rows[2].split()[:2] == [sleeping, "tasks.sleep"]
    assert rows[2].split()[-2:] == [str(node.pid), "(60)"]

    stats = redis_line("inspect", "stats").stdout
    assert re.search(rf"^    pid +{node.pid}$", stats, re.MULTILINE)
    assert "tasks.sleep  1" in stats
    registered = redis_line("inspect", "registered").stdout
    assert "tasks.seldom  rate_limit=1/h" in registered
    assert json.loads(redis_line("inspect", "-j", "query_task", sleeping).stdout)[node.name][sleeping][0] == "active"

    done = redis_line("control", "terminate", "KILL", sleeping)
    assert f"terminate: {sleeping}" in done.stdout
    wait_for(lambda: "- empty -" in redis_line("inspect", "active").stdout)


def test_json_comes_in_celerys_shapes(redis_line: Line, start_node: StartNode) -> None:
    node = start_node("tasks", env=environment(redis_line.url))
    pong = {"ok": "pong"}
    assert json.loads(redis_line("inspect", "ping", "-j").stdout) == {node.name: pong}
    assert json.loads(redis_line("status", "--json").stdout) == {node.name: pong}
    reply = json.loads(redis_line("control", "-j", "revoke", "abc").stdout)
    assert reply == [{node.name: {"ok": "tasks {'abc'} flagged as revoked"}}]
    assert json.loads(redis_line("inspect", "-d", "x@y", "-t", "0.3", "-j", "ping").stdout) == {}


def test_exit_codes_tell_scripts_what_happened(redis_line: Line, start_node: StartNode) -> None:
    done = redis_line("status", "-t", "0.3")
    assert done.returncode == 69
    assert "no worker answered within 0.3 s on redis://" in done.stderr
    node = start_node("tasks", env=environment(redis_line.url))
    assert redis_line("status").returncode == 0
    assert redis_line("inspect", "ping", "-d", node.name).returncode == 0
    wrong = redis_line("inspect", "ping", "-d", "worker1@test")
    assert wrong.returncode == 69
    assert f"no reply from worker1@test; did you mean '{node.name}'?" in wrong.stderr
    assert redis_line("control", "rate_limit", "nope", "1/s").returncode == 0
    strict = redis_line("control", "rate_limit", "nope", "1/s", "--strict")
    assert (strict.returncode, "unknown task" in strict.stdout) == (1, True)
    both = redis_line("inspect", "--strict", "-t", "0.5", "-d", f"{node.name},x@y", "ping")
    assert both.returncode == 1
    twice = redis_line("inspect", "-j", "-t", "0.5", "-d", node.name, "ping", "-d", f"x@y,{node.name}")
    assert (twice.returncode, json.loads(twice.stdout)) == (0, {node.name: {"ok": "pong"}})
    assert "no reply from x@y" in twice.stderr
    short = redis_line("status", "-t", "0.5", "-d", node.name.partition("@")[0])
    assert (short.returncode, f"did you mean '{node.name}'?" in short.stderr) == (69, True)


def test_own_commands_are_sub_commands(redis_line: Line, start_node: StartNode) -> None:
    start_node("tasks", env=environment(redis_line.url))
    assert "    MEME\n" in redis_line("inspect", "whoami", "--loud", "--times", "2").stdout
    assert "increased by 5" in redis_line("control", "increase", "5").stdout
    assert "increased by 1" in redis_line("control", "increase").stdout


def test_a_worker_told_to_shut_down_ends_with_0(line: Line, pool: str, start_node: StartNode) -> None:
    node = start_node("tasks", pool=pool, concurrency=1, env=environment(line.url))
    done = line("control", "shutdown")
    assert (done.returncode, done.stdout) == (0, f"->  {node.name}: OK\n    shutdown sent\n"), done.stderr
    assert node.wait(10) == 0
    assert line("control", "shutdown", "-t", "0.3").returncode == 69


def test_a_task_is_called_and_its_result_shown(redis_line: Line, start_node: StartNode) -> None:
    start_node("tasks", env=environment(redis_line.url))
    task_id = redis_line("call", "tasks.add", "-a", "[2, 3]").stdout.strip()
    done = redis_line("result", task_id, "--timeout", "10")
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    failed = redis_line("call", "tasks.add", "-a", '[2, "x"]').stdout.strip()
    done = redis_line("result", failed, "--timeout", "10")
    assert done.returncode == 1
    assert done.stdout.startswith("FAILURE: TypeError: unsupported operand")
    assert "Traceback" in redis_line("result", failed, "--traceback").stdout
    done = redis_line("result", "no-such-id", "--timeout", "0.2")
    assert (done.returncode, done.stderr) == (1, "greenq: no-such-id is PENDING after 0.2 s\n")


def test_purge_deletes_what_waits(line: Line) -> None:
    for _ in range(3):
        assert line("call", "tasks.add", "-a", "[1, 1]").returncode == 0
    refused = line("purge", stdin="n\n")
    assert refused.returncode == 1
    done = line("purge", stdin="y\n")
    assert done.stdout == "Purged 3 messages from 1 known task queue.\n", done.stderr
    assert line("purge", "-f").stdout == "No messages purged from 1 queue.\n"
    line("call", "tasks.add", "-a", "[1, 1]", "--queue", "other")
    assert line("purge", "-f", "-Q", "other").stdout == "Purged 1 message from 1 known task queue.\n"


def test_celerys_command_line_sees_a_greenq_worker(redis_line: Line, start_node: StartNode) -> None:
    node = start_node("tasks", env=environment(redis_line.url))
    for words in (["inspect", "ping"], ["inspect", "active"], ["inspect", "stats"], ["status"]):
        argv = [sys.executable, "-m", "celery", "-b", redis_line.url, *words]
        done = run(argv, cwd="/")
        assert (done.returncode, node.name in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_greenqs_client_drives_a_celery_worker(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest, start_celery_node: StartNode
) -> None:
    url = request.getfixturevalue(f"{broker}_url")
    (tmp_path / "ctasks.py").write_text(CELERY_TASKS)
    node = start_celery_node("ctasks", env={"CELERY_BROKER_URL": url}, pool="solo", concurrency=1)
    with client_of(url) as client:
        assert client.ping(node.name, timeout=5) == [{node.name: {"ok": "pong"}}]
        asking = client.inspect(node.name, timeout=5)
        assert asking.stats()[node.name]["pool"]["max-concurrency"] == 1  # type: ignore[index]
        assert "tasks.add" in asking.registered()[node.name]  # type: ignore[index]
        assert asking.active() == asking.reserved() == asking.scheduled() == {node.name: []}
        assert asking.query_task("x") == {node.name: {}}
        assert asking.conf(with_defaults=True)[node.name]["task_serializer"] == "json"  # type: ignore[index]
        assert client.revoke("abc", destination=node.name, reply=True, timeout=5) == [
            {node.name: {"ok": "tasks {'abc'} flagged as revoked"}}
        ]
        assert asking.revoked() == {node.name: ["abc"]}
        limited = client.rate_limit("tasks.add", "10/m", destination=node.name, reply=True, timeout=5)
        assert limited == [{node.name: {"ok": "new rate limit set successfully"}}]
        client.shutdown(node.name)
        assert node.wait(15) == 0


def test_a_hundred_pings_of_celerys_client_are_all_answered_by_a_full_pool(
    redis_line: Line, start_node: StartNode
) -> None:
    node = start_node("tasks", concurrency=5, env=environment(redis_line.url))
    app = Celery("asker", broker=redis_line.url, set_as_current=False)
    for _ in range(20):
        app.send_task("tasks.sleep", [30])
    with client_of(redis_line.url) as client:
        wait_for(lambda: len(client.inspect(node.name).active()[node.name]) == 5)  # type: ignore[index]
    for _ in range(100):
        assert app.control.ping(limit=1) == [{node.name: {"ok": "pong"}}]
    started = time.monotonic()
    app.close()
    assert time.monotonic() - started < 5
