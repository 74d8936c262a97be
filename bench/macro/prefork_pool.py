"""What the prefork pool alone costs its own process, without a broker: CPU a task, and tasks a second.

`python -m bench.macro.prefork_pool`, a few seconds. Requests are decoded beforehand and children answer at once.
Each round is short and the best of many counts: neighbours on a small machine can only make one dearer. Two
children on two cores beside the parent: at one task in hand each, its share is mostly waking a child that sleeps.
"""

from __future__ import annotations

import sys

zygote = None
if __name__ == "__main__" and sys.argv[1:]:
    # Before all else: what children are forked from is to be small, and unpatched.
    from greenq.pools._prefork.zygote import launch

    zygote = launch()

    from greenq.runtime.patching import patch

    patch("prefork")

import json  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections import deque  # noqa: E402
from collections.abc import Callable  # noqa: E402
from datetime import datetime, timezone  # noqa: E402
from pathlib import Path  # noqa: E402
from uuid import uuid4  # noqa: E402

from greenq._speedups import Request, decode_envelope  # noqa: E402
from greenq.model import Outcome, Record, State  # noqa: E402
from greenq.pools import table  # noqa: E402
from greenq.pools.base import PoolOptions, Recipe  # noqa: E402
from greenq.wire.messages import build_task_message, to_envelope  # noqa: E402
from greenq.wire.serializers import Accept  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TASKS = 400  # a round
ROUNDS = 100
CHILDREN = (1, 2)
AHEAD = (0, 3, 49)


class Nothing:
    """A ChildSide that runs nothing."""

    accept = Accept.of(["json"])

    def start(self, index: int, store: Callable[[Record], object]) -> None:
        """See ChildSide."""

    def run(self, request: Request) -> Outcome:
        """See ChildSide."""
        return Outcome(request, State.SUCCESS)

    def epitaph(self, request: Request, error: BaseException) -> Outcome:
        """See ChildSide."""
        return Outcome(request, State.FAILURE)

    def stop(self) -> None:
        """See ChildSide."""


def make_side() -> Nothing:
    """The recipe."""
    return Nothing()


def measure(children: int, ahead: int) -> tuple[float, float]:
    """CPU microseconds of this process a task, and tasks a second: the best of the rounds.

    Once a process: a zygote ends with its pool.
    """
    pools = table.load("prefork")
    runtime = pools.make_runtime()
    runtime.attach()
    recipe = Recipe("bench.macro.prefork_pool:make_side", {})
    pool = pools.make_pool(PoolOptions(children, ahead=ahead, recipe=recipe, zygote=zygote), runtime)
    waiting: deque[Request] = deque()
    ended = runtime.event()

    def done(request: Request, outcome: Outcome) -> None:
        if waiting:
            pool.submit(waiting.popleft())
        elif pool.free() == children * (1 + ahead):
            ended.set()

    pool.start(lambda request: Outcome(request, State.SUCCESS), done)
    cpu, wall = float("inf"), float("inf")
    for _ in range(ROUNDS):
        waiting.extend(_requests(TASKS))
        ended.clear()
        began, used = time.perf_counter(), time.process_time()
        while waiting and pool.free():
            pool.submit(waiting.popleft())
        ended.wait()
        cpu, wall = min(cpu, time.process_time() - used), min(wall, time.perf_counter() - began)
    pool.stop()
    pool.serve()
    return cpu / TASKS * 1e6, TASKS / wall


def _requests(count: int) -> list[Request]:
    task_id = str(uuid4())
    made = build_task_message(
        name="bench.noop",
        args=(1,),
        kwargs={},
        task_id=task_id,
        origin="gen1234@host.example",
        routing_key="celery",
        reply_to=task_id,
        now=datetime(2026, 11, 22, tzinfo=timezone.utc),
    )
    raw = to_envelope(made, task_id)
    return [decode_envelope(raw, "celery", "t") for _ in range(count)]


def measure_apart(children: int, ahead: int) -> tuple[float, float]:
    """`measure` in a process of its own."""
    argv = [sys.executable, "-m", "bench.macro.prefork_pool", str(children), str(ahead)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    cpu, rate = json.loads(done.stdout)
    return cpu, rate


def main() -> None:
    """Measure what the arguments say, or each combination in a process of its own."""
    if sys.argv[1:]:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
        return
    print("children  ahead   parent CPU us/task   tasks/s")
    for children in CHILDREN:
        for ahead in AHEAD:
            cpu, rate = measure_apart(children, ahead)
            print(f"{children:8} {ahead:6} {cpu:20.1f} {rate:9,.0f}", flush=True)


if __name__ == "__main__":
    main()
