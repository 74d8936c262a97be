"""What an installed Celery's receiver hears of a greenq worker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.interop.fleet import Fleet
from tests.support.node import Node
from tests.support.processes import wait_for

Event = dict[str, Any]
COMMON = {"type", "hostname", "timestamp", "pid", "clock", "utcoffset"}
SOFTWARE = {"sw_ident", "sw_ver", "sw_sys"}
FIELDS = {
    "task-received": {"uuid", "name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires"},
    "task-started": {"uuid"},
    "task-succeeded": {"uuid", "result", "runtime"},
    "task-failed": {"uuid", "exception", "traceback"},
    "task-retried": {"uuid", "exception", "traceback"},
    "task-revoked": {"uuid", "terminated", "signum", "expired"},
    "task-rejected": {"uuid", "requeue"},
    "worker-online": {"freq", "active", "processed", "loadavg", *SOFTWARE},
    "worker-heartbeat": {"freq", "active", "processed", "loadavg", *SOFTWARE},
    "worker-offline": {"freq", "active", "processed", "loadavg", *SOFTWARE},
}


class Watch:
    """Everything that Celery's receiver hears, in order."""

    def __init__(self, fleet: Fleet) -> None:
        self.heard: list[Event] = []
        self._fleet = fleet
        self._over = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        with self._fleet.stock.connection() as connection:
            receiver = self._fleet.stock.events.Receiver(connection, handlers={"*": self.heard.append})
            with receiver.consumer_context() as (own, _, _):
                self._ready.set()
                while not self._over:
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    @contextmanager
    def listening(self) -> Iterator[Watch]:
        self._thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            self._over = True
            self._thread.join(10)

    def kinds(self, task_id: str) -> list[str]:
        return [event["type"] for event in list(self.heard) if event.get("uuid") == task_id]

    def wait_kinds(self, task_id: str, *kinds: str) -> None:
        wait_for(
            lambda: self.kinds(task_id) == [f"task-{kind}" for kind in kinds],
            10,
            lambda: f"{kinds} of {task_id}, not {self.kinds(task_id)}",
        )

    def one(self, task_id: str, kind: str) -> Event:
        found = [event for event in self.heard if event.get("uuid") == task_id and event["type"] == f"task-{kind}"]
        assert len(found) == 1, found
        return found[0]

    def of_the_worker(self, kind: str) -> list[Event]:
        return [event for event in list(self.heard) if event["type"] == f"worker-{kind}"]


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet], broker_kind: str) -> Fleet:
    return make_fleet(broker_kind)


@pytest.mark.parametrize("pool", ["gevent", "prefork", "solo", "eventlet"])
def test_celerys_receiver_hears_the_life_of_every_task(fleet: Fleet, pool: str) -> None:
    watch = Watch(fleet)
    with watch.listening():
        node = fleet.green_node(pool=pool, concurrency=1 if pool == "solo" else 4, options=["-E"])
        added = fleet.send("add", 1, 2)
        watch.wait_kinds(added.id, "received", "started", "succeeded")
        failed = fleet.send("fail", "value")
        watch.wait_kinds(failed.id, "received", "started", "failed")
        late = fleet.send("add", 1, 2, expires=datetime.now(timezone.utc) - timedelta(seconds=5))
        watch.wait_kinds(late.id, "received", "revoked")
        far = fleet.send("add", 1, 2, countdown=600)
        watch.wait_kinds(far.id, "received")
        fleet.stock.control.revoke(far.id)
        watch.wait_kinds(far.id, "received", "revoked")
        long = fleet.send("nap", "long", 30)
        watch.wait_kinds(long.id, "received", "started")
        fleet.stock.control.terminate(long.id)
        watch.wait_kinds(long.id, "received", "started", "revoked")
        overdue = fleet.send("nap", "overdue", 30, time_limit=0.5)
        watch.wait_kinds(overdue.id, "received", "started", "failed")
        unknown = fleet.send("nobody-knows")
        watch.wait_kinds(unknown.id, "received", "failed")
        node.term()
        assert node.wait(15) == 0
        wait_for(lambda: watch.of_the_worker("offline"), 10, "worker-offline")
    check_fields(watch.heard, node.name)
    assert watch.one(added.id, "received")["args"] == "(1, 2)"
    assert watch.one(added.id, "succeeded")["result"] == "3"
    assert 0 <= watch.one(added.id, "succeeded")["runtime"] < 5
    assert watch.one(failed.id, "failed")["exception"] == "ValueError('boom', 42)"
    assert "Traceback" in watch.one(failed.id, "failed")["traceback"]
    # One event each, and none after it.
    assert watch.kinds(overdue.id) == ["task-received", "task-started", "task-failed"]
    assert watch.kinds(long.id) == ["task-received", "task-started", "task-revoked"]
    assert "TimeLimitExceeded" in watch.one(overdue.id, "failed")["exception"]
    ends = [watch.one(each.id, "revoked") for each in (late, far, long)]
    assert [(e["terminated"], e["expired"], e["signum"]) for e in ends] == [
        (False, True, None),
        (False, False, None),
        (True, False, signal.SIGTERM),
    ]


