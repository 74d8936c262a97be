"""A real `worker -P prefork`: ordinary Python in the children, their deaths, limits, signals, stops and restarts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from greenq import AsyncResult, GreenQ, GreenqError, TaskRevokedError, TimeLimitExceeded
from greenq.exceptions import WorkerLostError
from tests.integration import prefork_tasks
from tests.support.ledger import Ledger
from tests.support.node import Node
from tests.support.processes import ended, wait_for
from tests.support.tree import Tree, alive, marked

MODULE = prefork_tasks.__name__


class Field:
    """One broker, one ledger, one client of prefork_tasks, and workers on demand."""

    def __init__(self, url: str, folder: Path, ledger: Ledger, start: Callable[..., Node]) -> None:
        self.url = url
        self.ledger = ledger
        self._folder = folder
        self._start = start
        backend = url if url.startswith("redis") else f"sqlite:///{folder}/results.db"
        self._env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": backend}
        self.app = GreenQ("prefork_tasks", broker=url, backend=backend)

    def worker(self, size: int = 2, *options: str, **others: Any) -> Node:
        """A ready worker."""
        return self._start(MODULE, **self._options(size, options, others))

    def node(self, size: int = 2, *options: str, **others: Any) -> Node:
        """A worker that is not started."""
        return Node(MODULE, cwd=self._folder, **self._options(size, options, others))

    def _options(self, size: int, options: tuple[str, ...], others: dict[str, Any]) -> dict[str, Any]:
        env = self._env | others.pop("env", {})
        fixed = {"pool": "prefork", "concurrency": size, "options": options, "ledger": self.ledger, "env": env}
        return {**fixed, **others}

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        """Publish a task by its short name."""
        sent: AsyncResult[Any] = self.app.send_task(f"{MODULE}.{name}", args, {}, **options)
        return sent

    def started(self, *names: str, times: int = 1) -> None:
        """Wait until these have started."""
        wait_for(
            lambda: all(self.ledger.starts()[name] >= times for name in names),
            15,
            lambda: f"the start of {names}: {self.ledger.starts()}",
        )

    def length(self, queue: str = "celery") -> int:
        return self.app.producer.publisher().length(queue)

    def nothing_left(self, seconds: float = 5.0) -> None:
        """No process that was ever started by a worker lives on."""
        mark = str(self.ledger.path)
        wait_for(lambda: not marked(mark), seconds, lambda: f"the end of {marked(mark)}")


@pytest.fixture
def make_field(tmp_path: Path, ledger: Ledger, start_node: Callable[..., Node]) -> Iterator[Callable[[str], Field]]:
    made: list[Field] = []

    def make(url: str) -> Field:
        made.append(Field(url, tmp_path, ledger, start_node))
        return made[-1]

    yield make
    for field in made:
        field.app.close()


@pytest.fixture
def field(redis_url: str, make_field: Callable[[str], Field]) -> Field:
    """On Redis, for what does not depend on the broker."""
    return make_field(redis_url)


@pytest.fixture
def any_field(broker_url: str, make_field: Callable[[str], Field]) -> Field:
    """On each broker in turn."""
    return make_field(broker_url)


def errors(node: Node) -> list[str]:
    return [line for line in node.output().splitlines() if ": ERROR" in line]


def no_defect(node: Node) -> None:
    bad = [line for line in node.output().splitlines() if "stumbled" in line or "inside the worker" in line]
    assert not bad, bad


# What user code may do.


def test_user_code_finds_ordinary_python(field: Field) -> None:
    node = field.worker(4)
    sent = {way: field.send("ordinary", way) for way in prefork_tasks.WAYS}
    assert {way: each.get(timeout=30) for way, each in sent.items()} == dict.fromkeys(sent, True)
    assert not errors(node)
    node.term()
    assert node.wait(10) == 0
    field.nothing_left()


def test_what_a_child_says_names_its_task_and_its_process(field: Field) -> None:
    node = field.worker(1)
    sent = field.send("talks", "this")
    assert sent.get(timeout=15) is None
    node.wait_output(r"printed this")
    node.wait_output(rf"INFO/Child-1\] tests.integration.prefork_tasks.talks\[{sent.id}\] logged this")
    node.wait_output(rf"INFO/MainProcess\] Task tests.integration.prefork_tasks.talks\[{sent.id}\] succeeded in")
    assert [node.output().count(text) for text in ("printed this", "logged this")] == [1, 1]


def test_the_process_of_a_task_is_the_childs_wherever_it_is_shown(field: Field) -> None:
    node = field.worker(2)
    sent = field.send("tracked", 1.5)
    wait_for(lambda: sent.state == "STARTED", 10, lambda: sent.state)
    meta = sent.result
    children = Tree(node.pid).children()
    assert meta["pid"] in children
    assert meta["hostname"] == node.name
    inspect = field.app.control.inspect([node.name], timeout=5)
    (active,) = inspect.active()[node.name]
    assert active["worker_pid"] == meta["pid"]
    pool = inspect.stats()[node.name]["pool"]
    assert sorted(pool["processes"]) == sorted(children)
    assert inspect.stats()[node.name]["pid"] == node.pid
    assert sent.get(timeout=10) == meta["pid"]


# Deaths.


def test_a_child_that_dies_costs_its_task_one_more_run(any_field: Field) -> None:
    field = any_field
    node = field.worker(3)
    beside = [field.send("nap", f"beside{n}", 0.02) for n in range(60)]
    ways = ("kill", "exit", "segfault", "abort", "descriptors")
    sent = {how: field.send("crashes_once", how, how) for how in ways}
    beside += [field.send("nap", f"later{n}", 0.02) for n in range(60)]
    assert {how: each.get(timeout=30) for how, each in sent.items()} == {how: [how, True] for how in ways}
    for each in beside:
        each.get(timeout=10)
    names = [*ways, *(f"beside{n}" for n in range(60)), *(f"later{n}" for n in range(60))]
    assert field.ledger.check(names).restarted == dict.fromkeys(ways, 2)
    wait_for(lambda: len(Tree(node.pid).children()) == 3, 5, "three children")
    no_defect(node)
    node.term()
    assert node.wait(10) == 0
    assert not field.length() and not field.length("celery.dead")
    field.nothing_left()


def test_a_task_that_may_not_come_back_fails_with_worker_lost(any_field: Field) -> None:
    field = any_field
    node = field.worker(2)
    errback = field.app.signature(f"{MODULE}.told")
    old = field.app.signature(f"{MODULE}.told_id")
    sent = [
        field.send("crashes_for_good", "late", task_id="late", link_error=[errback, old]),
        field.send("crashes_early", "early", task_id="early", link_error=[errback, old]),
    ]
    for each in sent:
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            each.get(timeout=15)
    expected = {f"errback-{each.id}{end}" for each in sent for end in ("", "-WorkerLostError")}
    wait_for(lambda: expected <= set(field.ledger.dones()), 10, lambda: f"{field.ledger.dones()}")
    assert field.ledger.starts() == {"late": 1, "early": 1}
    node.term()
    assert node.wait(10) == 0
    assert not field.length() and not field.length("celery.dead")


def test_an_errback_that_kills_each_child_leaves_a_failure_all_the_same(field: Field) -> None:
    node = field.worker(2)
    sent = field.send("crashes_for_good", "x", link_error=[field.app.signature(f"{MODULE}.told_deadly")])
    with pytest.raises(GreenqError, match="SIGKILL"):
        sent.get(timeout=15)
    assert field.ledger.starts() == {"x": 1, f"errback-{sent.id}": 2}
    wait_for(lambda: field.length("celery.dead") == 1, 5, "the dead queue")
    assert field.send("add", 1, 1).get(timeout=10) == 2
    no_defect(node)


def test_nothing_outlives_a_worker_that_was_killed(field: Field) -> None:
    env = {"GREENQ_TEST_LEASE": "5"}
    first = field.worker(3, name="first", env=env)
    sent = [field.send("nap", f"n{n}", 2.0) for n in range(2)] + [field.send("stubborn", "stubborn", 2.5)]
    field.started("n0", "n1", "stubborn")
    processes = Tree(first.pid).all()
    assert len(processes) == 6
    os.kill(first.pid, signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: not [pid for pid in processes if alive(pid)], 5, lambda: f"{[p for p in processes if alive(p)]}")
    assert time.monotonic() - began < 2.5
    first.wait(5)
    assert not field.ledger.dones(), "the orphans ran on"
    field.worker(3, name="second", env=env)
    for each in sent:
        each.get(timeout=40)
    assert field.ledger.starts() == {"n0": 2, "n1": 2, "stubborn": 2}
    wait_for(lambda: not field.length(), 5, "an empty queue")


def test_the_loss_of_the_nursery_is_a_pause(field: Field) -> None:
    node = field.worker(2)
    tree = Tree(node.pid)
    running = [field.send("nap", f"n{n}", 1.0) for n in range(2)]
    field.started("n0", "n1")
    (nursery,) = tree.nurseries()
    os.kill(nursery, signal.SIGKILL)
    began = time.monotonic()
    assert field.send("add", 1, 1).get(timeout=10) == 2
    print(f"a nursery was replaced in {time.monotonic() - began:.2f} s")
    for each in running:
        each.get(timeout=15)
    assert field.ledger.starts() == {"n0": 2, "n1": 2}
    node.wait_output(rf"he process that forks children \(pid {nursery}\) is gone")
    no_defect(node)


def test_without_its_zygote_a_worker_works_until_it_needs_it(field: Field) -> None:
    node = field.worker(2)
    tree = Tree(node.pid)
    zygote, (nursery,) = tree.zygote(), tree.nurseries()
    os.kill(zygote, signal.SIGKILL)
    wait_for(lambda: not alive(zygote), 5, "the end of the zygote")
    assert field.send("crashes_once", "once", "kill").get(timeout=15) == ["once", True], "children still come"
    sent = field.send("nap", "n", 1.0)
    field.started("n")
    os.kill(nursery, signal.SIGKILL)
    code = node.wait(20)
    assert code == 70, node.output()
    assert f"the zygote (pid {zygote})" in node.output()
    field.nothing_left()
    field.worker(2, name="second")
    sent.get(timeout=30)


# Limits and terminate.


def test_limits_hold_whatever_the_task_does(field: Field) -> None:
    node = field.worker(4)
    errback = field.app.signature(f"{MODULE}.told")
    tidy = field.send("tidies_up", "tidy")
    assert tidy.get(timeout=10) == "tidied up"
    names = {"keeps_the_lock": "c", "stubborn": "s", "nap": "n"}
    began = time.monotonic()
    sent = {
        name: field.send(name, what, 20.0, task_id=what, time_limit=1.0, link_error=[errback])
        for name, what in names.items()
    }
    field.started(*names.values())
    for each in sent.values():
        with pytest.raises(TimeLimitExceeded):
            each.get(timeout=10)
    took = time.monotonic() - began
    print(f"a limit of 1 s took {took:.2f} s")
    assert took < 2.2
    expected = {f"errback-{what}-TimeLimitExceeded" for what in names.values()}
    wait_for(lambda: expected <= set(field.ledger.dones()), 10, lambda: f"{field.ledger.dones()}")
    assert set(field.ledger.dones()) == expected
    wait_for(lambda: len(Tree(node.pid).children()) == 4, 5, "four children")
    for name in names.values():
        assert node.output().count(f"[{name}] raised unexpected: TimeLimitExceeded") == 1


def test_limits_hold_for_a_child_that_somebody_has_stopped(field: Field) -> None:
    node = field.worker(1)
    sent = field.send("nap", "n", 20.0, time_limit=1.0)
    field.started("n")
    (child,) = Tree(node.pid).children()
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        sent.get(timeout=8)
    other = field.send("nap", "m", 20.0)
    field.started("m")
    (child,) = Tree(node.pid).children()
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.2)
    other.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        other.get(timeout=8)
    assert field.send("add", 1, 1).get(timeout=10) == 2


def test_terminate_ends_exactly_the_tasks_that_are_named(field: Field) -> None:
    node = field.worker(9)
    signals = ("TERM", "KILL", "INT", "USR1")
    victims = {
        field.send(task, f"{task}-{name}", 20.0): name for task in ("stubborn", "keeps_the_lock") for name in signals
    }
    beside = field.send("nap", "beside", 2.0)
    field.started("beside", *(f"{task}-{name}" for task in ("stubborn", "keeps_the_lock") for name in signals))
    began = time.monotonic()
    for each, name in victims.items():
        each.revoke(terminate=True, signal=name)
    for each in victims:
        with pytest.raises(TaskRevokedError):
            each.get(timeout=10)
    assert time.monotonic() - began < 3.0
    assert beside.get(timeout=10) == "beside"
    assert {each.state for each in victims} == {"REVOKED"}
    assert set(field.ledger.dones()) == {"beside"}
    assert not errors(node)
    for each in victims:
        assert f"[{each.id}] succeeded" not in node.output()
    assert len(field.ledger.starts()) == sum(field.ledger.starts().values()) == 9


# Recycling and handing ahead.


def test_a_child_for_each_task_delays_none(field: Field) -> None:
    field.worker(4, "--max-tasks-per-child", "1", loglevel="INFO")
    began = time.monotonic()
    sent = [field.send("process") for _ in range(300)]
    pids = [each.get(timeout=60) for each in sent]
    took = time.monotonic() - began
    print(f"300 children in {took:.1f} s")
    assert len(set(pids)) == 300
    assert took < 30
    assert not field.length()


def test_a_child_that_grew_is_replaced_after_its_task(field: Field) -> None:
    node = field.worker(1, "--max-memory-per-child", str(250 << 10))
    small = [field.send("grows", 1).get(timeout=10) for _ in range(3)]
    assert len({pid for pid, _ in small}) == 1
    large, peak = field.send("grows", 300).get(timeout=10)
    assert (large, peak > 250 << 10) == (small[0][0], True)
    after, peak = field.send("grows", 1).get(timeout=10)
    assert after != large and peak < 250 << 10
    assert not errors(node)


def test_busy_children_are_handed_more_and_what_they_had_not_begun_comes_back(field: Field) -> None:
    node = field.worker(2, "-O", "default", "--prefetch-multiplier", "20")
    sent = [field.send("nap", f"n{n}", 0.02) for n in range(150)]
    sent.insert(0, field.send("crashes_once", "once", "kill"))
    for each in sent:
        each.get(timeout=20)
    check = field.ledger.check(["once", *(f"n{n}" for n in range(150))])
    assert check.restarted == {"once": 2}
    assert not check.lost
    node.term()
    assert node.wait(10) == 0
    assert not field.length()


# Stops.


def test_a_warm_stop_lets_tasks_end(field: Field) -> None:
    node = field.worker(2)
    assert _stopped_warmly(field, node, [node.pid], 3.0) == {"n0": 1, "n1": 1}


def test_a_supervisor_may_signal_every_process(field: Field) -> None:
    """As systemd does: KillMode=control-group."""
    node = field.worker(2)
    assert _stopped_warmly(field, node, Tree(node.pid).all(), 1.0) == {"n0": 1, "n1": 1}


def test_modules_that_take_signals_do_not_have_them(field: Field) -> None:
    node = field.worker(2, env={"GREENQ_TEST_SIGNALS": "1"})
    assert field.send("crashes_once", "once", "kill").get(timeout=10) == ["once", True]
    whom = Tree(node.pid).all()
    assert _stopped_warmly(field, node, whom, 1.0, crashed=1) == {"once": 2, "n0": 1, "n1": 1}


def test_a_cold_stop_of_every_process_gives_back_what_runs(field: Field) -> None:
    """KillSignal=SIGQUIT."""
    node = field.worker(2)
    sent = [field.send("nap", "n", 60.0), field.send("stubborn", "s", 60.0)]
    field.started("n", "s")
    for pid in Tree(node.pid).all()[::-1]:
        os.kill(pid, signal.SIGQUIT)
    assert node.wait(5) == 0
    wait_for(lambda: field.length() == 2, 5, lambda: f"two messages, not {field.length()}")
    assert not errors(node)
    assert {each.state for each in sent} == {"PENDING"}
    field.nothing_left()


def _stopped_warmly(
    field: Field, node: Node, whom: list[int], seconds: float, *, crashed: int = 0
) -> dict[str, int]:
    """What was started, and how often, by a worker whose two children were busy when these were told to stop."""
    running = [field.send("nap", f"n{n}", seconds) for n in range(2)]
    field.started("n0", "n1")
    waiting = [field.send("nap", f"w{n}", 0.01) for n in range(5)]
    began = time.monotonic()
    for pid in whom:
        os.kill(pid, signal.SIGTERM)
    assert node.wait(10) == 0
    assert time.monotonic() - began < seconds + 1.5
    assert [each.get(timeout=1) for each in running] == ["n0", "n1"]
    assert field.length() == len(waiting)
    assert len(errors(node)) == crashed
    field.nothing_left()
    return dict(field.ledger.starts())


def test_two_interrupts_give_back_what_runs(any_field: Field) -> None:
    field = any_field
    node = field.worker(2)
    field.send("nap", "n", 60.0)
    field.send("stubborn", "s", 60.0)
    field.started("n", "s")
    field.send("nap", "w", 60.0)
    began = time.monotonic()
    for _ in range(2):
        os.killpg(node.pid, signal.SIGINT)  # as the terminal does
        time.sleep(0.1)
    assert node.wait(10) == 1
    print(f"two interrupts took {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 3
    wait_for(lambda: field.length() == 3, 5, lambda: f"three messages, not {field.length()}")
    field.nothing_left()


def test_an_idle_worker_ends_at_once(field: Field) -> None:
    times = []
    for _ in range(2):
        node = field.worker(2)
        assert field.send("add", 1, 1).get(timeout=10) == 2
        began = time.monotonic()
        node.term()
        assert node.wait(10) == 0
        times.append(time.monotonic() - began)
        field.nothing_left()
    print(f"an idle worker ended in {sorted(times)}")
    assert min(times) < 1.0, times  # 0.2 on an idle machine


def test_a_stop_while_children_come_up_is_prompt(field: Field) -> None:
    node = field.node(2, env={"GREENQ_TEST_SLOW_START": "3"})
    with ended(node):
        wait_for(lambda: len(Tree(node.pid).children()) == 2, 10, "children")
        began = time.monotonic()
        node.term()
        assert node.wait(15) in {0, -signal.SIGTERM}
        assert time.monotonic() - began < 5
    field.nothing_left()


# Starts and restarts.


def test_an_app_that_only_children_cannot_import_is_said_at_the_start(field: Field) -> None:
    sent = field.send("add", 1, 1)
    node = field.node(2, env={"GREENQ_TEST_CHILDREN_FAIL": "1"}, loglevel="WARNING")
    with ended(node):
        assert node.wait(15) in {1, 2}
    last = node.output().strip().splitlines()[-1]
    assert last.startswith("greenq: ")
    assert "no such library in a child" in last
    assert "Traceback" not in last
    assert sent.state == "PENDING"
    field.nothing_left()


def test_threads_that_an_import_starts_are_warned_of(field: Field) -> None:
    node = field.worker(1, env={"GREENQ_TEST_THREAD": "1"})
    assert field.send("add", 1, 1).get(timeout=10) == 2
    warnings = re.findall(r"WARNING.*start threads \((.*?)\)", node.output())
    assert warnings == ["metrics"]


def test_a_restart_brings_new_code_and_ends_no_task(field: Field, tmp_path: Path) -> None:
    code = tmp_path / "prefork_code.py"
    code.write_text("VERSION = 1\n")
    node = field.worker(2, env={"PYTHONDONTWRITEBYTECODE": "1"})
    control = field.app.control
    assert field.send("version").get(timeout=10) == 1
    running = field.send("nap", "n", 3.0)
    field.started("n")
    code.write_text("VERSION = 20\n")
    replies = control.pool_restart(destination=[node.name], reply=True, timeout=5)
    assert replies == [{node.name: {"ok": "reload started"}}]
    wait_for(lambda: field.send("version").get(timeout=10) == 20, 10, "the new code")
    assert running.get(timeout=10) == "n"
    assert field.ledger.starts()["n"] == 1
    wait_for(lambda: len(Tree(node.pid).nurseries()) == 1, 5, "the end of the old nursery")
    code.write_text("VERSION = \n")
    control.pool_restart(destination=[node.name], reply=True, timeout=5)
    node.wait_output("The pool goes on with the code it has")
    assert [field.send("version").get(timeout=10) for _ in range(6)] == [20] * 6
    wait_for(lambda: len(Tree(node.pid).all()) == 5, 5, lambda: f"{Tree(node.pid).all()}")
    code.write_text("VERSION = 300\n")
    control.pool_restart(destination=[node.name], reply=True, timeout=5)
    wait_for(lambda: field.send("version").get(timeout=10) == 300, 10, "the new code")
    no_defect(node)


def test_nothing_is_handed_to_children_that_a_restart_has_sent_away(field: Field) -> None:
    """Here they take two seconds to go."""
    node = field.worker(2, env={"GREENQ_TEST_SLOW_STOP": "2"})
    old = Tree(node.pid).children()
    field.app.control.pool_restart(destination=[node.name], reply=True, timeout=5)
    node.wait_output("The pool restarts with")
    began = time.monotonic()
    assert not set(old) & {field.send("process").get(timeout=10) for _ in range(10)}
    assert time.monotonic() - began < 1.5


def test_a_nursery_that_finds_broken_code_tries_again(field: Field, tmp_path: Path) -> None:
    code = tmp_path / "prefork_code.py"
    code.write_text("VERSION = 1\n")
    node = field.worker(2, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert field.send("version").get(timeout=10) == 1
    code.write_text("VERSION = \n")
    os.kill(Tree(node.pid).nurseries()[0], signal.SIGKILL)
    node.wait_output("loading the app for child processes failed")
    sent = field.send("version")
    code.write_text("VERSION = 20\n")
    assert sent.get(timeout=15) == 20
    no_defect(node)


def test_a_signal_for_one_child_from_somebody_else_is_its_own_affair(field: Field) -> None:
    """TERM and INT to a busy child mean nothing; the worker alone ends tasks."""
    node = field.worker(1)
    sent = field.send("nap", "n", 1.0)
    field.started("n")
    (child,) = Tree(node.pid).children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGURG):
        with suppress(ProcessLookupError):
            os.kill(child, number)
    assert sent.get(timeout=10) == "n"
    assert field.ledger.starts() == {"n": 1}
    assert not errors(node)


def test_children_that_find_no_room_for_their_pipes_are_refused(redis_url: str, tmp_path: Path) -> None:
    """Forty children and what else is open need more than 60 files: said at the start, not by an abort later."""
    argv = [sys.executable, "-m", "greenq", "-A", "tests.integration.prefork_tasks", "-b", redis_url]
    environ = {**os.environ, "LEDGER": str(tmp_path / "ledger")}
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 60; exec "$@"', "bash", *argv, "worker", "-P", "prefork", "-c", "40"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )
    assert done.returncode == 2, done.stderr
    assert "40 child processes need 144 open files, and the limit is 60" in done.stderr
