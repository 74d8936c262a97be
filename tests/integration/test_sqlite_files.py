"""The embedded broker's file: where it may be, what is refused, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from greenq.exceptions import BrokerPaused, BrokerUnreachable, ConfigError
from greenq.transports.base import Post
from greenq.transports.sqlite import open_store
from greenq.transports.sqlite.location import file_system, parse_url
from greenq.transports.sqlite.schema import APPLICATION_ID
from tests.integration.sqlite_children import envelope, number_of


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_four_slashes_are_absolute_and_three_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("sqlite:////a/b.db").path == Path("/a/b.db")
    assert parse_url("sqlite:///a/b%20%23.db").path == tmp_path / "a/b #.db"
    assert parse_url("sqlite:///b.db?durability=full&busy_timeout=2")[1:] == (True, 2.0)
    assert parse_url("sqlite:///b.db", {"durability": "full"}).full


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("sqlite://", {}, "names no file"),
        ("sqlite:///", {}, "names no file"),
        ("sqlite:///:memory:", {}, "names no file"),
        ("sqlite:///dir/", {}, "names no file"),
        ("sqlite://dir/b.db", {}, "absolute"),
        ("redis:///b.db", {}, "absolute"),
        ("sqlite:///b#.db", {}, "%23"),
        ("sqlite:///b.db?durabilty=full", {}, "durabilty"),
        ("sqlite:///b.db?durability=some", {}, "some"),
        ("sqlite:///b.db?busy_timeout=soon", {}, "soon"),
        ("sqlite:///b.db", {"durability": "most"}, "most"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_by_name(url: str, options: Mapping[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_url(url, options)


def test_an_option_of_another_transport_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    parse_url("sqlite:///b.db", {"visibility_timeout": 9})
    assert "visibility_timeout" in caplog.text


def test_files_are_for_their_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = open_store(f"sqlite:///{tmp_path}/new/deeper/broker.db", "a")
        store.post([Post("q", b"{}")])
        store.claim(["q"], 1)
    finally:
        os.umask(old)
    folder = tmp_path / "new/deeper"
    assert mode(folder) == 0o700
    assert mode(folder / "broker.db.d") == 0o700
    assert [mode(folder / f"broker.db{end}") for end in ("", "-wal", "-shm")] == [0o600] * 3
    assert [mode(path) for path in (folder / "broker.db.d").glob("*.lock")] == [0o600]
    store.settle(store.recover())
    store.close()


def test_full_durability_syncs_every_commit(tmp_path: Path) -> None:
    levels = []
    for query in ("", "?durability=full"):
        store = open_store(f"sqlite:///{tmp_path}/broker.db{query}", "a")
        connection = store.database.connect()
        levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA trusted_schema").fetchone()[0] == 0
        store.close()
    assert levels == [1, 2]


@pytest.mark.parametrize("name", ["broker.db", "broker.db-wal", "broker.db-shm", "broker.db.d"])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    (target.mkdir if name.endswith(".d") else target.touch)()
    (tmp_path / name).symlink_to(target)
    with pytest.raises(ConfigError, match="is a link"):
        open_store(f"sqlite:///{tmp_path}/broker.db", "a")


def test_a_file_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.touch()
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        open_store(f"sqlite:///{path}", "a")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system(tmp_path) not in {"", "nfs"}
    assert file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr("greenq.transports.sqlite.location.file_system", lambda path: "nfs4")
    with pytest.raises(ConfigError, match="nfs4"):
        open_store(f"sqlite:///{tmp_path}/broker.db", "a")


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigError, match="3.35"):
        open_store(f"sqlite:///{tmp_path}/broker.db", "a")


def made(path: Path) -> sqlite3.Connection:
    """A file of ours, opened by somebody else."""
    store = open_store(f"sqlite:///{path}", "a")
    store.post([Post("q", envelope(1))])
    store.close()
    return sqlite3.connect(path, isolation_level=None)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON message BEGIN DELETE FROM message; END",
        "CREATE VIEW v AS SELECT * FROM message",
        "CREATE TABLE more (x)",
        "CREATE INDEX i ON message (hex(body))",
        "DROP INDEX message_due",
        "ALTER TABLE message ADD COLUMN spy TEXT DEFAULT ('x')",
    ],
)
def test_a_file_with_anything_but_our_tables_is_refused_untouched(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "broker.db"
    made(path).execute(statement)
    with pytest.raises(ConfigError, match="refused"):
        open_store(f"sqlite:///{path}", "a")
    assert sqlite3.connect(path).execute("SELECT count(*) FROM message").fetchone() == (1,)


def test_another_applications_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    for number, statement in enumerate(("PRAGMA application_id = 77", "CREATE TABLE users (name)")):
        path = tmp_path / f"{number}.db"
        other = sqlite3.connect(path, isolation_level=None)
        other.execute(statement)
        other.close()
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another application"):
            open_store(f"sqlite:///{path}", "a")
        assert path.read_bytes() == before


def test_another_version_of_our_own_file_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "broker.db").execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="version 99"):
        open_store(f"sqlite:///{tmp_path}/broker.db", "a")


@pytest.mark.parametrize("damage", ["garbage", "page", "cut"])
def test_a_damaged_file_is_named_and_does_not_crash(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broker.db"
    store = open_store(f"sqlite:///{path}", "a")
    store.post([Post("q", envelope(number) * 50) for number in range(500)])
    store.close()
    whole = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(os.urandom(len(whole)))
    elif damage == "page":
        path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    else:
        path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises((BrokerUnreachable, ConfigError), match=str(path)):
        open_store(f"sqlite:///{path}", "a").claim(["q"], 400)


def test_a_full_disk_pauses_publishing_and_what_is_there_is_still_served(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/broker.db", "a")
    store.post([Post("q", envelope(number)) for number in range(10)])
    connection = store.database.connect()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk
    with pytest.raises(BrokerPaused, match=r"broker.db cannot grow: the disk is full"):
        store.post([Post("q", envelope(number) * 100) for number in range(1000)])
    assert store.length("q") == 10
    tags = [delivery.tag for delivery in store.claim(["q"], 10)]
    assert store.settle(tags) == 0
    connection.execute("PRAGMA max_page_count = 1000000")
    store.post([Post("q", envelope(11))])
    assert [number_of(delivery.raw) for delivery in store.claim(["q"], 10)] == [11]
    store.settle(store.recover())
    store.close()


def test_a_read_only_database_pauses_writing_and_names_the_file(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/broker.db", "a")
    store.database.connect().execute("PRAGMA query_only = ON")
    with pytest.raises(BrokerPaused, match=r"broker.db cannot be written"):
        store.post([Post("q", b"{}")])
    store.database.connect().execute("PRAGMA query_only = OFF")
    store.post([Post("q", b"{}")])
    store.close()


def test_a_long_write_of_another_process_is_waited_for_and_then_a_pause(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/broker.db?busy_timeout=0.5", "a")
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(BrokerPaused, match="another writer"):
        store.post([Post("q", b"{}"), Post("q", b"{}")])
    assert 0.5 <= time.monotonic() - begun < 2.0
    threading.Timer(0.2, other.execute, ["ROLLBACK"]).start()
    store.post([Post("q", b"{}")])
    assert store.length("q") == 1
    other.close()
    store.close()


@pytest.mark.parametrize("everything", [False, True])
def test_a_file_removed_while_in_use_is_made_again_and_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, everything: bool
) -> None:
    path = tmp_path / "broker.db"
    consumer, publisher = open_store(f"sqlite:///{path}", "a"), open_store(f"sqlite:///{path}", "b")
    assert consumer.claim(["q"], 1) == []
    for file in tmp_path.glob("broker.db*"):
        if file.is_file():
            file.unlink()
        elif everything:
            shutil.rmtree(file)
    time.sleep(0.15)  # the look whether it is still there is made ten times a second
    publisher.post([Post("q", envelope(1))])
    assert "was removed or replaced" in caplog.text
    assert [number_of(delivery.raw) for delivery in consumer.claim(["q"], 1)] == [1]
    assert path.exists()
    assert publisher.reclaim() == 0
    assert consumer._bell is not None
    consumer._bell.wait(0)
    publisher.post([Post("q", envelope(2))])
    assert consumer._bell.wait(1.0)
    consumer.settle(consumer.recover())
    consumer.close()
    publisher.close()


def test_a_copy_of_file_and_log_taken_under_load_opens_whole(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/broker.db?durability=full", "a")
    posted = 0
    for copy in range(5):
        for number in range(40):
            store.post([Post("q", envelope(number) * 20)])
            posted += 1
        folder = tmp_path / str(copy)
        folder.mkdir()
        for end in ("", "-wal"):
            (folder / f"broker.db{end}").write_bytes((tmp_path / f"broker.db{end}").read_bytes())
        restored = open_store(f"sqlite:///{folder}/broker.db", "b")
        assert restored.length("q") == posted
        assert restored.database.connect().execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        restored.close()
    store.close()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120) / ("y" * 120)
    consumer = open_store(f"sqlite:///{folder}/broker.db", "a")
    publisher = open_store(f"sqlite:///{folder}/broker.db", "b")
    assert consumer.claim(["q"], 1) == []
    assert consumer._bell is not None
    publisher.post([Post("q", envelope(1))])
    assert consumer._bell.wait(1.0)
    consumer.close()
    publisher.close()
    assert list((folder / "broker.db.d").iterdir()) == []


def test_our_application_id_stands_in_the_file(tmp_path: Path) -> None:
    connection = made(tmp_path / "broker.db")
    assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
