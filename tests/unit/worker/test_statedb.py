"""The file of --statedb: what is read back, what is damage, and who may use it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.exceptions import ConfigError
from greenq.worker import statedb
from greenq.worker.statedb import MAGIC, Damaged, Remembered, StateFile, decode, encode

RECORDS: list[statedb.Record] = [
    {"at": 1000, "ids": ["a", "b"]},
    {"at": 1001.5, "stamps": [["tenant", "ž"]]},
    {"clock": 7},
    {"at": 1002, "ids": ["c" * 300]},
]
MEANT = Remembered([("a", 1000), ("b", 1000), ("c" * 300, 1002)], [(("tenant", "ž"), 1001.5)], 7)
WHOLE = MAGIC + b"".join(map(encode, RECORDS))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def written(path: Path) -> str:
    """A closed state file with the records."""
    file = StateFile(str(path))
    file.append(RECORDS[:2])
    file.append(RECORDS[2:])
    file.close()
    return str(path)


def test_what_was_appended_is_remembered(tmp_path: Path) -> None:
    path = written(tmp_path / "state")
    assert Path(path).read_bytes() == WHOLE
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    file = StateFile(path)
    assert file.remembered == MEANT
    file.replace([{"at": 5, "ids": ["z"]}])
    file.append([{"at": 6, "ids": ["y"]}])
    file.close()
    again = StateFile(path)
    assert again.remembered.ids == [("z", 5), ("y", 6)]
    again.close()
    assert names(tmp_path) == ["state"]


def test_a_file_cut_anywhere_gives_what_was_whole() -> None:
    for cut in range(len(WHOLE)):
        found, end = decode(WHOLE[:cut])
        assert end <= cut
        assert found.ids == MEANT.ids[: len(found.ids)]
        assert decode(WHOLE[:end])[0] == found


def test_a_writer_that_died_in_a_record_takes_only_that_along(tmp_path: Path) -> None:
    path = tmp_path / "state"
    written(path)
    path.write_bytes(path.read_bytes()[:-9])
    file = StateFile(str(path))
    assert file.remembered.ids == MEANT.ids[:2]
    file.append([{"at": 9, "ids": ["after"]}])
    file.close()
    again = StateFile(str(path))
    assert again.remembered.ids == [*MEANT.ids[:2], ("after", 9)]
    again.close()
    assert names(tmp_path) == ["state"]


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_byte_that_changed_is_damage_and_never_another_id(place: int, flip: int) -> None:
    data = bytearray(WHOLE)
    data[place] ^= flip
    try:
        found, _ = decode(bytes(data))
    except Damaged:
        return
    # A length may grow beyond the end: then the record looks like one that was not finished.
    assert found.ids == MEANT.ids[: len(found.ids)]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_damage(data: bytes) -> None:
    for content in (data, MAGIC + data):
        try:
            found, end = decode(content)
        except Damaged:
            continue
        assert found == Remembered([], [], 0)
        assert end in (0, len(MAGIC))


DAMAGE = {
    "garbage": os.urandom(500),
    "zeros": bytes(4096),
    "zeros at the end": WHOLE + bytes(100),
    "another version": MAGIC.replace(b"1", b"2") + WHOLE[len(MAGIC) :],
    "a pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a changed id": WHOLE.replace(b'"b"', b'"x"'),
    "not an object": MAGIC + encode([1]),  # type: ignore[arg-type]
    "not JSON": MAGIC + b"00000001 %08x }\n" % zlib.crc32(b"}"),
    "ids of numbers": MAGIC + encode({"at": 1, "ids": [5]}),
    "a time that is none": MAGIC + encode({"at": float("inf"), "ids": ["a"]}),
    "a clock of text": MAGIC + encode({"clock": "5"}),
    "stamps of one": MAGIC + encode({"stamps": [["a"]]}),
    "a huge record": MAGIC + b"7fffffff 00000000 {}",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    (tmp_path / "state.corrupt-1").write_bytes(b"of an earlier time")
    path.write_bytes(DAMAGE[what])
    file = StateFile(str(path))
    assert file.remembered == Remembered([], [], 0)
    file.append([{"at": 9, "ids": ["new"]}])
    file.close()
    assert (tmp_path / "state.corrupt-1").read_bytes() == b"of an earlier time"
    assert (tmp_path / "state.corrupt-2").read_bytes() == DAMAGE[what]
    assert path.read_bytes() == MAGIC + encode({"at": 9, "ids": ["new"]})
    (warning,) = caplog.records
    assert "state.corrupt-2" in warning.getMessage()


def test_a_sparse_file_of_10_gib_is_damage_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with path.open("wb") as file:
        file.write(MAGIC)
        file.truncate(10 * 2**30)
    state = StateFile(str(path))
    state.close()
    assert (tmp_path / "state.corrupt-1").stat().st_size == 10 * 2**30
    assert path.read_bytes() == MAGIC


def _link(path: Path) -> None:
    (path.parent / "other").write_bytes(b"somebody's")
    path.symlink_to(path.parent / "other")


REFUSED = {
    "a directory": (lambda path: path.mkdir(), "Is a directory"),
    "a symbolic link": (_link, "it is a symbolic link"),
    "a pipe": (os.mkfifo, "not a regular file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_file_is_refused(what: str, tmp_path: Path) -> None:
    make, said = REFUSED[what]
    path = tmp_path / "state"
    make(path)
    with pytest.raises(ConfigError, match=f"state file {path}.*{said}"):
        StateFile(str(path))
    if what == "a symbolic link":
        assert (tmp_path / "other").read_bytes() == b"somebody's"


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "state"
    with pytest.raises(ConfigError, match=f"{path} cannot be used: No such file or directory"):
        StateFile(str(path))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "state")
    uid = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match=f"belongs to another user \\(uid {uid}\\)"):
        StateFile(path)


OTHER_PROCESS = """
import sys
from greenq.exceptions import ConfigError
from greenq.worker.statedb import StateFile
try:
    StateFile(sys.argv[1])
except ConfigError as error:
    print(error)
else:
    print("opened")
"""


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    def other() -> str:
        argv = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "state")]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    file = StateFile(str(tmp_path / "state"))
    assert "another worker uses the state file" in other()
    file.replace(RECORDS)
    assert "another worker uses the state file" in other(), "also after it was written anew"
    file.close()
    assert other() == "opened"


def test_a_disk_that_refuses_leaves_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    file = StateFile(str(path))
    file.append(RECORDS[:1])
    before = path.read_bytes()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 5:
            return write(fd, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for attempt in (file.append, file.replace):
        with pytest.raises(OSError, match="No space left"):
            attempt(RECORDS)
        assert path.read_bytes() == before
        assert names(tmp_path) == ["state"]
    monkeypatch.undo()
    file.append(RECORDS[1:])
    file.close()
    assert path.read_bytes() == WHOLE


def test_more_than_fits_is_written_without_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statedb, "MOST_BYTES", 2000)
    file = StateFile(str(tmp_path / "state"))
    file.replace([{"at": number, "ids": ["x" * 100]} for number in range(50)])
    file.close()
    again = StateFile(str(tmp_path / "state"))
    times = [at for _, at in again.remembered.ids]
    assert times == list(range(50 - len(times), 50))
    assert 5 <= len(times) < 10
    again.close()
