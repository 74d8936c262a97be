"""Remote control across: Celery's client and prompt to greenq, greenq's client to Celery, a broadcast to both."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import exceptions

from greenq.exceptions import TaskRevokedError
from tests.interop.fleet import Fleet
from tests.support.processes import run, wait_for

GREEN, STOCK = "green@test", "stock@test"
TASK_INFO = {
    "id", "name", "args", "kwargs", "type", "hostname", "time_start", "acknowledged", "delivery_info", "worker_pid",
}  # fmt: skip
STATS = {"total", "pid", "clock", "uptime", "pool", "broker", "prefetch_count", "rusage"}
QUEUE_INFO = {
    "name", "exchange", "routing_key", "queue_arguments", "binding_arguments", "consumer_arguments", "durable",
    "exclusive", "auto_delete", "no_ack", "alias", "bindings", "no_declare", "expires", "message_ttl", "max_length",
    "max_length_bytes", "max_priority",
}  # fmt: skip


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    """One worker of each kind, each with a queue of its own."""
    fleet = make_fleet(broker_kind, worker_prefetch_multiplier=2)
    fleet.green_node(concurrency=2, options=["-Q", "green"])
    fleet.stock_node(pool="prefork", concurrency=2, options=["-Q", "stock"])
    return fleet


def celery_line(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Celery's command line; a red exit code is shown with what it said."""
    return run(fleet.line("celery", *words), env=fleet.env(), cwd=fleet.directory)


def test_one_broadcast_reaches_both_kinds(fleet: Fleet) -> None:
    pong = {"ok": "pong"}
    by_celery = fleet.stock.control.ping(timeout=3, limit=2)
    by_greenq = fleet.green.control.ping(timeout=3, limit=2)
    for replies in (by_celery, by_greenq):
        assert sorted(replies, key=str) == [{GREEN: pong}, {STOCK: pong}]
    found: Any = fleet.stock.control.inspect(timeout=3, limit=2).stats()
    assert set(found[GREEN]) >= STATS
    assert set(found[STOCK]) >= STATS
    assert set(found[GREEN]["broker"]) == set(found[STOCK]["broker"])
    assert {key: type(found[GREEN][key]) for key in STATS} == {key: type(found[STOCK][key]) for key in STATS}
    same = {key: value for key, value in found[GREEN]["broker"].items() if key != "connect_timeout"}
    for key in ("hostname", "port", "transport", "virtual_host", "userid"):
        assert same[key] == found[STOCK]["broker"][key], key
    queues: Any = fleet.green.control.inspect(timeout=3, limit=2).active_queues()
    for node, name in ((GREEN, "green"), (STOCK, "stock")):
        (info,) = queues[node]
        assert info["name"] == name
        assert set(info) == QUEUE_INFO
    assert {**queues[GREEN][0], "name": 0, "routing_key": 0, "exchange": 0} == {
        **queues[STOCK][0], "name": 0, "routing_key": 0, "exchange": 0
    }  # fmt: skip


def test_registered_tasks_are_told_alike(fleet: Fleet) -> None:
    for client in (fleet.stock.control, fleet.green.control):
        found: Any = client.inspect(timeout=3, limit=2).registered()
        assert found[GREEN] == found[STOCK]
        assert "shop.limited [rate_limit=1000/s]" in found[GREEN]


@pytest.mark.parametrize("asker", ["stock", "green"])
def test_what_runs_waits_and_is_scheduled_has_the_same_shape(fleet: Fleet, asker: str) -> None:
    client: Any = getattr(fleet, asker).control
    sent = {}

    def ask(command: str, *args: Any) -> Any:
        return getattr(client.inspect([GREEN, STOCK], timeout=3), command)(*args)

    for queue, node in (("green", GREEN), ("stock", STOCK)):
        later = fleet.send("note", "later", queue=queue, countdown=300, shadow="alias")
        wait_for(lambda: (ask("scheduled") or {}).get(node), 10, "a scheduled task")  # noqa: B023
        # What waits for its rate is reserved in greenq and in no list of Celery's; and greenq with all slots
        # full of long tasks takes nothing more, where Celery fills its prefetch.
        waiting = [fleet.send("seldom", queue=queue) for _ in range(2)] if node == GREEN else []
        naps = [fleet.send("nap", f"{asker}-{queue}-{n}", 20, queue=queue) for n in range(2)]
        waiting += [fleet.send("note", "waiting", queue=queue)]
        sent[node] = (naps, waiting, later)
    wait_for(lambda: len([each for each in fleet.ledger.running() if each.startswith(asker)]) == 4, 15, "the naps")
    for node in (GREEN, STOCK):
        wait_for(lambda: ask("reserved")[node], 10, f"a reserved task of {node}")  # noqa: B023

    for node, (naps, held, later) in sent.items():
        active = ask("active")[node]
        assert {each["id"] for each in active} == {each.id for each in naps}
        for each in active:
            assert set(each) == TASK_INFO
            assert (each["name"], each["type"], each["hostname"]) == ("shop.nap", "shop.nap", node)
            assert each["args"][1] == 20
            assert abs(each["time_start"] - time.time()) < 60
            assert isinstance(each["worker_pid"], int)
            assert each["delivery_info"] == {
                "exchange": "", "routing_key": node.split("@")[0], "priority": each["delivery_info"]["priority"],
                "redelivered": each["delivery_info"]["redelivered"],
            }  # fmt: skip
        # Celery keeps a revoked task in its timer until it is due: the other round's is still there.
        (entry,) = (each for each in ask("scheduled")[node] if each["request"]["id"] == later.id)
        assert set(entry) == {"eta", "priority", "request"}
        assert set(entry["request"]) == TASK_INFO
        assert (entry["request"]["id"], entry["request"]["name"]) == (later.id, "alias")
        assert entry["request"]["time_start"] is None
        found = ask("query_task", later.id, naps[0].id, "unknown")[node]
        assert {key: value[0] for key, value in found.items()} == {later.id: "scheduled", naps[0].id: "active"}
        for each in ask("reserved")[node]:
            assert set(each) == TASK_INFO
            assert each["id"] in {one.id for one in held}
            assert (each["time_start"], each["worker_pid"]) == (None, None)
    for naps, held, later in sent.values():
        for each in naps:
            client.revoke(each.id, terminate=True)
            # "revoked" is what a Celery worker stores at once for an id that runs elsewhere.
            with pytest.raises(exceptions.TaskRevokedError, match="terminated|revoked"):
                each.get(timeout=15)
        client.revoke([later.id, *(each.id for each in held[:-1])])
        assert held[-1].get(timeout=15) == "waiting"
    revoked = ask("revoked")
    assert {later.id for _, _, later in sent.values()} <= set(revoked[GREEN]) & set(revoked[STOCK])


