"""The application under the worker's integration tests; broker and results come from the environment."""

from __future__ import annotations

import os
import time

from greenq import GreenQ
from greenq.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from tests.support.ledger import Ledger

app = GreenQ("worker_tasks", broker_lease=float(os.environ.get("GREENQ_TEST_LEASE", "20")))
ledger = Ledger.from_env() if Ledger.VARIABLE in os.environ else None


def note(word: str, what: object) -> None:
    assert ledger is not None
    getattr(ledger, word)(what)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def nap(what: str, seconds: float) -> str:
    note("start", what)
    time.sleep(seconds)
    note("done", what)
    return what


@app.task(acks_late=False)
def early(what: str, seconds: float) -> str:
    note("start", what)
    time.sleep(seconds)
    note("done", what)
    return what


@app.task
def compute(what: str, seconds: float) -> str:
    note("start", what)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))
    note("done", what)
    return what


@app.task
def fail(text: str) -> None:
    raise ValueError(text)


@app.task
def leave() -> None:
    raise SystemExit(3)


@app.task(throws=(KeyError,))
def expected() -> None:
    raise KeyError("expected")


@app.task(bind=True, max_retries=2, default_retry_delay=0.1)
def retried(self, what: str) -> int:  # type: ignore[no-untyped-def]
    note("start", what)
    if self.request.retries < 2:
        raise self.retry(exc=RuntimeError("not yet"))
    note("done", what)
    return int(self.request.retries)


@app.task(autoretry_for=(OSError,), max_retries=1, retry_backoff=0.05, retry_jitter=False)
def autoretried(what: str) -> None:
    note("start", what)
    raise OSError("always")


@app.task
def ignored() -> None:
    raise Ignore


@app.task(bind=True)
def rejected(self, what: str) -> str:  # type: ignore[no-untyped-def]
    note("start", what)
    if not self.request.delivery_info["redelivered"]:
        raise Reject("once more", requeue=True)
    note("done", what)
    return what


@app.task(rate_limit="10/s")
def limited(what: str) -> float:
    note("done", what)
    return time.time()


@app.task(soft_time_limit=0.5, time_limit=1.5)
def soft(how: str) -> str:
    try:
        _pass(how)
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "never"


@app.task(time_limit=0.5)
def hard(how: str) -> str:
    while True:
        try:
            _pass(how)
        except Exception:
            continue


def _pass(how: str) -> None:
    if how == "sleep":
        time.sleep(30)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        sum(range(100))


@app.task(track_started=True)
def tracked(seconds: float) -> None:
    time.sleep(seconds)


@app.task(bind=True)
def about(self) -> dict[str, object]:  # type: ignore[no-untyped-def]
    request = self.request
    return {
        "id": request.id,
        "task": request.task,
        "args": list(request.args),
        "retries": request.retries,
        "hostname": request.hostname,
        "queue": request.delivery_info["routing_key"],
        "header": request.headers.get("custom"),
        "eager": request.is_eager,
    }


@app.task
def sends(what: str) -> str:
    return str(nap.delay(what, 0).id)
