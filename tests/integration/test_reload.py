"""`--reload`: the worker of now runs the code of now, and nothing is cut short for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenq import GreenQ
from tests.support.node import ROOT, Node
from tests.support.processes import run, wait_for

APP = """
import time
from greenq import GreenQ

app = GreenQ("proj")

@app.task(name="answer")
def answer():
    return {answer}

@app.task(name="nap")
def nap(seconds):
    open("begun", "w").close()
    time.sleep(seconds)
    return {answer}
"""


class Shop:
    """A worker under `--reload`, its one file, and a client."""

    def __init__(self, directory: Path, pool: str, *options: str) -> None:
        url = f"sqlite:///{directory}/broker.db"
        env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": url}
        self.file = directory / "proj.py"
        self.write(1)
        self.directory = directory
        slots = 1 if pool == "solo" else 4
        self.node = Node("proj", cwd=directory, pool=pool, concurrency=slots, options=["--reload", *options], env=env)
        self.client = GreenQ("client", broker=url, backend=url)

    def write(self, answer: object) -> None:
        self.file.write_text(APP.format(answer=answer))

    def send(self, name: str, *args: Any) -> Any:
        return self.client.send_task(name, args)

    def wait_starts(self, count: int) -> None:
        wait_for(lambda: self.node.output().count(" ready.") >= count, 30, self.node.output)

    def workers(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.node.pid).children()
        return found


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Any]:
    shops: list[Shop] = []

    def make(pool: str, *options: str) -> Shop:
        shops.append(Shop(tmp_path, pool, *options))
        shops[-1].node.start()
        shops[-1].wait_starts(1)
        return shops[-1]

    yield make
    for shop in shops:
        shop.node.kill()
        shop.client.close()


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_what_runs_ends_with_the_old_code_and_the_next_runs_with_the_new(make_shop: Any, pool: str) -> None:
    shop = make_shop(pool)
    running = shop.send("nap", 2)
    wait_for((shop.directory / "begun").exists, 10, shop.node.output)
    shop.write(2)
    shop.node.wait_output(r"proj\.py changed; the worker starts again when running tasks have ended")
    assert running.get(timeout=20) == 1
    shop.wait_starts(2)
    assert shop.send("answer").get(timeout=10) == 2
    assert len(shop.workers()) == 1
    shop.node.term()
    assert shop.node.wait(20) == 0


def test_code_that_is_broken_is_waited_out(make_shop: Any) -> None:
    shop = make_shop("gevent")
    shop.write("1 +")
    shop.node.wait_output(r"ended with exit code 2; it starts again when a file changes", 30)
    assert "invalid syntax" in shop.node.output()
    shop.write(3)
    shop.wait_starts(2)
    assert shop.send("answer").get(timeout=10) == 3


def test_only_the_folders_that_are_named_are_watched(make_shop: Any, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    shop = make_shop("gevent", f"--reload-dir={tmp_path}/lib")
    shop.write(2)
    (tmp_path / "lib" / "notes.txt").write_text("not code")
    (tmp_path / "lib" / "settings.toml").write_text("")
    shop.node.wait_output(r"lib/settings\.toml changed")
    assert "proj.py changed" not in shop.node.output()
    assert "notes.txt" not in shop.node.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_reaches_the_worker_and_ends_both(make_shop: Any, number: signal.Signals) -> None:
    shop = make_shop("gevent")
    (worker,) = shop.workers()
    os.kill(shop.node.pid, number)
    code = shop.node.wait(20)
    assert code == (1 if number is signal.SIGINT else 0), shop.node.output()
    assert not worker.is_running()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reload", "--reload-dir", "nowhere"], "nowhere: there is no such directory"),
        (["--reload-dir", "."], "--reload-dir says what --reload watches"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-m", "greenq", "worker", *words], cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
