"""The demo: a worker at work, asked while it is busy, killed, and what that costs: nothing.

Everything happens in a project of its own in a temporary directory, on the embedded broker. What ran is
counted twice, from a ledger the tasks write and from the stored results; exit 0 only if both agree with
what was sent.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil

from greenq import group

SLOTS = 500
TASKS = 1000
KILLED = 200
SECONDS = 1.0
IDEAL = TASKS * SECONDS / SLOTS


class Failed(Exception):
    """The demo did not do what it promises."""


class Project:
    """The temporary project: its directory, its ledger, and the workers started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copy(Path(__file__).with_name("demo_tasks.py"), directory / "tasks.py")
        sys.path.insert(0, str(directory))
        self.tasks: Any = importlib.import_module("tasks")
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, name: str) -> tuple[subprocess.Popen[bytes], float]:
        """Start a gevent worker and wait until it consumes; returns it and the seconds that took."""
        log = self.directory / f"{name}.log"
        argv = [sys.executable, "-m", "greenq", "-A", "tasks", "worker"]
        argv += ["-P", "gevent", "-c", str(SLOTS), "-l", "INFO", "-n", f"{name}@%h"]
        began = time.monotonic()
        with log.open("wb") as sink:
            worker = subprocess.Popen(argv, cwd=self.directory, stdout=sink, stderr=subprocess.STDOUT)
        self.workers.append(worker)
        wait_until(
            lambda: b"ready." in log.read_bytes() or worker.poll() is not None, 20, f"{name} to be ready"
        )
        if worker.poll() is not None:
            raise Failed(f"{name} ended with code {worker.returncode}:\n{log.read_text(errors='replace')}")
        return worker, time.monotonic() - began

    def send(self, numbers: range, seconds: float) -> list[Any]:
        """Send one task a number, in one batch; returns their results to be."""
        results: list[Any] = (
            group(self.tasks.wait.s(number, seconds) for number in numbers).apply_async().results
        )
        return results

    def counted(self, word: str, numbers: range) -> Counter[int]:
        """How often the ledger says that each of the numbers did start, or was done."""
        path = self.directory / "ledger"
        lines = path.read_text().split("\n") if path.exists() else []
        found = (int(line.split()[1]) for line in lines if line.startswith(f"{word} "))
        return Counter(number for number in found if number in numbers)

    def stop(self) -> None:
        """End every worker: first politely."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@contextmanager
def project() -> Iterator[Project]:
    """A project in a temporary directory, tidied up whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="greenq-demo-"))
    found = Project(directory)
    try:
        yield found
    finally:
        found.tasks.app.close()
        found.stop()
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Ask every 10 ms; Failed after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"gave up after {timeout:g} s waiting for {what}")
        time.sleep(0.01)


def say(label: str, text: str) -> None:
    """One line of the story."""
    click.echo(f"  {label:28} {text}")


def run_thousand(found: Project, worker: subprocess.Popen[bytes]) -> tuple[list[Any], float, float]:
    """Send 1,000 tasks, watch them, ask the worker meanwhile. Returns results, seconds and MB."""
    numbers = range(TASKS)
    began = time.time()
    results = found.send(numbers, SECONDS)
    asked = ""
    label = f"  {TASKS:,} tasks of {SECONDS:g} s of waiting "
    with click.progressbar(length=TASKS, label=label, show_eta=False, show_pos=True) as bar:
        while bar.pos < TASKS:
            if time.time() - began > 30:
                raise Failed(f"only {bar.pos} of {TASKS} tasks were done after 30 s")
            bar.update(sum(found.counted("done", numbers).values()) - bar.pos)
            if not asked and len(found.counted("start", numbers)) >= SLOTS:
                asked = ask(found)
            time.sleep(0.02)
    # The ledger was last written when the last task was done: exact where looking every 20 ms is not.
    elapsed = (found.directory / "ledger").stat().st_mtime - began
    memory = psutil.Process(worker.pid).memory_info().rss / 1e6
    say("asked while all slots ran", asked)
    return results, elapsed, memory


def ask(found: Project) -> str:
    """Ping the worker and read its statistics, over the broker, as `greenq inspect` does."""
    with found.tasks.app.control as control:
        began = time.monotonic()
        pongs = control.ping(timeout=2, limit=1)
        ping = (time.monotonic() - began) * 1000
        stats = control.inspect(timeout=2, limit=1).stats() or {}
    if len(pongs) != 1 or len(stats) != 1:
        raise Failed(f"one worker should answer, these did: {pongs}, {list(stats)}")
    (facts,) = stats.values()
    return f"ping {ping:.0f} ms; stats: pid {facts['pid']}, {facts['pool']['max-concurrency']} slots"


def survive_kill(found: Project, worker: subprocess.Popen[bytes]) -> list[Any]:
    """Kill the worker with 200 tasks running; a second worker finishes them. Returns their results."""
    numbers = range(TASKS, TASKS + KILLED)
    results = found.send(numbers, 2 * SECONDS)
    wait_until(lambda: len(found.counted("start", numbers)) == KILLED, 20, f"{KILLED} tasks to run")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    killed = time.monotonic()
    done_before = len(found.counted("done", numbers))
    _, ready = found.start_worker("demo2")
    left = KILLED - done_before
    wait_until(
        lambda: sum(found.counted("start", numbers).values()) >= KILLED + left,
        60,
        "the second worker to start them",
    )
    again = time.monotonic() - killed
    wait_until(lambda: len(found.counted("done", numbers)) == KILLED, 60, "the second worker to finish them")
    say(
        f"kill -9 with {left} running",
        f"all running again after {again:.1f} s on a second worker (ready in {ready:.2f} s); all finished",
    )
    return results


def main() -> int:
    """Tell the story and do the sums."""
    with project() as found:
        worker, ready = found.start_worker("demo1")
        # What the worker says of itself, in its own words.
        banner = (found.directory / "demo1.log").read_text().split("  Ctrl-C", 1)[0].rstrip()
        click.echo(f"{banner}\n  ready in {ready:.2f} s")
        results, elapsed, memory = run_thousand(found, worker)
        results += survive_kill(found, worker)
        sent = range(TASKS + KILLED)
        stored = sum(result.get(timeout=20) == number for number, result in zip(sent, results, strict=True))
        dones = found.counted("done", sent)
    ok, lost = len(dones), len(sent) - len(dones)
    twice = sum(times > 1 for times in dones.values())
    say("elapsed", f"{elapsed:.2f} s for {TASKS:,} tasks; the ideal at {SLOTS} slots is {IDEAL:.1f} s")
    say("memory of the worker", f"{memory:.0f} MB")
    click.echo(f"sent {len(sent)}   ok {ok}   lost {lost}   twice {twice}   results stored {stored}")
    if (ok, lost, twice, stored) != (len(sent), 0, 0, len(sent)):
        click.echo("the sums do not agree: that is a fault of greenq, please report it", err=True)
        return 1
    click.echo("next: write tasks.py as in README.md, then")
    click.echo("      .venv/bin/greenq -A tasks worker -P gevent -c 500      .venv/bin/greenq --help")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        click.echo(f"demo: {failure}", err=True)
        sys.exit(1)
