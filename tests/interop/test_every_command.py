"""Every remote command, on every pool, from both clients, on Redis and RabbitMQ; and of greenq's client to Celery.

One worker of each pool, with a queue of its own, is asked everything: it has a task that runs, one that waits for its
ETA, and one that waits for its rate. A command of the registry that is not in the table here fails the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import pytest

from greenq.control.registry import default_registry
from tests.interop.fleet import Fleet
from tests.support.node import Node
from tests.support.processes import wait_for
from tests.support.shapes import Each, Open, misfit

POOLS = ("gevent", "eventlet", "prefork", "solo")
EXAMPLES = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "replies.json").read_text())

INT_OR_NONE, TEXT_OR_NONE = (int, None), (str, None)
ERROR = {"error": str}
INFO = {
    "id": str, "name": str, "args": list, "kwargs": dict, "type": str, "hostname": str, "time_start": (float, None),
    "acknowledged": bool, "worker_pid": INT_OR_NONE,
    "delivery_info": {"exchange": str, "routing_key": str, "priority": INT_OR_NONE, "redelivered": (bool, None)},
}  # fmt: skip
RUNNING = {**INFO, "time_start": float, "worker_pid": int}
WAITING = {**INFO, "time_start": None, "worker_pid": None}
QUEUE = {
    "name": str, "routing_key": str, "queue_arguments": (dict, None), "binding_arguments": (dict, None),
    "consumer_arguments": (dict, None), "durable": bool, "exclusive": bool, "auto_delete": bool, "no_ack": bool,
    "alias": TEXT_OR_NONE, "bindings": list, "no_declare": (bool, None), "expires": (float, None),
    "message_ttl": (float, None), "max_length": INT_OR_NONE, "max_length_bytes": INT_OR_NONE,
    "max_priority": INT_OR_NONE,
    "exchange": {
        "name": str, "type": str, "arguments": (dict, None), "durable": bool, "passive": bool, "auto_delete": bool,
        "delivery_mode": (int, str, None), "no_declare": bool,
    },
}  # fmt: skip
BROKER = {
    "hostname": str, "userid": TEXT_OR_NONE, "virtual_host": str, "port": int, "insist": bool, "ssl": (bool, dict),
    "transport": str, "connect_timeout": (float, None), "transport_options": dict, "login_method": TEXT_OR_NONE,
    "uri_prefix": TEXT_OR_NONE, "heartbeat": float, "failover_strategy": str, "alternates": list,
    "credential_provider": object,
}  # fmt: skip
RUSAGE = {
    "utime": float, "stime": float, "ixrss": int, "idrss": int, "isrss": int, "maxrss": int, "minflt": int,
    "majflt": int, "nswap": int, "inblock": int, "oublock": int, "msgsnd": int, "msgrcv": int, "nsignals": int,
    "nvcsw": int, "nivcsw": int,
}  # fmt: skip
# Of Celery's pools each has its own fields; of greenq's each has all that the guide names.
STATS = Open({
    "total": Each((str, int)), "pid": int, "clock": re.compile(r"\d+"), "uptime": int, "prefetch_count": int,
    "pool": Open({"implementation": str, "max-concurrency": int}), "broker": BROKER, "rusage": RUSAGE,
})  # fmt: skip
OUR_STATS = Open({
    **STATS,
    "pool": Open({
        "implementation": re.compile(r"greenq\.pools\.\w+"), "max-concurrency": int, "processes": [int],
        "max-tasks-per-child": (int, "N/A"), "put-guarded-by-semaphore": bool, "timeouts": [float],
        "writes": (dict, "N/A"), "running": int, "free": int, "capabilities": Each((str, bool)),
    }),
    "hub": Each((str, float)),
    "control": Open({"profile": str, "handled": int, "rejected": Each((str, int))}),
    "messages": Each((str, int)),
    "connections": Open({"consuming": True, "listening": True}),
})  # fmt: skip
REPORT = re.compile(
    r"\nsoftware -> \w+:[\d.]+(?: \(\w+\))? kombu:[\d.]+ py:[\d.]+\n {12}\S.*\nplatform -> .*\n {12}.*\n"
    r"loader   -> \S+\nsettings -> transport:\S+ results:\S+\n\n.*",
    re.DOTALL,
)
DUMP = re.compile(r"(- rss \(sample\):\n(-    > [\d.]+MB,\n)+)?- rss \(end\): [\d.]+MB\.\n")
SIZE = re.compile(r"\d+(\.\d+)?MB")
RESIZED = {"ok": re.compile("pool will (grow|shrink)")}

Call = Callable[[Any, dict[str, Any]], Any]


@dataclass(frozen=True)
class Row:
    """How a client asks one command, the shape of the reply, and the exceptions: by pool, and by Celery's worker.

    `inspect` and `control` name the client's method; without one the command is broadcast with `arguments`.
    `some` says that the reply of a worker with tasks is not empty.
    """

    shape: Any
    arguments: dict[str, Any] | None = None
    inspect: tuple[Any, ...] | None = None
    control: tuple[Any, ...] | None = None
    pools: dict[str, Any] | None = None
    celery: Any = ...
    some: bool = False

    def shape_on(self, pool: str) -> Any:
        return (self.pools or {}).get(pool, self.shape)

    def ask(self, client: Any, name: str, node: str, method: str = "") -> Any:
        """The reply of that node; an assertion if there is none."""
        method = method or name
        if self.inspect is not None:
            found = getattr(client.inspect([node], timeout=10), method)(*self.inspect)
            assert found is not None, f"{node} did not answer {name}"
            return found[node]
        options = {"destination": [node], "reply": True, "timeout": 10}
        if self.control is not None:
            replies = getattr(client, method)(*self.control, **options)
        else:
            replies = client.broadcast(name, self.arguments or {}, **options)
        assert [list(reply) for reply in replies] == [[node]], f"{node} did not answer {name}"
        return replies[0][node]


FIXED = {"solo": ERROR}  # the pool has exactly one slot
NO_SCALER = {"error": "ValueError('Autoscale not enabled')"}
PROCESSES = {pool: ERROR for pool in POOLS if pool != "prefork"}

ROWS: dict[str, Row] = {
    "ping": Row({"ok": "pong"}, inspect=()),
    "clock": Row({"clock": int}, inspect=()),
    "stats": Row(OUR_STATS, inspect=(), celery=STATS),
    "active_queues": Row([QUEUE], inspect=(), some=True),
    "conf": Row(Open({"broker_url": str, "result_backend": str}), inspect=()),
    "hello": Row(Open({"revoked": [str], "clock": int}), inspect=("other@test", ["aaa"])),
    # Celery's worker runs without gossip here; what comes of an election is in test_elections.
    "election": Row(None, {"id": "e1", "topic": "task", "action": {"task": "shop.add"}}, celery=ERROR),
    "report": Row({"ok": REPORT}, inspect=()),
    "memsample": Row(SIZE, inspect=()),
    "memdump": Row(DUMP, inspect=(5,)),
    "objgraph": Row(({"filename": str}, {"error": "ImportError('Requires the objgraph library')"}), inspect=()),
    "active": Row([RUNNING], inspect=(), some=True),
    "reserved": Row([WAITING], inspect=(), some=True),
    "scheduled": Row([{"eta": str, "priority": int, "request": WAITING}], inspect=(), some=True),
    "revoked": Row([str], inspect=()),
    "query_task": Row(Each((str, [(str, INFO)])), inspect=("later", "nope"), some=True),
    "registered": Row([re.compile(r"\w+\.\w+( \[.*\])?")], inspect=(), some=True),
    "revoke": Row({"ok": re.compile(r"tasks {'\w+'} flagged as revoked")}, control=("gone",)),
    "terminate": Row({"ok": re.compile(r"terminate: (\w+|tasks unknown)")}, control=("gone",)),
    "revoke_by_stamped_headers": Row(
        {"ok": re.compile("headers .*'customer'.* flagged as revoked, but not terminated")},
        control=({"customer": ["none"]},),
    ),
    "rate_limit": Row({"ok": "new rate limit set successfully"}, control=("shop.add", "1000/s")),
    "time_limit": Row({"ok": "time limits set successfully"}, control=("shop.add", 50, 60)),
    "shutdown": Row(None),  # never answers: asked last
    "pool_grow": Row(RESIZED, control=(1,), pools=FIXED, celery=(RESIZED, ERROR)),
    "pool_shrink": Row(RESIZED, control=(1,), pools=FIXED, celery=(RESIZED, ERROR)),
    "autoscale": Row(
        {"ok": "autoscale now max=8 min=2"}, control=(4, 2), pools=dict.fromkeys(POOLS, NO_SCALER), celery=NO_SCALER
    ),
    "pool_restart": Row({"ok": "reload started"}, control=(), pools=PROCESSES),
    "enable_events": Row({"ok": re.compile("task events (already )?enabled")}, control=()),
    "disable_events": Row({"ok": re.compile("task events (already )?disabled")}, control=()),
    "heartbeat": Row(None, control=()),
    "add_consumer": Row({"ok": re.compile(r"add consumer \w+")}, control=("extra",)),
    "cancel_consumer": Row({"ok": re.compile(r"no longer consuming from \w+")}, control=("extra",)),
}
ANSWERED = [name for name in ROWS if name != "shutdown"]
STRICT = [command.name for command in default_registry() if command.replies and not command.extras]


class Nodes:
    """The workers of one broker, each started when it is first asked for, and again if it has ended."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._nodes: dict[str, Node] = {}

    def on(self, pool: str) -> Node:
        """The worker of that pool, with its three tasks in place."""
        node = self._nodes.get(pool)
        if node is None or not node.running:
            node = self._nodes[pool] = self._started(pool)
        return node

    def _started(self, pool: str) -> Node:
        fleet, client = self.fleet, self.fleet.green.control
        if pool == "celery":
            node: Node = fleet.stock_node("celery", pool="prefork", concurrency=2, options=["-E", "-Q", "stock"])
            # Celery says that it is ready before it listens.
            wait_for(lambda: client.ping([node.name], timeout=1), 20, "Celery's worker to answer")
        else:
            node = fleet.green_node(pool, pool=pool, concurrency=1 if pool == "solo" else 2, options=["-Q", pool])
            asking: Any = client.inspect(node.name, timeout=5)
            for _ in range(2):
                fleet.send("seldom", queue=pool)
            fleet.send("note", "later", queue=pool, countdown=3600, task_id="later")
            wait_for(lambda: asking.reserved()[node.name] and asking.scheduled()[node.name], 15, "what waits")
            fleet.send("nap", f"{pool}-nap", 3600, queue=pool, task_id=f"{pool}-nap")
            wait_for(lambda: asking.active()[node.name], 15, "the task that runs")
        return node


