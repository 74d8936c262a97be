"""Neighbours of both kinds tell each other what is revoked when one of them starts, or comes back to its broker."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from kombu.pidbox import Mailbox

from tests.interop.fleet import Fleet
from tests.support.node import CeleryNode, Node
from tests.support.processes import wait_for


@pytest.fixture
def fleet(own_nodes: Fleet) -> Fleet:
    """A broker of each kind; the tests start the workers."""
    return own_nodes


def mingling(fleet: Fleet, name: str) -> CeleryNode:
    """A ready worker of Celery that says hello when it starts."""
    env = {"SHOP_BROKER": fleet.url, "SHOP_BACKEND": fleet.backend}
    options = ["--without-gossip", "--without-heartbeat", "-Q", "elsewhere"]
    node = CeleryNode(
        "tests.interop.stock_app", name=name, cwd=fleet.directory, ledger=fleet.ledger, env=env, options=options,
        pool="solo", concurrency=1,
    )  # fmt: skip
    fleet.nodes.append(node)
    node.start()
    return node.wait_ready(40)


def known(fleet: Fleet, node: Node) -> list[str]:
    """The ids that a node knows to be revoked."""
    found = wait_for(lambda: fleet.green.control.inspect(node.name, timeout=2).revoked(), 10, node.output)
    ids: list[str] = found[node.name]
    return ids


def clock(fleet: Fleet, node: Node) -> int:
    found = wait_for(lambda: fleet.green.control.inspect(node.name, timeout=2).clock(), 10, node.output)
    return int(found[node.name]["clock"])


def revoke(fleet: Fleet, node: Node, *ids: str) -> None:
    """Revoke at one node only, and see the answer."""
    assert fleet.green.control.revoke(list(ids), destination=node.name, reply=True, timeout=5)


def test_a_greenq_worker_learns_from_all_its_neighbours_before_it_starts_anything(fleet: Fleet) -> None:
    stock, green = mingling(fleet, "stock"), fleet.green_node("green", options=["-Q", "elsewhere"])
    revoke(fleet, stock, "at-stock")
    revoke(fleet, green, "at-green-1", "at-green-2")
    fleet.green.control.revoke_by_stamped_headers({"tenant": "a"}, destination=green.name, reply=True, timeout=5)
    ahead = max(clock(fleet, stock), clock(fleet, green))
    waiting = [fleet.send("note", name, task_id=name) for name in ("at-stock", "at-green-2", "free")]
    stamped = {"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}}
    waiting.append(fleet.post("note", "stamped", headers=stamped))
    late = fleet.green_node("late", concurrency=4)
    assert set(known(fleet, late)) == {"at-stock", "at-green-1", "at-green-2"}
    assert clock(fleet, late) > ahead
    wait_for(lambda: fleet.ledger.starts()["free"])
    wait_for(lambda: len(re.findall("Discarding revoked task", late.output())) == 3)
    assert {"at-stock", "at-green-2", "stamped"}.isdisjoint(fleet.ledger.starts())
    assert "mingle: in step with 2 other nodes" in late.output()


def test_neighbours_learn_from_who_starts(fleet: Fleet, tmp_path: Path) -> None:
    stock, green = mingling(fleet, "stock"), fleet.green_node("green", options=["-Q", "elsewhere"])
    options = ["-Q", "elsewhere", "-S", str(tmp_path / "state")]
    keeper = fleet.green_node("keeper", options=options)
    revoke(fleet, keeper, "kept")
    keeper.kill()
    assert known(fleet, green) == known(fleet, stock) == []
    again = fleet.green_node("keeper", options=options)
    assert known(fleet, again) == ["kept"]
    for node in (green, stock):
        wait_for(lambda node=node: known(fleet, node) == ["kept"])  # type: ignore[misc]


def test_a_celery_worker_learns_from_a_greenq_worker(fleet: Fleet) -> None:
    green = fleet.green_node("green", options=["-Q", "elsewhere"])
    revoke(fleet, green, "one", "two")
    ahead = clock(fleet, green)
    stock = mingling(fleet, "stock")
    assert known(fleet, stock) == ["one", "two"]
    assert clock(fleet, stock) > ahead
    assert "mingle: sync complete" in stock.output()


def test_two_that_start_at_one_moment_learn_from_each_other(fleet: Fleet, tmp_path: Path) -> None:
    nodes = []
    for name in ("left", "right"):
        options = ["-Q", "elsewhere", "-S", str(tmp_path / name)]
        node = fleet.green_node(name, options=options)
        revoke(fleet, node, name)
        node.kill()
        nodes.append(node)
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_ready()
    for node in nodes:
        wait_for(lambda node=node: set(known(fleet, node)) == {"left", "right"})  # type: ignore[misc]
    assert [sorted(known(fleet, node)) for node in nodes] == [["left", "right"]] * 2


def test_without_mingle_nothing_is_asked(fleet: Fleet) -> None:
    green = fleet.green_node("green", options=["-Q", "elsewhere"])
    revoke(fleet, green, "one")
    alone = fleet.green_node("alone", options=["--without-mingle", "-Q", "elsewhere"])
    assert known(fleet, alone) == []
    assert "mingle:" not in alone.output()


def test_a_worker_that_is_alone_does_not_wait(fleet: Fleet) -> None:
    def seconds(*options: str) -> float:
        node = Node(
            "tests.interop.green_app", name="alone", cwd=fleet.directory, ledger=fleet.ledger, options=options,
            env={"GREENQ_BROKER_URL": fleet.url, "GREENQ_RESULT_BACKEND": fleet.backend},
        )  # fmt: skip
        started = time.monotonic()
        with node:
            return time.monotonic() - started

    # Which of the two is first is chance; the best of three is the machine at rest.
    without = min(seconds("--without-mingle") for _ in range(3))
    with_it = min(seconds() for _ in range(3))
    assert with_it < without + 0.5, f"{with_it:.2f} s against {without:.2f} s"


@contextmanager
def elder(url: str, revoked: Any) -> Iterator[list[Any]]:
    """A neighbour that answers hello as Celery before 5.7 does; yields what it is told."""
    told: list[Any] = []
    stop = threading.Event()
    with Connection(url) as connection:
        mailbox = Mailbox("celery", type="fanout", queue_exclusive="redis" not in url)
        node = mailbox(connection).Node("elder@x", state=None, channel=connection.default_channel)

        def hello(state: Any, from_node: str, revoked: Any = None, **kwargs: Any) -> Any:
            told.append(revoked)
            return {"revoked": answer, "clock": 4711}

        answer = revoked
        node.handler(hello)
        consumer = node.listen(callback=lambda body, message: node.handle_message(body, message))

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        time.sleep(0.2)  # kombu subscribes when it first waits
        yield told
        stop.set()
        thread.join()
        consumer.cancel()


@pytest.mark.parametrize(
    ("revoked", "learned"),
    [
        ({"one": [5.5, "one"], "two": [6.5, "two"]}, ["one", "two"]),
        (["one"], ["one"]),
        ([5, None, "x" * 600, "fine"], ["fine"]),
        ("nonsense", []),
        (None, []),
    ],
)
def test_replies_of_every_shape_are_read(fleet: Fleet, revoked: Any, learned: list[str]) -> None:
    with elder(fleet.url, revoked) as told:
        node = fleet.green_node("green", options=["-Q", "elsewhere"])
        assert known(fleet, node) == learned
        assert clock(fleet, node) > 4711
    assert told == [[]]
    assert "Traceback" not in node.output()
