"""Real workers as child processes: greenq's, and an installed Celery's for the interop tests."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Self

from tests.support.ledger import Ledger
from tests.support.processes import Process, wait_for

ROOT = Path(__file__).resolve().parents[2]
_READY = re.compile(r"\bready\.")


class Node(Process):
    """One worker, `python -m greenq -A app worker -P pool -c N`, with its output in a file.

    A `concurrency` of None leaves out `-c`.

    `cwd` is the directory of the tasks module. The repository's root is on the worker's path, so a
    tasks module may import `tests.support.ledger`. As a context manager it starts, waits for its
    ready line and always ends.
    """

    program = "greenq"

    def __init__(
        self,
        app: str,
        *,
        cwd: Path,
        pool: str = "gevent",
        concurrency: int | None = 10,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ledger: Ledger | None = None,
        loglevel: str = "INFO",
        name: str = "worker",
    ) -> None:
        argv = [sys.executable, "-m", self.program, "-A", app, "worker", "-P", pool]
        argv += ["-c", str(concurrency)] if concurrency is not None else []
        argv += ["-l", loglevel, "-n", f"{name}@test", *options]
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
        settings = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "C_FORCE_ROOT": "1"}
        if ledger is not None:
            settings[Ledger.VARIABLE] = str(ledger.path)
        self.name = f"{name}@test"
        super().__init__(argv, output=cwd / f"{name}.log", env=settings | dict(env or {}), cwd=cwd)

    def start(self) -> None:
        """Start the worker; returns at once. `wait_ready` says when it consumes."""
        self._ready_before = len(_READY.findall(self.output()))
        super().start()

    def wait_ready(self, timeout: float = 20.0) -> Self:
        """Wait for the ready line of the latest start; AssertionError with the output if none comes."""
        wait_for(
            lambda: len(_READY.findall(self.output())) > self._ready_before or not self.running,
            timeout,
            lambda: f"the ready line of {' '.join(self.argv)}; its output:\n{self.output()}",
        )
        assert self.running, f"{' '.join(self.argv)} ended before it was ready; its output:\n{self.output()}"
        return self

    def term(self) -> None:
        """Ask for a warm stop (SIGTERM)."""
        self.signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """SIGINT, as Ctrl-C at the prompt."""
        self.signal(signal.SIGINT)

    def wait_output(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """The first match of `pattern` in the output; AssertionError with the output after `timeout` s."""
        return wait_for(
            lambda: re.search(pattern, self.output()),  # type: ignore[arg-type, return-value]
            timeout,
            lambda: f"{pattern!r} in the output of {self.name}:\n{self.output()}",
        )

    def __enter__(self) -> Self:
        self.start()
        try:
            return self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *exc: object) -> None:
        self.kill()


class CeleryNode(Node):
    """The same for an installed Celery: `python -m celery -A app worker ...`."""

    program = "celery"


def celery_node(app: str, **options: object) -> CeleryNode:
    """A Celery worker without the start-up second of gossip and mingle."""
    extra = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    given = options.pop("options", ())
    return CeleryNode(app, options=(*extra, *given), **options)  # type: ignore[arg-type, misc]
