"""What a supervisor with sd_notify's socket hears of a real worker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenq.pools import table
from tests.integration.conftest import Stage
from tests.support.processes import wait_for

PATIENCE = 2.4  # seconds; the worker beats three times in it


class Supervisor:
    """A socket such as systemd's, and what came in with the time it came."""

    def __init__(self, path: str) -> None:
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.heard.extend((time.monotonic(), line) for line in text.splitlines())

    def times(self, line: str) -> list[float]:
        return [at for at, text in self.heard if text == line]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Supervisor, str]]:
    abstract = request.param == "abstract"
    name = f"greenq-test-{tmp_path.parent.name}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    found = Supervisor("\0" + name if abstract else name)
    try:
        yield found, "@" + name if abstract else name
    finally:
        found.close()


def environment(address: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(PATIENCE * 1e6))}


@pytest.mark.parametrize("pool", sorted(table.POOLS))
def test_it_hears_when_the_worker_is_ready_lives_and_stops(
    pool: str, redis_stage: Stage, supervisor: tuple[Supervisor, str]
) -> None:
    ear, address = supervisor
    node = redis_stage.worker(pool=pool, concurrency=1 if pool == "solo" else 4, env=environment(address))
    wait_for(lambda: ear.times("READY=1"), 10, lambda: str(ear.heard))
    assert ear.times(f"MAINPID={node.pid}")
    redis_stage.send("nap", "a", 1.5)
    wait_for(lambda: ear.times("STATUS=1 task running"), 10, lambda: str(ear.heard))
    wait_for(lambda: len(ear.times("WATCHDOG=1")) >= 3, 30, lambda: str(ear.heard))
    node.term()
    assert node.wait(20) == 0
    wait_for(lambda: ear.times("STOPPING=1"), 5, lambda: str(ear.heard))
    assert ear.times("READY=1")[0] < ear.times("STOPPING=1")[0]


def test_a_hub_that_does_not_turn_is_not_reported_alive(
    redis_stage: Stage, supervisor: tuple[Supervisor, str]
) -> None:
    ear, address = supervisor
    redis_stage.worker(env=environment(address))
    wait_for(lambda: ear.times("WATCHDOG=1"), 10, lambda: str(ear.heard))
    began = time.monotonic()
    task = redis_stage.send("compute", "a", 4 * PATIENCE)
    task.get(timeout=60)
    ended = time.monotonic()
    # Until a third of the time has passed, the hub may only be late.
    late = [at - began for at in ear.times("WATCHDOG=1") if began + PATIENCE < at < ended - 1]
    assert not late, f"alive after {late} s of computing"
    wait_for(lambda: ear.times("WATCHDOG=1")[-1] > ended, 10, "a sign of life after the task")


def test_a_watchdog_of_another_process_is_none_of_ours(
    redis_stage: Stage, supervisor: tuple[Supervisor, str]
) -> None:
    ear, address = supervisor
    redis_stage.worker(env=environment(address) | {"WATCHDOG_PID": "1"})
    wait_for(lambda: ear.times("READY=1"), 10, lambda: str(ear.heard))
    time.sleep(PATIENCE / 2)
    assert not ear.times("WATCHDOG=1")


def test_a_supervisor_that_is_gone_is_named_once(redis_stage: Stage, tmp_path: Path) -> None:
    node = redis_stage.worker(env=environment(str(tmp_path / "nobody")))
    node.wait_output("NOTIFY_SOCKET=.*nobody cannot be told")
    assert redis_stage.send("add", 1, 2).get(timeout=10) == 3
    time.sleep(1.0)  # several beats
    assert node.output().count("cannot be told") == 1
