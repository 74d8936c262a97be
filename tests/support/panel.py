"""A panel without a worker behind it: what it shows the test sets, what is asked of it is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from greenq._speedups import Request, decode_envelope
from greenq.config import Settings
from greenq.control import Accepted, Scheduled
from greenq.control.panel import Consuming, Hearing
from greenq.control.state import ConsumerState, MemoryLog, Qos
from greenq.exceptions import MalformedMessage
from greenq.wire.control import LogicalClock
from greenq.wire.stamps import stamps_of

T = TypeVar("T")


def make_request(task_id: str, name: str = "proj.add", args: Sequence[Any] = (2, 2), **headers: Any) -> Request:
    """A request as it comes out of a Redis queue, body unencoded."""
    envelope = {
        "body": json.dumps([list(args), {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": name,
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            **headers,
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "delivery_tag": f"tag-{task_id}",
        },
    }
    return decode_envelope(json.dumps(envelope).encode(), "celery", f"tag-{task_id}")


class FakeSlots:
    """Implements `greenq.control.panel.Slots`; `cannot` is what a verb raises, `scaler` the autoscaler's object."""

    def __init__(self, panel: FakePanel) -> None:
        self.scaler: dict[str, int] | None = None
        self.cannot: Exception | None = None
        self._panel = panel

    def autoscaler(self) -> dict[str, int] | None:
        return self.scaler

    def sizes(self) -> tuple[int, int]:
        return 10, 10

    def resize(self, by: int) -> None:
        self._verb("resize", by)

    def autoscale(self, most: int | None, least: int | None) -> tuple[int, int]:
        self._verb("autoscale", most, least)
        return most or 8, least or 2

    def restart(self, modules: Sequence[str] | None, *, reload: bool) -> None:
        self._verb("restart", modules, reload)

    def _verb(self, *asked: Any) -> None:
        if self.cannot is not None:
            raise self.cannot
        self._panel.post(self._panel.asked.append, asked)


class FakeConsuming:
    """Implements `greenq.control.panel.Consuming`; `cannot` is what a verb raises."""

    def __init__(self, panel: FakePanel) -> None:
        self.cannot: Exception | None = None
        self._panel = panel

    def queues(self) -> list[dict[str, Any]]:
        return [{"name": "celery"}]

    def add(self, name: str, options: dict[str, Any]) -> None:
        if self.cannot is not None:
            raise self.cannot
        self._panel.post(self._panel.asked.append, ("add", name, options))

    def cancel(self, name: str) -> None:
        self._panel.post(self._panel.asked.append, ("cancel", name))


