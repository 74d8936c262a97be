"""Elections in fleets of both kinds: exactly one node does it, and Celery's nodes come to an end with theirs."""

from __future__ import annotations

import re
from typing import Any

import kombu
import pytest

from tests.interop.fleet import Fleet
from tests.support.asked import Asked
from tests.support.node import CeleryNode, Node
from tests.support.processes import wait_for

LEADS = {"green": r"Election {}: this node leads", "stock": r"I won the election '{}'"}
ENDED = {"green": r"Election {}: .* leads", "stock": r"I won the election '{0}'|elected for '{0}'"}


@pytest.fixture
def fleet(own_nodes: Fleet) -> Fleet:
    """A broker of each kind; the tests start the workers."""
    return own_nodes


def gossiping(fleet: Fleet, name: str) -> CeleryNode:
    """A ready worker of Celery that takes part in elections."""
    env = {"SHOP_BROKER": fleet.url, "SHOP_BACKEND": fleet.backend}
    node = CeleryNode(
        "tests.interop.stock_app", name=name, cwd=fleet.directory, ledger=fleet.ledger, env=env,
        options=["--without-mingle"], pool="prefork", concurrency=1, loglevel="DEBUG",
    )  # fmt: skip
    fleet.nodes.append(node)
    node.start()
    return node.wait_ready(40)


def wait_acquainted(nodes: list[Node]) -> None:
    """Until each of Celery's nodes has heard of every other node: it counts those that it waits for."""
    for node in nodes:
        if isinstance(node, CeleryNode):
            for other in nodes:
                if other is not node:
                    node.wait_output(rf"{re.escape(other.name)} joined the party", 20)


def action(what: str) -> dict[str, Any]:
    return {
        "task": "shop.note", "args": [what], "kwargs": {}, "options": {"task_id": f"id-{what}"},
        "subtask_type": None, "immutable": False,
    }  # fmt: skip


def kind(node: Node) -> str:
    return "stock" if isinstance(node, CeleryNode) else "green"


def hold(fleet: Fleet, nodes: list[Node], election: str, client: Any) -> list[str]:
    """Hold an election to its end on every node, and return who leads; its action has been done once."""
    client.election(election, "task", action(election))
    for node in nodes:
        node.wait_output(ENDED[kind(node)].format(election), 20)
    wait_for(lambda: fleet.ledger.dones()[election], 20, fleet.output)
    assert fleet.ledger.starts()[election] == 1, fleet.output()
    return [node.name for node in nodes if re.search(LEADS[kind(node)].format(election), node.output())]


def test_nodes_of_both_kinds_elect_one(fleet: Fleet, broker_kind: str) -> None:
    """With two of each: of one Celery node alone, or faster than everybody else, the worker crashes (wire.md 11)."""
    nodes: list[Node] = [fleet.green_node("green0"), fleet.green_node("green1")]
    nodes += [gossiping(fleet, "stock0"), gossiping(fleet, "stock1")]
    wait_acquainted(nodes)
    found = []
    for number in range(6):
        client: Any = (fleet.green if number % 2 else fleet.stock).control
        found += [hold(fleet, nodes, f"{broker_kind}{number}", client)]
    assert [len(leaders) for leaders in found] == [1] * 6, found
    assert all(node.running for node in nodes)
    for node in nodes[:2]:
        assert Asked(fleet.green, node)("stats")["elections"]["dropped"] == {}


def test_a_signature_of_celerys_is_elected_under_its_own_id(fleet: Fleet) -> None:
    """As Celery's `Signature.election` asks: the id of the election is the task's."""
    node = fleet.green_node("green0")
    signature = fleet.stock.signature("shop.note", ("signed",), task_id="the-id", countdown=0.1)
    fleet.stock.control.election("the-id", "task", signature)
    node.wait_output(r"shop\.note\[the-id\] succeeded", 20)
    assert fleet.ledger.starts()["signed"] == 1
    fleet.ledger.path.write_text("")


def test_celerys_receiver_hears_what_celerys_nodes_say(fleet: Fleet) -> None:
    """The fields that its gossip reads, under the keys it listens to."""
    node = fleet.green_node("green0")
    heard: list[tuple[str, dict[str, Any]]] = []
    with fleet.stock.connection() as connection:
        receiver = fleet.stock.events.Receiver(connection, routing_key="worker.#")

        def note(message: kombu.Message) -> None:
            key = message.delivery_info["routing_key"]
            if "elect" in key:
                heard.append((key, message.payload))

        with kombu.Consumer(receiver.channel, [receiver.queue], on_message=note, no_ack=True, accept=["json"]):

            def drained() -> bool:
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    return False
                return bool(heard) and heard[-1][0] == "worker.elect.ack"

            drained()  # kombu subscribes when it first waits
            fleet.green.control.election("e", "task", action("heard"))
            wait_for(drained, 20, "both events")
    pid = int(Asked(fleet.green, node)("stats")["pid"])
    (elect_key, elect), (ack_key, ack) = heard
    assert (elect_key, ack_key) == ("worker.elect", "worker.elect.ack")
    said = {"hostname": node.name, "pid": pid, "id": "e"}
    stands = {**said, "type": "worker-elect", "topic": "task", "action": action("heard"), "cver": 1}
    assert {key: elect.get(key) for key in stands} == stands
    acknowledges = {**said, "type": "worker-elect-ack"}
    assert {key: ack.get(key) for key in acknowledges} == acknowledges
    assert 0 < elect["clock"] < ack["clock"]
