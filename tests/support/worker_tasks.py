"""The application under the worker's integration tests; broker and results come from the environment."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import socket
import threading
import time

from greenq import GreenQ
from greenq.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from tests.support import bodies
from tests.support.bodies import linger, note, spin, task_of

logger = logging.getLogger(__name__)
app = GreenQ("worker_tasks", broker_lease=float(os.environ.get("GREENQ_TEST_LEASE", "20")))
app.conf.update(json.loads(os.environ.get("GREENQ_TEST_SETTINGS", "{}")))


add = task_of(app, __name__, bodies.add)
nap = task_of(app, __name__, bodies.nap)
compute = task_of(app, __name__, bodies.compute)


@app.task(acks_late=False)
def early(what: str, seconds: float) -> str:
    return bodies.nap(what, seconds)


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
        linger(how)
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "never"


@app.task(time_limit=0.5)
def hard(how: str) -> str:
    while True:
        try:
            linger(how)
        except Exception:
            continue


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


@app.task
def overdue(what: str, how: str, catch: bool = False) -> float:
    """Outlives its limit by far. The ledger has the moment it started; caught, the limit's moment is returned."""
    began = time.time()
    note("start", f"{what}@{began:.3f}")
    try:
        _outlive(how, catch)
    except SoftTimeLimitExceeded:
        if not catch:
            raise
    return time.time() - began


def _outlive(how: str, catch: bool) -> None:
    until = time.monotonic() + 30
    if how == "sleeps":
        time.sleep(30)
    elif how == "reads a socket":
        left, right = socket.socketpair()
        left.recv(1)
        right.close()
    while time.monotonic() < until:
        try:
            sum(range(100))
            if how == "swallows":
                time.sleep(0.01)
        except Exception:
            if how == "computes" or catch:
                raise


@app.task(bind=True, acks_on_timeout=False, time_limit=0.5)
def once_more_on_timeout(self, what: str) -> str:  # type: ignore[no-untyped-def]
    note("start", what)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(30)
    note("done", what)
    return what


@app.task
def sends_for_ever(what: str) -> None:
    note("start", what)
    while True:
        add.delay(1, 2)


@app.task
def logs_for_ever(what: str) -> None:
    note("start", what)
    while True:
        logger.info("still here")


class Dropped:
    """Takes as long to be finalized as to be made."""

    def __init__(self) -> None:
        spin(0.005)

    def __del__(self) -> None:
        spin(0.005)


@app.task
def finalizes_for_ever(what: str) -> None:
    note("start", what)
    while True:
        Dropped()


@app.task
def keeps_the_lock(what: str, how: str, more: float = 0.0) -> str:
    """C code that lets no other thread run, then as many seconds of Python."""
    note("start", what)
    if how == "sleep":
        ctypes.PyDLL(None).usleep(2_000_000)
    elif how == "regular expression":
        re.match(r"(a+)+$", "a" * 25 + "b")
    elif how == "number":
        bin(3**4_000_000)
    spin(more)
    note("done", what)
    return what


@app.task
def leaves_a_busy_thread(seconds: float) -> None:
    threading.Thread(target=_compute_beside, args=(seconds,)).start()


def _compute_beside(seconds: float) -> None:
    spin(seconds)
