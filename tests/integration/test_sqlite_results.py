"""Results in a SQLite file: stored once, read anywhere, waited for without delay."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq.exceptions import ConfigError, ResultError, ResultTimeout
from greenq.model import Record
from greenq.results.sqlite import SqliteResults
from greenq.transports.base import Post
from greenq.transports.sqlite import open_store
from tests.support.processes import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def open_results(sqlite_url: str) -> Iterator[Callable[[], SqliteResults]]:
    opened: list[SqliteResults] = []

    def make() -> SqliteResults:
        opened.append(SqliteResults(sqlite_url))
        return opened[-1]

    yield make
    for results in opened:
        results.close()


@pytest.fixture
def results(open_results: Callable[[], SqliteResults]) -> SqliteResults:
    return open_results()


def count(sqlite_url: str) -> int:
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    try:
        return int(connection.execute("SELECT count(*) FROM result").fetchone()[0])
    finally:
        connection.close()


def child(role: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    argv = [sys.executable, "-W", "ignore", "-m", "tests.integration.sqlite_children", role, *arguments]
    return subprocess.Popen(argv, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)


def test_a_stored_result_is_read_by_another_store(open_results: Callable[[], SqliteResults]) -> None:
    writer, reader = open_results(), open_results()
    writer.store(
        [Record("a", "SUCCESS", b"\x00one"), Record("b", "STARTED", b"two"), Record("b", "FAILURE", b"three")]
    )
    assert reader.read(["a", "b", "none"]) == [b"\x00one", b"three", None]
    reader.forget("a")
    reader.forget("none")
    assert writer.read(["a"]) == [None]
    writer.store([])


def test_success_is_never_overwritten(results: SqliteResults) -> None:
    results.store([Record("a", "SUCCESS", b"first"), Record("b", "RETRY", b"1")])
    results.store([Record("a", "FAILURE", b"second"), Record("b", "SUCCESS", b"2"), Record("b", "SUCCESS", b"3")])
    assert results.read(["a", "b"]) == [b"first", b"2"]


def test_a_batch_is_one_transaction(results: SqliteResults) -> None:
    results.store([Record("x", "SUCCESS", b"")])
    statements: list[str] = []
    results._database.connect().set_trace_callback(statements.append)
    results.store([Record(str(number), "SUCCESS", b"") for number in range(100)])
    results._database.connect().set_trace_callback(None)
    assert [line for line in statements if line.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]


def test_an_expired_result_is_gone_at_once_and_deleted_a_few_at_a_time(
    results: SqliteResults, sqlite_url: str
) -> None:
    results.store([Record(str(number), "SUCCESS", b"x", expires=0.2) for number in range(500)])
    results.store([Record("kept", "SUCCESS", b"x"), Record("later", "SUCCESS", b"x", expires=60)])
    time.sleep(0.3)
    assert results.read(["0", "kept", "later"]) == [None, b"x", b"x"]
    results.store([Record("0", "FAILURE", b"again")])
    assert results.read(["0"]) == [b"again"]
    assert count(sqlite_url) == 302
    for _ in range(2):
        results.store([Record("more", "SUCCESS", b"x")])
    assert count(sqlite_url) == 4


def test_an_id_that_is_no_proper_text_is_stored_like_any_other(results: SqliteResults) -> None:
    for task_id in ("grün", "\ud800half", "nul\0nul", ""):
        results.store([Record(task_id, "SUCCESS", task_id.encode("utf-8", "replace"))])
        assert results.read([task_id]) == [task_id.encode("utf-8", "replace")]


def test_waiting_ends_with_the_payload_that_is_ready_or_with_a_timeout(results: SqliteResults) -> None:
    def finish() -> None:
        results.store([Record("a", "STARTED", b"started")])
        time.sleep(0.1)
        results.store([Record("a", "SUCCESS", b"done")])

    threading.Timer(0.1, finish).start()
    assert results.wait("a", lambda payload: payload == b"done", 10.0) == b"done"
    assert results.wait("a", bool, 0) == b"done"
    begun = time.monotonic()
    with pytest.raises(ResultTimeout, match="never"):
        results.wait("never", bool, 0.2)
    assert 0.2 <= time.monotonic() - begun < 0.5


@pytest.mark.alone
def test_a_waiting_reader_has_the_result_within_milliseconds(
    results: SqliteResults, sqlite_url: str, record_property: Any
) -> None:
    writer = child("answer_results", sqlite_url, stdin=subprocess.PIPE)
    assert writer.stdin is not None and writer.stdout is not None
    writer.stdout.readline()
    taken = []
    for number in range(100):
        writer.stdin.write(f"{number}\n")
        writer.stdin.flush()
        results.wait(str(number), bool, 10.0)
        arrived = time.monotonic()
        taken.append((arrived - json.loads(writer.stdout.readline())) * 1000)
    writer.stdin.close()
    writer.stdout.close()
    assert writer.wait(10) == 0
    p50 = statistics.median(taken)
    record_property("result_wait_p50_ms", p50)
    print(f"store() to reader p50 {p50:.2f} ms, max {max(taken):.2f} ms")
    assert p50 < 50  # half of the poll that would stand in for a doorbell that never rings


def test_many_threads_may_wait_and_store_at_once(results: SqliteResults) -> None:
    got: dict[int, bytes] = {}

    def wait(number: int) -> None:
        got[number] = results.wait(str(number), bool, 20.0)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(80)]
    for thread in threads:
        thread.start()
    writers = [
        threading.Thread(target=results.store, args=([Record(str(n), "SUCCESS", str(n).encode())],))
        for n in range(80)
    ]
    for thread in (*writers, *threads):
        if thread in writers:
            thread.start()
        thread.join(30)
    for thread in threads:
        thread.join(30)
    assert got == {number: str(number).encode() for number in range(80)}
    assert results._made <= 64


@pytest.mark.alone
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_waiting_for_results_lets_other_fibers_run(sqlite_url: str, library: str) -> None:
    process = child("green_results", sqlite_url, library)
    out, _ = process.communicate(timeout=30)
    report = json.loads(out)
    assert report["got"] == ["b", "a", "c"]
    assert report["longest"] < 0.1


@pytest.mark.alone
def test_waiting_costs_next_to_nothing(results: SqliteResults) -> None:
    cpu, begun = time.process_time(), time.monotonic()
    with pytest.raises(ResultTimeout):
        results.wait("never", bool, 2.0)
    assert (time.process_time() - cpu) / (time.monotonic() - begun) < 0.01


def test_results_and_messages_may_share_a_file(results: SqliteResults, sqlite_url: str) -> None:
    store = open_store(sqlite_url, "a")
    store.post([Post("q", b"{}")])
    results.store([Record("a", "SUCCESS", b"x")])
    assert store.length("q") == 1
    assert results.read(["a"]) == [b"x"]
    store.close()


def test_closing_removes_what_waiting_made_and_a_later_call_connects_again(
    results: SqliteResults, tmp_path: Path
) -> None:
    with pytest.raises(ResultTimeout):
        results.wait("never", bool, 0.01)
    assert {path.suffix for path in (tmp_path / "broker.db.d").iterdir()} == {".lock", ".bell"}
    results.close()
    results.close()
    assert list((tmp_path / "broker.db.d").iterdir()) == []
    results.store([Record("a", "SUCCESS", b"x")])
    assert results.wait("a", bool, 1.0) == b"x"


def test_what_a_killed_reader_left_is_cleared_away(results: SqliteResults, sqlite_url: str, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        SqliteResults(sqlite_url).wait("never", bool, 60.0)
        os._exit(0)
    folder = tmp_path / "broker.db.d"
    wait_for(lambda: folder.exists() and list(folder.glob("*.bell")), 10.0, "the reader's bell")
    os.kill(pid, 9)
    assert os.waitpid(pid, 0) == (pid, 9)
    store = open_store(sqlite_url, "a")
    wait_for(lambda: store.reclaim() == 0 and not list(folder.glob("*.bell")), 5.0, "the bell to go")
    store.close()
    results.store([Record("a", "SUCCESS", b"x")])
    assert results.wait("a", bool, 1.0) == b"x"


def test_a_forked_child_reads_and_waits_on_its_own(results: SqliteResults) -> None:
    with pytest.raises(ResultTimeout):
        results.wait("a", bool, 0.01)
    pid = os.fork()
    if pid == 0:
        results.store([Record("a", "SUCCESS", b"child")])
        os._exit(0 if results.wait("a", bool, 5.0) == b"child" else 1)
    assert results.wait("a", bool, 10.0) == b"child"
    assert os.waitpid(pid, 0)[1] == 0


def test_trouble_is_a_result_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        SqliteResults("sqlite://")
    path = tmp_path / "results.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ResultError, match=r"results\.db is damaged"):
        SqliteResults(f"sqlite:///{path}").read(["a"])
    busy = SqliteResults(f"sqlite:///{tmp_path}/busy.db?busy_timeout=0.2")
    busy.store([Record("a", "SUCCESS", b"x")])
    other = sqlite3.connect(tmp_path / "busy.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ResultError, match="another writer"):
        busy.store([Record("b", "SUCCESS", b"x")])
    other.close()
    busy.store([Record("b", "SUCCESS", b"x")])
    assert busy.read(["b"]) == [b"x"]
    busy.close()
