"""Child processes that never outlive the test run, free ports, and waiting for a condition."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
# Loaded before any fork: a child between fork and exec may not import or allocate much.
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (a `preexec_fn`).

    A test run that is itself killed with -9 cannot tidy up; without this its servers would stay.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its output as text, its exit code for the test to judge."""
    kept = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run(argv, check=False, **kept)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on, for this process until it ends: for a restart too.

    The kernel's own choice would come from the range of outgoing connections: while a server is down, one of
    these may take its port, even the one that is asking for it.
    """
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(10_000, first_outgoing) if first_outgoing > 20_000 else range(10_000, 50_000)
    return next(port for port in random.sample(ports, 1000) if _claimed(port) and _unbound(port))


def _claimed(port: int) -> bool:
    """Whether the port is this process's from now on; the others of a run in parallel choose another."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0greenq-tests-port-{port}")  # a name without a file: gone with the process, however it ends
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True


def _unbound(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(
    condition: Callable[[], T], timeout: float = 10.0, message: str | Callable[[], str] = "the condition"
) -> T:
    """Return the first true value of `condition`, asked every 10 ms; AssertionError after `timeout` seconds.

    `message` says what was waited for; a callable is asked at the time of failure.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"gave up after {timeout:g} s waiting for {text}")
        time.sleep(0.01)


def listening(port: int) -> bool:
    """Whether something accepts TCP connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One child process with its output in a file. Used as a context manager it always ends."""

    def __init__(
        self, argv: list[str], *, output: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.argv = argv
        self.output_file = output
        self.env = dict(os.environ) | dict(env or {})
        self.cwd = cwd
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; returns at once. Output is appended, so a restart keeps the old lines."""
        with self.output_file.open("ab") as sink:
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (one C call, on memory made before the fork)
            )

    @property
    def pid(self) -> int:
        assert self.popen is not None, "the process was not started"
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def output(self) -> str:
        """Everything written so far to standard output and standard error."""
        return self.output_file.read_text(errors="replace") if self.output_file.exists() else ""

    def signal(self, number: int) -> None:
        assert self.popen is not None, "the process was not started"
        self.popen.send_signal(number)

    def wait_up(self, serves: Callable[[], bool], timeout: float, name: str) -> bool:
        """Wait until `serves()`; False if the process ended instead, AssertionError after `timeout` s."""
        wait_for(lambda: not self.running or serves(), timeout, name)
        return self.running

    def wait(self, timeout: float = 10.0) -> int:
        """The exit code (minus the signal's number if one ended it); AssertionError after `timeout` s."""
        assert self.popen is not None, "the process was not started"
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.argv[:6]} did not end within {timeout:g} s; its output:\n{self.output()}"
            ) from None

    def kill(self) -> None:
        """End it with SIGKILL, and everything it started (its process group); returns when it is gone."""
        if self.popen is None or self.popen.returncode is not None:
            return
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.popen.kill()
        self.popen.wait(10)

    def stop(self, grace: float = 10.0) -> None:
        """End it with SIGTERM, after `grace` seconds with SIGKILL. Safe to call twice."""
        if self.popen is None:
            return
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(grace)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Start `process` and end it on the way out, whatever happened."""
    process.start()
    try:
        yield process
    finally:
        process.kill()
