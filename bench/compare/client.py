"""The producer's side, run in a process of its own: `python -m bench.compare.client celery|greenq WHAT N`.

Prints one JSON value. BROKER and BACKEND name the servers.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def sample_noop(tasks: Any, count: int) -> int:
    """Send `count` no-ops; they stay in the queue for the caller to read."""
    for number in range(count):
        tasks.noop.delay(number)
    return count


def sample_wait(tasks: Any, count: int) -> int:
    """Send `count` waits of 100 ms; they stay in the queue for the caller to read."""
    for _ in range(count):
        tasks.wait.delay(0.1)
    return count


def sample_sleep(tasks: Any, count: int) -> int:
    """Send `count` waits of 20 s, to see what holding them costs."""
    for _ in range(count):
        tasks.wait.delay(20)
    return count


def roundtrip(tasks: Any, count: int) -> list[float]:
    """Milliseconds from sending to holding the result, one after the other."""
    tasks.noop.delay(0).get(timeout=30)
    times = []
    for number in range(count):
        began = time.perf_counter()
        tasks.noop.delay(number).get(timeout=30)
        times.append((time.perf_counter() - began) * 1000)
    return times


def delay(tasks: Any, count: int) -> dict[str, float]:
    """CPU microseconds of this process for one `.delay`, and how many it sends in a second."""
    for number in range(50):
        tasks.noop.delay(number)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        tasks.noop.delay(number)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_us": cpu / count * 1e6, "per_second": count / wall}


def batch(tasks: Any, count: int) -> dict[str, float]:
    """The same for batches of 1,000, sent as the library sends many at once."""
    send = _batches(tasks)
    send(1000)
    rounds = max(1, count // 1000)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        send(1000)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_us": cpu / rounds / 1000 * 1e6, "per_second": rounds * 1000 / wall}


def _batches(tasks: Any) -> Callable[[int], object]:
    if hasattr(tasks.app, "send_tasks"):
        return lambda size: tasks.app.send_tasks([(tasks.noop, (number,)) for number in range(size)])
    group = importlib.import_module("celery").group
    return lambda size: group(tasks.noop.s(number) for number in range(size)).apply_async()


def hold(tasks: Any, count: int) -> int:
    """Send `count` waits that outlast any measurement."""
    for _ in range(count):
        tasks.wait.delay(600)
    return count


def spin(tasks: Any, count: int) -> int:
    """Send `count` computing tasks that outlast any measurement."""
    for _ in range(count):
        tasks.spin.delay(600)
    return count


def ping(tasks: Any, count: int) -> list[float | None]:
    """Milliseconds until the one worker there is has answered, None where it did not within a second."""
    times: list[float | None] = []
    tasks.app.control.broadcast("ping", reply=True, limit=1)  # the first also connects
    for _ in range(count):
        began = time.perf_counter()
        answered = tasks.app.control.broadcast("ping", reply=True, limit=1)
        times.append((time.perf_counter() - began) * 1000 if answered else None)
    return times


_FUNCTIONS: tuple[Callable[[Any, int], object], ...] = (
    sample_noop,
    sample_wait,
    sample_sleep,
    roundtrip,
    delay,
    batch,
    hold,
    spin,
    ping,
)


def main() -> None:
    """Run the function named on the command line."""
    library, what, count = sys.argv[1:]
    tasks = importlib.import_module(f"bench.compare.{library}_tasks")
    function = next(function for function in _FUNCTIONS if function.__name__ == what)
    print(json.dumps(function(tasks, int(count))))


if __name__ == "__main__":
    main()
