"""Commands of the user's own: the two of the Workers Guide, Celery's style and plain annotations, on real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from greenq import GreenQ
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for
from tests.support.sources import SPIN

# The guide's, but for the import path.
GUIDE = """
from greenq.control import control_command

@control_command(
    args=[('n', int)],
    signature='[N=1]',  # <- used for help on the command-line.
)
def increase_prefetch_count(state, n=1):
    state.consumer.qos.increment_eventually(n)
    return {'ok': 'prefetch count incremented'}

from greenq.control import inspect_command

@inspect_command
def current_prefetch_count(state):
    return {'prefetch_count': state.consumer.qos.value}
"""

MORE = """
import time
from typing import TYPE_CHECKING
from greenq.control import control_command, inspect_command
if TYPE_CHECKING:
    from greenq.control import Panel

@control_command(args=[("n", int)])
def lower_prefetch_count(state, n=1, **kwargs):
    return {"ok": state.consumer.qos.decrement_eventually(n), "more": sorted(kwargs)}

@inspect_command()
def about(anything):
    '''Say what I am.'''
    tasks = anything.tset(name for name in anything.app.tasks if name.startswith("proj"))
    return {"app": anything.app.main, "node": anything.hostname, "tasks": sorted(tasks)}

@inspect_command
def typed(panel: "Panel", *, names: list[str], loud: bool = False, times: int = 1) -> "Panel":
    '''Join the names.'''
    return ("JOINED " if loud else "") + "+".join(names * times)

@inspect_command
def waiting(panel, *, name: str, limit: int = 10) -> list[str]:
    return [request.id for request in panel.reserved() if request.name == name][:limit]

@inspect_command(args=[("when", lambda text: text.split("-")), ("n", int)])
def loose(state, **kwargs):
    return kwargs

@control_command
def fails(state):
    raise RuntimeError("on purpose")

@control_command
def leaves(state):
    raise SystemExit(3)

@inspect_command
def cannot_be_sent(state):
    return {"what": object()}
"""

APP = """
import time
from greenq import GreenQ

app = GreenQ("proj", imports=["guide", "more"])

@app.task
def nap(seconds):
    time.sleep(seconds)
