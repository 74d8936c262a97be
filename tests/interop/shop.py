"""The same tasks for an app of greenq and for one of Celery, so that either kind of worker can run any of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date, datetime
from datetime import time as clock
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from tests.support.ledger import Ledger

F = TypeVar("F", bound=Callable[..., Any])

# Every type kombu's JSON carries (wire.md 5.5), alone and inside containers.
KINDS: dict[str, Any] = {
    "datetime": datetime.fromisoformat("2026-11-22T06:49:18.652896+00:00"),
    "naive": datetime(2026, 11, 22, 6, 49),  # noqa: DTZ001  (a producer may send one)
    "date": date(2026, 2, 28),
    "time": clock(23, 59, 58),
    "decimal": Decimal("0.1000000000000000000000001"),
    "uuid": UUID("12345678-1234-4678-9234-567812345678"),
    "bytes": b"plain",
    "binary": b"\xff\x00\xfe",
    "text": 'späť ☃ \U0001f600 " \\ \x06\x16 \x00',
    "big": 2**70,
    "float": 1.5e300,
    "none": None,
    "flags": [True, False],
    "nested": {"list": [{"when": datetime.fromisoformat("2026-01-01T00:00:00+02:00")}, [Decimal("1.10")]]},
}


class Broken(ValueError):
    """An exception of the user's own, in a module both sides import."""

    def __init__(self: Any, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class Picky(Exception):
    """One that cannot be made again from its args."""

    def __init__(self: Any, *, why: str) -> None:
        super().__init__(f"because {why}")


def define(app: Any, errors: Any) -> None:
    """Register the tasks; `errors` has the library's Reject and Ignore."""
    ledger = Ledger.from_env()

    def task(**options: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            registered: F = app.task(name=f"shop.{function.__name__}", **options)(function)
            return registered

        return register

    @task()
    def echo(*args: Any, **kwargs: Any) -> list[Any]:
        return [args, kwargs]

    @task()
    def kinds(value: Any) -> dict[str, list[str]]:
        return {key: [type(each).__name__, repr(each)] for key, each in value.items()}

    @task()
    def add(x: Any, y: Any) -> Any:
        return x + y

    @task()
    def note(what: Any) -> Any:
        ledger.start(what)
        ledger.done(what)
        return what

    @task()
    def nap(what: str, seconds: float) -> str:
        ledger.start(what)
        time.sleep(seconds)
        ledger.done(what)
        return what

    @task()
    def spin(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    @task(acks_late=True)
    def late(what: str, seconds: float) -> str:
        ledger.start(what)
        time.sleep(seconds)
        ledger.done(what)
        return what

    @task()
    def fail(kind: str) -> None:
        if kind == "own":
            raise Broken(7, "own")
        if kind == "picky":
            raise Picky(why="of args")
        if kind == "object":
            raise ValueError("holds", object())
        raise {"value": ValueError, "key": KeyError, "zero": ZeroDivisionError, "os": OSError}[kind]("boom", 42)

    @task(bind=True)
    def about(self: Any) -> dict[str, Any]:
        request = self.request
        names = (
            "id", "task", "shadow", "eta", "expires", "retries", "timelimit", "root_id", "parent_id", "origin",
            "correlation_id", "reply_to", "ignore_result", "delivery_info", "hostname", "group",
        )  # fmt: skip
        found = {name: getattr(request, name, "absent") for name in names}
        found["headers"] = dict(request.headers or {})
        found["custom"] = request.get("custom")
        return {key: each.isoformat() if isinstance(each, datetime) else each for key, each in found.items()}

    @task(bind=True, max_retries=2, default_retry_delay=0.1)
    def again(self: Any, what: str) -> int:
        ledger.start(what)
        if self.request.retries < 2:
            raise self.retry(exc=RuntimeError("not yet"))
        return int(self.request.retries)

    @task(bind=True, max_retries=1)
    def never(self: Any) -> None:
        raise self.retry(countdown=0.05)

    @task(autoretry_for=(OSError,), max_retries=1, retry_backoff=1, retry_jitter=False)
    def auto(what: str) -> None:
        ledger.start(what)
        raise OSError("always")

    @task(bind=True, max_retries=None)
    def waits(self: Any, seconds: float) -> None:
        raise self.retry(exc=KeyError("later"), countdown=seconds)

    @task(track_started=True)
    def tracked(seconds: float) -> str:
        time.sleep(seconds)
        return "tracked"

    @task(bind=True)
    def progress(self: Any, seconds: float) -> str:
        self.update_state(state="PROGRESS", meta={"done": 50})
        time.sleep(seconds)
        return "all"

    @task()
    def parent() -> str:
        return str(app.send_task("shop.add", (1, 1), add_to_parent=True).id)

    @task(bind=True)
    def rejects(self: Any, what: str, requeue: bool) -> str:
        ledger.start(what)
        if requeue and self.request.delivery_info["redelivered"]:
            return "second"
        raise errors.Reject("no", requeue=requeue)

    @task()
    def ignores(what: str) -> None:
        ledger.start(what)
        raise errors.Ignore

    @task()
    def failed_old(task_id: str) -> None:
        ledger.start(f"old:{task_id}")

    @task()
    def failed_new(request: Any, exc: Any, traceback: Any) -> None:
        ledger.start(f"new:{request.id}:{type(exc).__name__}:{'raise' in str(traceback)}")

    @task(rate_limit="1000/s")
    def limited() -> None:
        pass

    @task(rate_limit="1/h")
    def seldom() -> None:
        pass
