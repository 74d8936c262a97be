"""Processes of a prefork worker killed, stopped and signalled at random under load: nothing is lost or left."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import kombu
import pytest
import redis

from tests.chaos import prefork_tasks
from tests.chaos.conftest import Scene
from tests.support.node import Node
from tests.support.processes import wait_for
from tests.support.tree import Tree, children_of, descriptors, is_zombie, marked, open_files, resident

CHILDREN = 4
LARGE = 8 << 20
MODULE = prefork_tasks.__name__
UNKNOWN = "unknown"


class Load:
    """Publishes from a thread of its own, so that there is always something to do."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self.published: list[str] = []  # everything that has to run
        self._scene = scene
        self._chance = chance
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._error: BaseException | None = None

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Publish until the end of the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join(20)
        if self._error is not None:
            raise self._error

    def _publish(self) -> None:
        try:
            while not self._stopped.is_set():
                if self._scene.length() < 150:
                    for _ in range(50):
                        self._one()
                time.sleep(0.02)
        except BaseException as error:  # the test's own thread raises it
            self._error = error

    def _one(self) -> None:
        number = len(self.published)
        what, seconds = f"t{number}", self._chance.uniform(0.001, 0.05)
        options: dict[str, Any] = {"task_id": what}
        name, args = "short", [what, seconds]
        if number % 400 == 7:
            args.append("x" * LARGE)
        elif number % 400 == 207:
            args += ["", LARGE]
        elif number % 20 == 3:
            name = "sends"
            self.published.append(f"{what}-sent")
        elif number % 20 == 11:
            follower = f"{what}-after"
            options["link"] = self._scene.app.signature(f"{MODULE}.after", (follower,), task_id=follower)
            self.published.append(follower)
        self._scene.app.send_task(f"{MODULE}.{name}", args, {}, **options)
        self.published.append(what)


