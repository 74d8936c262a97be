"""The rows of the control plane: how soon a node answers, whatever its pool does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench.measure import Servers, run_client, worker_running
from bench.plan import Plan
from bench.report import Row
from tests.support.processes import wait_for

_PINGS = 100
_CELERY_PINGS = 20  # where it does not answer, each takes a second
_SETTLE = 1.0  # seconds after the last task was taken


class _State(NamedTuple):
    """What the pool does while the node is asked."""

    name: str
    pool: str
    concurrency: int
    task: str = ""  # sent by bench.compare.client
    sent: int = 0


_STATES = (
    _State("idle", "gevent", 10),
    _State("500 sleeping greenlets", "gevent", 500, "hold", 500),
    _State("a full pool", "gevent", 10, "hold", 30),
    _State("a pure-Python loop", "gevent", 10, "spin", 1),
    _State("solo busy", "solo", 1, "spin", 1),
    _State("prefork busy", "prefork", 2, "spin", 4),
)


def ping(servers: Servers, plan: Plan) -> Iterator[Row]:
    """`inspect ping` by Celery's own client, one at a time, beside Celery's worker."""
    for state in _STATES:
        found: dict[str, list[list[float | None]]] = {"greenq": [], "celery": []}
        for library in plan.alternating():
            count = _PINGS if library == "greenq" else _CELERY_PINGS
            found[library].append(_asked(servers, library, state, count))
        ours, theirs = found["greenq"], found["celery"]
        other = f"celery {state.pool}"
        for name, share, most in (("p50", 0.5, None), ("p99", 0.99, 50.0)):
            yield Row(
                f"ping {name}, {state.name}",
                "ms",
                [_percentile(times, share) for times in ours],
                [_percentile(times, share) for times in theirs],
                other,
                more_is_better=False,
                at_most=most,
            )
        yield Row(
            f"pings answered, {state.name}",
            "%",
            [_answered(times) for times in ours],
            [_answered(times) for times in theirs],
            other,
            at_least=100,
        )


def _asked(servers: Servers, library: str, state: _State, count: int) -> list[float | None]:
    env = servers.redis_env()
    with servers.client() as client:
        client.flushall()
        with worker_running(
            servers, library, pool=state.pool, concurrency=state.concurrency, env=env, loglevel="INFO"
        ) as worker:
            wait_for(lambda: "ready." in worker.output() or not worker.running, 30, "the ready line")
            if state.task:
                run_client("celery", state.task, state.sent, env)
                time.sleep(_SETTLE)
            times: list[float | None] = run_client("celery", "ping", count, env)
    print(
        f"    {library:7} {state.name:24} p50 {_percentile(times, 0.5):7.1f} ms  "
        f"p99 {_percentile(times, 0.99):7.1f} ms  answered {_answered(times):3.0f} %",
        flush=True,
    )
    return times


def _percentile(times: list[float | None], share: float) -> float:
    """Of what was answered; what was not counts as the second that was waited for it."""
    ordered = sorted(1000.0 if each is None else each for each in times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _answered(times: list[float | None]) -> float:
    return 100 * sum(each is not None for each in times) / len(times)


CONTROL_ROWS: dict[str, Callable[[Servers, Plan], Iterator[Row]]] = {"ping": ping}