class FakeRevokes:
    """Implements `greenq.control.panel.Revokes`."""

    def __init__(self, panel: FakePanel) -> None:
        self._panel = panel
        self._ids: list[str] = []
        self._pairs: list[tuple[str, str]] = []

    def ids(self) -> list[str]:
        return list(self._ids)

    def stamps(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for header, value in self._pairs:
            found.setdefault(header, []).append(value)
        return found

    def add(self, task_ids: Sequence[str]) -> None:
        self._panel.asked.append(("revoke", list(task_ids)))
        self._ids += [each for each in task_ids if each not in self._ids]

    def add_stamps(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._panel.asked.append(("add_stamps", list(pairs)))
        self._pairs += pairs

    def learn(self, task_ids: Iterable[Any], stamps: Mapping[str, Sequence[str]]) -> None:
        self._ids += [each for each in task_ids if each not in self._ids]
        self._pairs += [(header, value) for header, values in stamps.items() for value in values]

    def terminate_stamped(self, pairs: Sequence[tuple[str, str]], signal: int) -> list[tuple[str, str]]:
        self._panel.asked.append(("terminate_stamped", list(pairs), signal))
        carried = [pair for request in self._panel.requests["active"] for pair in stamps_of(request)]
        return [pair for pair in carried if pair in pairs]


class FakeVitals:
    """Implements `greenq.control.panel.Vitals`."""

    def messages(self) -> dict[str, int]:
        return {"held": 1, "unsettled": 3}

    def connections(self) -> dict[str, Any]:
        return {"consuming": True}


class FakeWatchers:
    """Implements `greenq.control.panel.Watchers`; `beats` counts heartbeats."""

    def __init__(self) -> None:
        self.sending = False
        self.beats = 0

    def enable(self) -> bool:
        before, self.sending = self.sending, True
        return not before

    def disable(self) -> bool:
        before, self.sending = self.sending, False
        return before

    def beat(self) -> None:
        self.beats += 1


class FakeElections:
    """Implements `greenq.control.panel.Electing`."""

    def __init__(self, panel: FakePanel) -> None:
        self._panel = panel

    def hold(self, election: str, topic: str, action: Any) -> None:
        self._panel.asked.append(("election", election, topic, action))

    def info(self) -> dict[str, Any]:
        return {"connected": True, "held": 0, "won": 0}


class FakePrefetch:
    """Implements `greenq.control.state.Prefetch`."""

    def __init__(self, prefetch: int = 40) -> None:
        self.prefetch = prefetch

    def change_prefetch(self, by: int) -> int:
        self.prefetch += by
        return self.prefetch


class FakeHub:
    """The part of MainHub that a verb which may wait needs."""

    def __init__(self, panel: FakePanel) -> None:
        self._panel = panel

    def run(self, verb: Callable[..., T], *args: object) -> T:
        return self._panel.post(verb, *args)


class FakePanel:
    """Implements `greenq.control.Panel`. `asked` lists the verbs called; `busy` makes them raise Accepted."""

    def __init__(self, hostname: str = "w@h", settings: Settings | None = None) -> None:
        self.hostname = hostname
        self.clock = LogicalClock()
        self.hearing = Hearing()
        self.app = SimpleNamespace(main="proj", module="proj", conf=settings or Settings({}), tasks={})
        self.requests: dict[str, list[Request]] = {"active": [], "reserved": []}
        self.held: list[Scheduled] = []
        self.asked: list[tuple[Any, ...]] = []
        self.busy = ""
        self.slots = FakeSlots(self)
        self.consuming: Consuming = FakeConsuming(self)
        self.vitals = FakeVitals()
        self.watchers = FakeWatchers()
        self.elections = FakeElections(self)
        self.memory = MemoryLog(lambda: 58_402_000)
        self.consumer = ConsumerState(Qos(FakeHub(self), FakePrefetch()))  # type: ignore[arg-type]
        self.tset = set
        self.revokes = FakeRevokes(self)

    def active(self) -> Sequence[Request]:
        return self.requests["active"]

    def reserved(self) -> Sequence[Request]:
        return self.requests["reserved"]

    def scheduled(self) -> Sequence[Scheduled]:
        return self.held

    def find(self, task_ids: Sequence[str]) -> Mapping[str, tuple[str, Request]]:
        everything = [(state, request) for state, requests in self.requests.items() for request in requests]
        everything += [("scheduled", entry.request) for entry in self.held]
        return {request.id: (state, request) for state, request in everything if request.id in task_ids}

    def arguments(self, request: Request) -> tuple[list[Any], dict[str, Any]]:
        try:
            args, kwargs, _ = json.loads(request.body)
        except ValueError as exc:
            raise MalformedMessage("body_decode", str(exc)) from exc
        return args, kwargs

    def acknowledged(self, request: Request) -> bool:
        return bool(request.started)

    def worker_pid(self, request: Request) -> int | None:
        return 4711 if request.started else None

    def totals(self) -> Mapping[str, int]:
        return {"proj.add": 3}

    def uptime(self) -> float:
        return 49.7

    def pool(self) -> dict[str, Any]:
        return {"implementation": "fake", "max-concurrency": 10}

    def hub(self) -> dict[str, Any]:
        return {"stalls": 0, "longest": 0.0, "stalled_for": 0.0}

    def broker(self) -> dict[str, Any]:
        return {"transport": "redis", "hostname": "localhost"}

    def prefetch_count(self) -> int:
        return 40

    def post(self, verb: Callable[..., T], *args: object) -> T:
        if self.busy:
            raise Accepted(self.busy)
        return verb(*args)

    def terminate(self, task_ids: Sequence[str], signal: int) -> list[str]:
        def verb() -> list[str]:
            self.asked.append(("terminate", list(task_ids), signal))
            running = {request.id for request in self.requests["active"]}
            return [task_id for task_id in task_ids if task_id in running]

        return self.post(verb)

    def rate_limit(self, task_name: str, limit: str | float | None) -> None:
        self.post(self.asked.append, ("rate_limit", task_name, limit))

    def time_limit(self, task_name: str, soft: float | None, hard: float | None) -> None:
        self.post(self.asked.append, ("time_limit", task_name, soft, hard))

    def shutdown(self, reason: str) -> None:
        self.asked.append(("shutdown", reason))