class Killer:
    """One blow at a time, at random, at any process but the worker itself."""

    def __init__(self, tree: Tree, chance: random.Random) -> None:
        self._tree = tree
        self._chance = chance
        self.blows: Counter[str] = Counter()
        self._ways: dict[str, tuple[int, Callable[[list[int]], None]]] = {
            "kill": (60, lambda children: _signal(signal.SIGKILL, chance.choice(children))),
            "crash": (8, lambda children: _signal(signal.SIGSEGV, chance.choice(children))),
            "several": (6, lambda children: _signal(signal.SIGKILL, *chance.sample(children, len(children) // 2))),
            "pause": (10, self._pause),
            "control group": (8, lambda children: _signal(signal.SIGTERM, *self._all_but_the_worker())),
            "interrupt": (4, lambda children: _signal(signal.SIGINT, *self._all_but_the_worker())),
            "nursery": (4, self._nursery),
        }

    def strike(self, way: str = "") -> None:
        """A blow of that kind, or of any."""
        children = self._tree.children()
        if not children:
            return
        names = list(self._ways)
        way = way or self._chance.choices(names, [self._ways[name][0] for name in names])[0]
        self._ways[way][1](children)
        self.blows[way] += 1

    def _pause(self, children: list[int]) -> None:
        child = self._chance.choice(children)
        _signal(signal.SIGSTOP, child)
        time.sleep(self._chance.uniform(0.0, 0.3))
        _signal(signal.SIGCONT, child)

    def _nursery(self, children: list[int]) -> None:
        _signal(signal.SIGKILL, *self._tree.nurseries())

    def _all_but_the_worker(self) -> list[int]:
        return self._tree.all()[1:]


def _signal(number: int, *pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Samples:
    """What the worker's own process holds, several times a second."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.descriptors: list[int] = []
        self.resident: list[float] = []

    def take(self) -> None:
        """One sample."""
        self.descriptors.append(descriptors(self._tree.pid))
        self.resident.append(resident(self._tree.pid))


@pytest.fixture(params=["redis", "rabbitmq"])
def field(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Scene:
    """A scene of prefork_tasks on each of the two brokers."""
    scene = make_scene(request.getfixturevalue(f"{request.param}_url"))
    scene.MODULE = MODULE
    return scene


def dead_count(scene: Scene) -> int:
    return scene.app.producer.publisher().length("celery.dead")


def dead_reasons(scene: Scene) -> dict[str, str]:
    """Task id to reason, of what is on the dead queue."""
    if not dead_count(scene):
        return {}
    if scene.url.startswith("redis"):
        with redis.Redis.from_url(scene.url) as client:
            infos = [json.loads(text)["reason"] for text in client.lrange("celery.dead.info", 0, -1)]
            ids = [json.loads(raw)["headers"]["id"] for raw in client.lrange("celery.dead", 0, -1)]
        return dict(zip(ids, infos, strict=True))
    found = {}
    with kombu.Connection(scene.url) as connection:
        channel = connection.channel()
        while (message := channel.basic_get("celery.dead")) is not None:  # back on it when the channel closes
            headers = message.properties["application_headers"]
            found[headers["id"]] = headers["x-greenq-reason"]
    return found


def whole(tree: Tree) -> bool:
    """Are there as many children as slots, from one nursery?"""
    return len(tree.nurseries()) == 1 and len(tree.children()) == CHILDREN


def wait_at_rest(tree: Tree) -> None:
    """Nothing waits, and the worker holds as many descriptors for a while."""
    wait_for(lambda: whole(tree), 15, lambda: f"a whole pool, not {tree.all()}")
    held: list[int] = []

    def steady() -> bool:
        held.append(descriptors(tree.pid))
        time.sleep(0.05)
        return len(held) > 10 and len(set(held[-10:])) == 1

    wait_for(steady, 15, lambda: f"a steady number of descriptors: {held[-20:]}")


def warm_up(scene: Scene) -> None:
    """Every connection there will be is there, the one for dead messages included."""
    scene.send("unknown", task_id=UNKNOWN)
    sent = [scene.send("short", f"w{number}", 0.01) for number in range(20)]
    sent.append(scene.send("sends", "w", 0.01))
    link = scene.app.signature(f"{MODULE}.after", ("w-after",))
    sent.append(scene.send("short", "w20", 0.01, link=link))
    for each in sent:
        each.get(timeout=20)
    wait_for(lambda: {"w-after", "w-sent"} <= set(scene.ledger.dones()), 10, "what followed")
    wait_for(lambda: dead_count(scene) == 1, 10, "the dead queue")


def missing(scene: Scene, published: list[str]) -> set[str]:
    """Not done yet."""
    return set(published) - set(scene.ledger.dones())


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
def test_processes_killed_at_random_under_load_lose_and_leave_nothing(field: Scene, seconds: int) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    node = field.worker(pool="prefork", concurrency=CHILDREN)
    tree = Tree(node.pid)
    warm_up(field)
    wait_at_rest(tree)
    samples, load, killer = Samples(tree), Load(field, random.Random(seed)), Killer(tree, chance)
    samples.take()
    files = open_files(tree.pid)
    until = time.monotonic() + seconds
    with load.flowing():
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.05, 0.3))
            killer.strike()
            samples.take()
        killer.strike("nursery")
    check_outcomes(field, load.published, node)
    wait_for(lambda: not field.length(), 10, "an empty queue")
    wait_at_rest(tree)
    samples.take()
    print(
        f"{field.url[:5]} seed {seed}: {len(load.published)} tasks, {dict(killer.blows)}, "
        f"{len(field.ledger.check(load.published).restarted)} again, {dead_count(field) - 1} dead, "
        f"descriptors {samples.descriptors[0]} to {max(samples.descriptors)} to {samples.descriptors[-1]}, "
        f"MB {samples.resident[0]:.0f} to {max(samples.resident):.0f} to {samples.resident[-1]:.0f}"
    )
    assert samples.descriptors[-1] <= samples.descriptors[0], f"{files}, {open_files(tree.pid)}"
    # The board has no place for ever higher numbers.
    assert max(field.send("index").get(timeout=10) for _ in range(20)) <= 3 * CHILDREN
    assert not [child for child in tree.all() for each in children_of(child) if is_zombie(each)]
    check_end(field, node, tree)
    said = [line for line in node.output().splitlines() if "stumbled" in line or "inside the worker" in line]
    assert not said, said


def check_outcomes(scene: Scene, published: list[str], node: Node) -> None:
    """Each has a result that says it went well, or that its processes died, and then is on the dead queue."""
    dead: dict[str, str] = {}
    pending = dict.fromkeys(published, "")

    def settled() -> bool:
        if not dead or any(state == "FAILURE" for state in pending.values()):
            dead.update(dead_reasons(scene))
        for each in list(pending):
            pending[each] = scene.app.AsyncResult(each).state
            if pending[each] == ("FAILURE" if each in dead else "SUCCESS"):
                del pending[each]
        # What follows a task that never ended well was never sent.
        return all(each.rpartition("-")[0] in dead for each in pending)

    def about() -> str:
        lines = [line for line in node.output().splitlines() if any(each in line for each in pending)]
        return f"{pending}, {dead}\n" + "\n".join(lines[-100:])

    wait_for(settled, 20, about)
    assert dead.pop(UNKNOWN) == "unknown_task"
    assert set(dead.values()) <= {"worker_lost"}, dead


def check_end(scene: Scene, node: Node, tree: Tree) -> None:
    """A supervisor's TERM to every process: the worker ends in order and leaves nothing."""
    before = tree.all()
    _signal(signal.SIGTERM, *before)
    began = time.monotonic()
    assert node.wait(10) == 0, node.output()
    print(f"ended in {time.monotonic() - began:.2f} s")
    wait_for(lambda: not marked(str(scene.ledger.path)), 3, lambda: f"{marked(str(scene.ledger.path))} of {before}")
    assert not scene.length()
    if scene.url.startswith("redis"):
        with redis.Redis.from_url(scene.url) as client:
            assert not client.hlen("unacked") and not client.zcard("unacked_index")


def test_what_keeps_killing_its_process_is_set_aside_after_three(field: Scene) -> None:
    node = field.worker(pool="prefork", concurrency=2)
    ways = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "abort": signal.SIGABRT}
    sent = [field.send("deadly", name, int(number), task_id=name) for name, number in ways.items()]
    names = [f"t{each}" for each in range(200)]
    for each in names:
        field.send("short", each, 0.01)
    wait_for(lambda: not missing(field, names), 20, lambda: node.output()[-3000:])
    wait_for(lambda: dead_count(field) == 3, 20, lambda: node.output()[-3000:])
    assert dead_reasons(field) == dict.fromkeys(ways, "worker_lost")
    assert {name: field.ledger.starts()[name] for name in ways} == dict.fromkeys(ways, 3)
    assert not field.ledger.check([*names, *ways]).duplicated
    for each in sent:
        assert each.state == "FAILURE"
    check_end(field, node, Tree(node.pid))
