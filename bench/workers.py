"""Workers under measurement: how each is started, and what it costs as the kernel counts it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[1]
_QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat"]


class MeasuredProcess(Process):
    """A process whose cost is counted with that of all its children."""

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def cpu(self) -> float:
        """CPU seconds used so far (ticks of 10 ms)."""
        return sum(self.cpu_apart())

    def cpu_apart(self) -> tuple[float, float]:
        """The same of the process itself, and of all that live below it."""
        own, *below = map(cpu_seconds, self._tree())
        return own, sum(below)

    def rss(self) -> float:
        """Resident memory in MB of 1,000,000 bytes."""
        return float(sum(process.memory_info().rss for process in self._tree())) / 1e6


class Worker(MeasuredProcess):
    """One worker of `library` ("greenq" or "celery") on the tasks of bench/compare."""

    def __init__(
        self,
        library: str,
        *,
        pool: str = "gevent",
        concurrency: int = 500,
        env: dict[str, str],
        output: Path,
        loglevel: str = "WARNING",
        arguments: tuple[str, ...] = (),
    ) -> None:
        """`arguments` follow on the command line; both libraries understand those the bench uses."""
        argv = [sys.executable, "-m", library, "-A", f"bench.compare.{library}_tasks", "worker"]
        argv += ["-P", pool, "-c", str(concurrency), "-l", loglevel, *arguments]
        if library == "celery":
            # What it does besides running tasks. On RabbitMQ the heartbeat alone holds it to 10 tasks/s.
            argv += _QUIET
        super().__init__(argv, output=output, env=env | {"C_FORCE_ROOT": "1"}, cwd=ROOT)


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds used so far by one process."""
    times = process.cpu_times()
    return float(times.user + times.system)


def machine_cpu() -> float:
    """CPU seconds used so far by everything on this machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
