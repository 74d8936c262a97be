"""The same no-ops on other task queues, where they are installed: `scripts/bench --peers`.

Their queues have other forms, so their own producers fill them and their task counts in shared memory. The
worker is started on the full queue; the clock runs from the first count to the last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bench.compare.counter import Counter
from bench.measure import Meter, Run, Servers
from bench.plan import Plan, each
from bench.report import Row
from bench.workers import ROOT, MeasuredProcess
from tests.support.processes import wait_for

_COMMANDS = {
    "dramatiq": ["-m", "dramatiq", "bench.compare.dramatiq_tasks", "-p", "1", "-t", "500"],
    "taskiq": [
        *("-m", "taskiq", "worker", "bench.compare.taskiq_tasks:broker"),
        *("--workers", "1", "--max-async-tasks", "500"),
    ],
}
_GREEN = "import gevent.monkey; gevent.monkey.patch_all(); from dramatiq.cli import main; main()"


def _command(library: str) -> list[str]:
    if library == "dramatiq":
        # What its dramatiq-gevent script does.
        return [sys.executable, "-c", _GREEN, *_COMMANDS[library][2:]]
    return [sys.executable, *_COMMANDS[library]]


def drain_peer(servers: Servers, library: str, count: int) -> Run:
    """Measure one worker of another library on `count` no-ops in Redis."""
    directory = Path(tempfile.mkdtemp(dir=servers.directory))
    env = servers.redis_env() | {
        Counter.VARIABLE: str(directory / "counter"),
        "dramatiq_prom_db": str(directory),
    }
    counter = Counter(directory / "counter")
    with servers.client() as client:
        client.flushall()
    code = f"from bench.compare.{library}_tasks import send; send({count})"
    subprocess.run([sys.executable, "-c", code], env=os.environ | env, cwd=ROOT, check=True)
    worker = MeasuredProcess(_command(library), output=directory / "log", env=env, cwd=ROOT)
    worker.start()
    try:
        wait_for(lambda: counter.value() > 0 or not worker.running, 30, worker.output)
        before, meter = counter.value(), Meter(worker, servers.redis.pid)
        wait_for(lambda: counter.value() >= count or not worker.running, 120, worker.output)
        if not worker.running:
            raise RuntimeError(f"{library} ended:\n{worker.output()[-3000:]}")
        return meter.finish(count - before)
    finally:
        worker.kill()


def peers(servers: Servers, plan: Plan, greenq: Row) -> Iterator[Row]:
    """A row for each installed peer beside the values of greenq's own row."""
    for library in _COMMANDS:
        if find_spec(library) is None:
            print(f"    {library} is not installed: pip install 'dramatiq[redis]' taskiq taskiq-redis")
            continue
        runs = [drain_peer(servers, library, plan.noops // 5) for _ in range(plan.runs)]
        print(f"    {library}: {each(runs, 'tasks_per_second')} tasks/s, {each(runs, 'cpu_us')} us")
        name = "dramatiq-gevent" if library == "dramatiq" else "taskiq stream"
        yield Row(greenq.name, greenq.unit, greenq.greenq, each(runs, "tasks_per_second"), name)