""" + SPIN


class Scene:
    """One broker, workers of the project on demand, the client and the command line."""

    def __init__(self, url: str, cwd: Path, start: Callable[..., Node]) -> None:
        self.url = url
        self.cwd = cwd
        self._start = start
        self._env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": "disabled://"}
        self.app = GreenQ("proj", broker=url, backend="disabled://")
        self.client = self.app.control

    def worker(self, **options: Any) -> Node:
        return self._start("app", env=self._env, **options)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The reply of the one worker."""
        (reply,) = self.client.broadcast(command, arguments, reply=True, timeout=10, limit=1) or [{}]
        return next(iter(reply.values()))

    def line(self, *words: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("GREENQ", "CELERY"))}
        argv = [sys.executable, "-m", "greenq", "-A", "app", *words]
        env = {**clean, **self._env, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        return run(argv, cwd=self.cwd, env=env)


@pytest.fixture
def make_scene(tmp_path: Path, start_node: Callable[..., Node]) -> Iterator[Callable[[str], Scene]]:
    made: list[Scene] = []
    for name, text in (("app", APP), ("guide", GUIDE), ("more", MORE)):
        (tmp_path / f"{name}.py").write_text(text)

    def make(url: str) -> Scene:
        made.append(Scene(url, tmp_path, start_node))
        return made[-1]

    yield make
    for scene in made:
        scene.app.close()


@pytest.mark.parametrize("pool", ["gevent", "solo"])
def test_the_guides_two_commands_run_as_they_are_written_there(
    pool: str, broker_url: str, make_scene: Callable[[str], Scene]
) -> None:
    scene = make_scene(broker_url)
    scene.worker(pool=pool, concurrency=1, options=["--prefetch-multiplier", "2"])
    assert scene.ask("current_prefetch_count") == {"prefetch_count": 2}
    done = scene.line("control", "increase_prefetch_count", "3")
    assert (done.returncode, "    prefetch count incremented\n" in done.stdout) == (0, True), done.stderr
    shown = scene.line("inspect", "-j", "current_prefetch_count")
    assert list(json.loads(shown.stdout).values()) == [{"prefetch_count": 5}], shown.stderr
    assert scene.ask("increase_prefetch_count") == {"ok": "prefetch count incremented"}
    assert scene.ask("stats")["prefetch_count"] == 6
    assert scene.ask("lower_prefetch_count", n=100, other=1) == {"ok": 1, "more": ["other"]}
    assert scene.ask("stats")["prefetch_count"] == 1


def test_a_raised_prefetch_count_is_what_rabbitmq_delivers(
    rabbitmq_url: str, make_scene: Callable[[str], Scene]
) -> None:
    scene = make_scene(rabbitmq_url)
    scene.worker(concurrency=1, options=["--prefetch-multiplier", "1"])
    for _ in range(10):
        scene.app.send_task("app.nap", (600,))
    with kombu.Connection(rabbitmq_url) as connection:

        def ready() -> int:
            return int(connection.default_channel.queue_declare("celery", passive=True).message_count)

        wait_for(lambda: ready() == 9, 10, "one delivery")
        scene.ask("increase_prefetch_count", n=3)
        wait_for(lambda: ready() == 6, 10, "three more deliveries")
        scene.ask("pool_grow", n=1)
        wait_for(lambda: ready() == 5, 10, "one for the new slot")
        assert scene.ask("current_prefetch_count") == {"prefetch_count": 5}


def test_a_prefetch_count_is_raised_while_a_task_computes(redis_url: str, make_scene: Callable[[str], Scene]) -> None:
    scene = make_scene(redis_url)
    node = scene.worker(concurrency=1)
    scene.app.send_task("app.spin", (3,))
    node.wait_output(r"app\.spin\[.*received")
    assert scene.ask("increase_prefetch_count", n=5) == {"ok": "prefetch count incremented"}
    node.wait_output(r"app\.spin\[.*succeeded")
    wait_for(lambda: scene.ask("current_prefetch_count") == {"prefetch_count": 9}, 5, "the new count")


def test_commands_take_what_they_say_and_name_what_is_wrong(
    redis_url: str, make_scene: Callable[[str], Scene]
) -> None:
    scene = make_scene(redis_url)
    node = scene.worker()
    assert scene.ask("about") == {"app": "proj", "node": node.name, "tasks": []}
    assert scene.ask("typed", names=["a", "b"], loud=True) == "JOINED a+b"
    assert scene.ask("loose", when="x", n=2, other=[1]) == {"when": "x", "n": 2, "other": [1]}
    assert scene.ask("loose") == {}
    assert scene.ask("waiting", name="app.nap") == []
    for name, arguments, words in (
        ("typed", {}, "typed needs the argument 'names' (list of str)"),
        ("typed", {"names": "a"}, "typed: argument 'names' must be list of str, not 'a'"),
        ("typed", {"names": [], "bad": 1}, "typed has no argument 'bad'; it takes: names, loud, times"),
        ("increase_prefetch_count", {"n": "many"}, "argument 'n' must be int, not 'many'"),
        ("increase_prefetch_count", {"m": 1}, "has no argument 'm'; it takes: n"),
        ("loose", {"n": "x"}, "loose: argument 'n' must be int, not 'x'"),
        ("fails", {}, "RuntimeError('on purpose')"),
        ("leaves", {}, "SystemExit(3)"),
        ("cannot_be_sent", {}, "the reply of cannot_be_sent cannot be serialized"),
    ):
        error = scene.ask(name, **arguments)["error"]
        assert words in error.replace('\\"', '"').replace("\\'", "'"), error
    assert scene.ask("ping") == {"ok": "pong"}


def test_commands_of_a_users_module_are_sub_commands_with_their_help(
    redis_url: str, make_scene: Callable[[str], Scene]
) -> None:
    scene = make_scene(redis_url)
    scene.worker()
    listed = scene.line("inspect", "--help").stdout
    assert listed.index("The app's own:") > listed.index("Tasks:")
    assert "Say what I am." in listed
    assert "increase_prefetch_count [N=1]" in scene.line("control", "--list").stdout.splitlines()
    text = scene.line("inspect", "typed", "--help").stdout
    assert "NAMES  list of str" in text
    assert "--times" in text
    assert "    x+y\n" in scene.line("inspect", "typed", "x,y").stdout
    assert "\n    JOINED x+x\n" in scene.line("inspect", "typed", "x", "--loud", "--times", "2").stdout
    assert '"when": [' in scene.line("inspect", "loose", "a-b", "7").stdout
    wrong = scene.line("control", "increase_prefetch_count", "many")
    assert (wrong.returncode, wrong.stderr) == (2, "greenq: increase_prefetch_count: n: 'many' is not int\n")
    failed = scene.line("control", "fails", "--strict")
    assert (failed.returncode, "RuntimeError('on purpose')" in failed.stdout) == (1, True)