@pytest.mark.parametrize("asker", ["stock", "green"])
def test_verbs_are_answered_alike(fleet: Fleet, asker: str) -> None:
    client: Any = getattr(fleet, asker).control
    options = {"reply": True, "timeout": 3, "destination": [GREEN, STOCK]}

    def answers(command: str, **arguments: Any) -> Any:
        replies = client.broadcast(command, arguments, **options)
        found = {node: data for reply in replies for node, data in reply.items()}
        assert found[GREEN] == found[STOCK], found
        return found[GREEN]

    assert answers("rate_limit", task_name="shop.note", rate_limit="100/m") == {
        "ok": "new rate limit set successfully"
    }  # fmt: skip
    assert answers("rate_limit", task_name="shop.note", rate_limit=0) == {"ok": "rate limit disabled successfully"}
    assert answers("rate_limit", task_name="shop.nope", rate_limit="1/s") == {"error": "unknown task"}
    assert answers("revoke", task_id="one") == {"ok": "tasks {'one'} flagged as revoked"}
    assert answers("revoke", task_id=["one"], terminate=True, signal="TERM") == {"ok": "terminate: tasks unknown"}
    for reply in client.broadcast("nosuch", **options):
        assert [list(data) for data in reply.values()] == [["error"]]
    assert answers("ping", bad=1) == {"ok": "pong"}


def test_revoked_tasks_never_start_on_either(fleet: Fleet) -> None:
    for queue in ("green", "stock"):
        by_celery, by_greenq = f"revoked-{queue}-celery", f"revoked-{queue}-greenq"
        fleet.stock.control.revoke(by_celery, reply=True, timeout=3, destination=[GREEN, STOCK])
        fleet.green.control.revoke(by_greenq, reply=True, timeout=3, destination=[GREEN, STOCK])
        sent = [fleet.send("note", name, task_id=name, queue=queue) for name in (by_celery, by_greenq)]
        for each in sent:
            with pytest.raises(exceptions.TaskRevokedError, match="revoked"):
                each.get(timeout=15)
            assert fleet.ledger.starts()[each.id] == 0
    posted = fleet.post("nap", "ended", 30, queue="stock")
    wait_for(lambda: fleet.ledger.starts()["ended"], 10, "the task")
    posted.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        posted.get(timeout=15)


def test_celerys_command_line_shows_greenqs_worker(fleet: Fleet) -> None:
    pong = celery_line(fleet, "inspect", "-d", GREEN, "ping", "--json")
    assert (pong.returncode, json.loads(pong.stdout)) == (0, {GREEN: {"ok": "pong"}}), pong.stderr
    status = celery_line(fleet, "status")
    assert status.returncode == 0, status.stderr
    assert f"{GREEN}: OK" in status.stdout.replace("->  ", "")
    assert "2 nodes online" in status.stdout
    stats = celery_line(fleet, "inspect", "-d", GREEN, "stats", "--json")
    assert set(json.loads(stats.stdout)[GREEN]) >= STATS
    control = celery_line(fleet, "control", "-d", GREEN, "rate_limit", "shop.limited", "500/s")
    assert "new rate limit set successfully" in control.stdout, control.stderr
    registered = celery_line(fleet, "inspect", "-d", GREEN, "registered")
    assert "shop.limited [rate_limit=500/s]" in registered.stdout, registered.stderr


def test_celerys_command_line_reads_greenqs_results(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet("redis")
    fleet.green_node()
    good, bad = fleet.send("add", 40, 2), fleet.send("fail", "value")
    good.get(timeout=10)
    with pytest.raises(ValueError):
        bad.get(timeout=10)
    shown = celery_line(fleet, "result", good.id)
    assert (shown.returncode, shown.stdout.strip()) == (0, "42"), shown.stderr
    shown = celery_line(fleet, "result", bad.id, "--traceback")
    assert "ValueError" in shown.stdout
    assert "shop.py" in shown.stdout


@pytest.mark.parametrize("by", ["stock", "green"])
def test_either_client_stops_either_worker(make_fleet: Callable[..., Fleet], broker_kind: str, by: str) -> None:
    fleet = make_fleet(broker_kind)
    green = fleet.green_node()
    stock = fleet.stock_node(pool="solo", concurrency=1)
    client: Any = getattr(fleet, by).control
    client.shutdown(destination=[GREEN])
    assert green.wait(10) == 0
    assert stock.running
    client.shutdown()
    assert stock.wait(15) == 0