def check_fields(heard: list[Event], name: str) -> None:
    """Each event has just its fields, comes from the node, and clocks go up."""
    for event in heard:
        assert set(event) - {"local_received"} == COMMON | FIELDS[event["type"]], event
        assert event["hostname"] == name
    clocks = [event["clock"] for event in heard]
    assert clocks == sorted(clocks)


def test_task_events_are_switched_on_and_off_while_it_runs(fleet: Fleet) -> None:
    control = fleet.stock.control
    watch = Watch(fleet)
    with watch.listening():
        node = fleet.green_node(pool="prefork", concurrency=2)
        # Celery's client takes a list of names only.
        ask = {"destination": [node.name], "reply": True, "timeout": 5.0}
        fleet.send("add", 0, 0).get(timeout=10)
        assert control.enable_events(**ask) == [{node.name: {"ok": "task events enabled"}}]
        assert control.enable_events(**ask) == [{node.name: {"ok": "task events already enabled"}}]
        added = fleet.send("add", 3, 4)
        watch.wait_kinds(added.id, "received", "started", "succeeded")
        assert watch.one(added.id, "succeeded")["result"] == "7"
        assert control.disable_events(**ask) == [{node.name: {"ok": "task events disabled"}}]
        assert control.disable_events(**ask) == [{node.name: {"ok": "task events already disabled"}}]
        unheard = fleet.send("add", 5, 6)
        unheard.get(timeout=10)
        before = len(watch.of_the_worker("heartbeat"))
        assert control.heartbeat(**ask) == [{node.name: None}]
        wait_for(lambda: len(watch.of_the_worker("heartbeat")) > before, 5, "a heartbeat")
        assert watch.kinds(unheard.id) == []
        assert {event["type"] for event in watch.heard if "uuid" in event} <= {
            "task-received",
            "task-started",
            "task-succeeded",
        }


def test_a_child_process_tells_its_value_though_nobody_logs_it(fleet: Fleet) -> None:
    env = {"GREENQ_BROKER_URL": fleet.url, "GREENQ_RESULT_BACKEND": fleet.backend, "SHOP_SETTINGS": "{}"}
    quiet = Node(
        "tests.interop.green_app",
        name="quiet",
        cwd=fleet.directory,
        pool="prefork",
        concurrency=2,
        loglevel="WARNING",
        env=env,
        ledger=fleet.ledger,
    )
    fleet.nodes.append(quiet)
    watch = Watch(fleet)
    with watch.listening():
        quiet.start()
        fleet.send("add", 0, 0).get(timeout=20)
        fleet.stock.control.enable_events(reply=True, limit=1, timeout=5.0)
        added = fleet.send("add", 3, 4)
        watch.wait_kinds(added.id, "received", "started", "succeeded")
        assert watch.one(added.id, "succeeded")["result"] == "7"
        assert "succeeded" not in quiet.output()


def test_heartbeats_come_while_a_task_computes_and_count(fleet: Fleet) -> None:
    watch = Watch(fleet)
    with watch.listening():
        fleet.green_node(pool="gevent", concurrency=2, options=["--heartbeat-interval", "0.5"])
        fleet.send("spin", 3.0)
        wait_for(lambda: any(e["active"] == 1 for e in watch.of_the_worker("heartbeat")), 10, "a busy heartbeat")
        seen = len(watch.of_the_worker("heartbeat"))
        wait_for(lambda: len(watch.of_the_worker("heartbeat")) >= seen + 3, 3, "three more, while it computes")
        assert watch.heard[-1]["freq"] == 0.5
        wait_for(lambda: watch.of_the_worker("heartbeat")[-1]["active"] == 0, 10, "an idle heartbeat")
        assert watch.of_the_worker("heartbeat")[-1]["processed"] == 1


def test_without_heartbeat_only_coming_and_going_are_told(fleet: Fleet) -> None:
    watch = Watch(fleet)
    with watch.listening():
        node = fleet.green_node(pool="gevent", options=["--without-heartbeat"])
        node.term()
        assert node.wait(15) == 0
        wait_for(lambda: watch.of_the_worker("offline"), 10, "worker-offline")
        assert [event["type"] for event in watch.heard] == ["worker-online", "worker-offline"]