@pytest.fixture(scope="module")
def nodes(make_fleet: Callable[..., Fleet], broker_kind: str) -> Nodes:
    return Nodes(make_fleet(broker_kind, worker_pool_restarts=True))


@pytest.fixture(params=["greenq", "celery"])
def client(request: pytest.FixtureRequest, nodes: Nodes) -> Any:
    """Each client in turn."""
    app: Any = nodes.fleet.green if request.param == "greenq" else nodes.fleet.stock
    return app.control


def test_the_table_has_every_command() -> None:
    assert set(ROWS) == {command.name for command in default_registry() if not command.own}


@pytest.mark.parametrize("name", ANSWERED)
def test_the_example_of_the_reference_has_the_shape_of_the_reply(name: str) -> None:
    assert misfit(ROWS[name].shape, EXAMPLES[name]["example"]) == ""


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ANSWERED)
def test_a_command_is_answered_in_its_shape(name: str, pool: str, client: Any, nodes: Nodes) -> None:
    row = ROWS[name]
    reply = row.ask(client, name, nodes.on(pool).name)
    assert misfit(row.shape_on(pool), reply) == ""
    assert reply or not row.some, "there is nothing in the reply"


@pytest.mark.parametrize("name", STRICT)
def test_a_command_refuses_an_argument_it_does_not_have(name: str, client: Any, nodes: Nodes) -> None:
    node = nodes.on("gevent").name
    arguments = {**EXAMPLES[name]["arguments"], "no_such": 1}
    (reply,) = client.broadcast(name, arguments, destination=[node], reply=True, timeout=10)
    assert "no_such" in reply[node]["error"]


@pytest.mark.parametrize("name", ANSWERED)
def test_greenqs_client_asks_a_worker_of_celery(name: str, nodes: Nodes) -> None:
    row = ROWS[name]
    shape = row.shape if isinstance(row.celery, EllipsisType) else row.celery
    reply = row.ask(nodes.fleet.green.control, name, nodes.on("celery").name)
    assert misfit(shape, reply) == ""


def test_shutdown_is_obeyed_and_never_answered(nodes: Nodes, broker_kind: str) -> None:
    fleet, ended = nodes.fleet, {pool: nodes.on(pool) for pool in (*POOLS, "celery")}
    fleet.green.control.revoke([f"{pool}-nap" for pool in POOLS], terminate=True)
    # Each client stops half of the pools, and on the other broker the other half.
    clients: list[Any] = [fleet.green.control, fleet.stock.control]
    one, other = clients if broker_kind == "redis" else reversed(clients)
    for client, pools in ((one, ("gevent", "prefork")), (other, ("eventlet", "solo")), (clients[0], ("celery",))):
        # Nothing answers, so nothing says when it is enough.
        names = [ended[pool].name for pool in pools]
        assert client.broadcast("shutdown", destination=names, reply=True, timeout=0.5) == []
    assert {pool: node.wait(15) for pool, node in ended.items()} == dict.fromkeys(ended, 0), fleet.output()
