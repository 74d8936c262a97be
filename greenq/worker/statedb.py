"""The file of --statedb: what a worker remembers over restarts, in records that each carry a checksum.

A file is a line that names the format, then records `LENGTH CRC32 JSON`, length and checksum as eight digits of
hexadecimal. Records are appended as things happen, and written anew, one file renamed over the other, when they have
grown much beyond what still holds. A file that ends within its last record is one whose writer died; anything else
that is not as written here is damage.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from greenq.exceptions import ConfigError

logger = logging.getLogger(__name__)

MAGIC = b"greenq state 1\n"
MOST_BYTES = 16 * 2**20
RECORD_BYTES = 2**20
GROWN = 2**18  # bytes a file may grow beyond twice what it was when it was written anew
_HEAD = len("01234567 89abcdef ")
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # nobody waits for the other end of a pipe
_TRIES = 5  # to lock a file that another worker renames at that moment

Record = dict[str, Any]


class Damaged(Exception):
    """The file's content is not what this module writes; the message says where."""


class Remembered(NamedTuple):
    """What a file holds; times are unix seconds, oldest first."""

    ids: list[tuple[str, float]]
    stamps: list[tuple[tuple[str, str], float]]
    clock: int


class StateFile:
    """One open and locked file. Has one user at a time: the constructor's thread, then the writer's.

    Only an error of `__init__` is a ConfigError; later ones are plain OSErrors, and leave the file as it was.
    """

    def __init__(self, path: str) -> None:
        """Open or make the file, and read it into `remembered`; blocks for the disk.

        A damaged file is kept under another name, with a warning, and a new one made.

        Raises:
            ConfigError: the path is no file of this user's, cannot be used, or another worker uses it.
        """
        self.path = path
        self.remembered = Remembered([], [], 0)
        try:
            self._fd = _locked(path)
            self._size = self._fresh_size = os.fstat(self._fd).st_size
            self._read()
        except OSError as exc:
            raise ConfigError(f"the state file {path} cannot be used: {_reason(exc)}") from exc

    @property
    def grown(self) -> bool:
        """Is it time to write it anew?"""
        return self._size > 2 * self._fresh_size + GROWN

    def append(self, records: Iterable[Record]) -> None:
        """Add records and wait until the disk has them; all of them or none."""
        data = b"".join(map(encode, records))
        try:
            _write_all(self._fd, data)
            os.fdatasync(self._fd)
        except OSError:
            # A torn record in the middle would be damage; at the end it is only a writer that died.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def replace(self, records: Iterable[Record]) -> None:
        """Write the file anew, of these records, oldest first; beyond the bound of bytes the oldest are left out."""
        data = MAGIC + b"".join(_newest(records))
        fresh = f"{self.path}.new"
        Path(fresh).unlink(missing_ok=True)  # of a writer that died; nobody else's, since the file itself is locked
        fd = os.open(fresh, _FLAGS | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(fd, data)
            os.fsync(fd)
            Path(fresh).replace(self.path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                Path(fresh).unlink()
            raise
        os.close(self._fd)
        self._fd, self._size, self._fresh_size = fd, len(data), len(data)
        _sync_directory(self.path)

    def close(self) -> None:
        """Let go of the file; the lock goes with it."""
        os.close(self._fd)

    def _read(self) -> None:
        try:
            self.remembered, end = decode(os.pread(self._fd, MOST_BYTES + 1, 0))
        except Damaged as exc:
            aside = _set_aside(self.path)
            os.close(self._fd)
            self._fd = _locked(self.path)
            self._size = 0
            logger.warning(
                "The state file %s is damaged (%s): it is now %s, and nothing is remembered.",
                self.path,
                exc,
                aside,
                extra={"event": "statedb.damaged"},
            )
            end = 0
        if end != self._size:
            os.ftruncate(self._fd, end)
            self._size = end
        if not self._size:
            _write_all(self._fd, MAGIC)
            self._size = len(MAGIC)
        self._fresh_size = self._size


def encode(record: Record) -> bytes:
    """One record as it stands in the file."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %08x %b\n" % (len(text), zlib.crc32(text), text)


def decode(data: bytes) -> tuple[Remembered, int]:
    """What a file's bytes say, and where its last whole record ends.

    Raises:
        Damaged: for anything but records, the last of which may be cut short.
    """
    if len(data) > MOST_BYTES:
        raise Damaged(f"more than {MOST_BYTES} bytes")
    if len(data) < len(MAGIC) and MAGIC.startswith(data):
        return Remembered([], [], 0), 0
    if not data.startswith(MAGIC):
        raise Damaged("it does not begin as a state file of this version does")
    found = Remembered([], [], 0)
    at = len(MAGIC)
    while at < len(data):
        record, end = _record_at(data, at)
        if record is None:
            break
        found = _taken(found, record, at)
        at = end
    return found, at


def _record_at(data: bytes, at: int) -> tuple[Record | None, int]:
    head = data[at : at + _HEAD]
    try:
        length, checksum = int(head[:8], 16), int(head[9:17], 16)
        whole = len(head) == _HEAD and head == b"%08x %08x " % (length, checksum)
    except ValueError:
        whole = False
    if not whole:
        if len(head) < _HEAD and _may_begin(head):
            return None, at
        raise Damaged(f"no record begins at byte {at}")
    if length > RECORD_BYTES:
        raise Damaged(f"the record at byte {at} claims {length} bytes")
    end = at + _HEAD + length + 1
    text = data[at + _HEAD : end - 1]
    if end > len(data):
        return None, at
    if zlib.crc32(text) != checksum or data[end - 1 : end] != b"\n":
        raise Damaged(f"the record at byte {at} has another checksum")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged(f"the record at byte {at} is not JSON") from None
    if not isinstance(record, dict):
        raise Damaged(f"the record at byte {at} is no object")
    return record, end


def _may_begin(head: bytes) -> bool:
    """Could these bytes be the beginning of a record's head?"""
    return all(byte == 32 if place in (8, 17) else byte in b"0123456789abcdef" for place, byte in enumerate(head))


def _taken(found: Remembered, record: Record, at: int) -> Remembered:
    """`found` with a record's content; the lists are added to in place."""
    ids, stamps = record.get("ids", []), record.get("stamps", [])
    clock, moment = record.get("clock", found.clock), record.get("at", 0.0)
    sound = (
        isinstance(ids, list)
        and all(isinstance(task_id, str) for task_id in ids)
        and isinstance(stamps, list)
        and all(isinstance(pair, list) and [type(part) for part in pair] == [str, str] for pair in stamps)
        and type(clock) is int
        and type(moment) in (int, float)
        and math.isfinite(moment)
    )
    if not sound:
        raise Damaged(f"the record at byte {at} is not of revoked tasks")
    found.ids.extend((task_id, moment) for task_id in ids)
    found.stamps.extend(((header, value), moment) for header, value in stamps)
    return found._replace(clock=max(clock, found.clock))


def _newest(records: Iterable[Record]) -> list[bytes]:
    """The encoded records, without the oldest where all together would be too much."""
    encoded = list(map(encode, records))
    left = MOST_BYTES // 2
    first = len(encoded)
    while first and len(encoded[first - 1]) <= left:
        first -= 1
        left -= len(encoded[first])
    return encoded[first:]


def _locked(path: str) -> int:
    """Open the file, made if need be, and lock it for as long as this process lives.

    A record lock (fcntl) is the process's own: the kernel drops it when the process dies, however it does, and no
    child process inherits it.
    """
    for _ in range(_TRIES):
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _check_kind(path, os.fstat(fd))
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno in (errno.EACCES, errno.EAGAIN):
                    raise ConfigError(
                        f"another worker uses the state file {path}: give each its own, as with %n in the path"
                    ) from None
                raise
            if _is_there(path, fd):
                os.fchmod(fd, 0o600)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # renamed over between opening and locking: what was locked is nobody's file any more
    raise ConfigError(f"the state file {path} is being replaced again and again: does another worker use it?")


def _is_there(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _check_kind(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"the state file {path} is not a regular file")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"the state file {path} belongs to another user (uid {found.st_uid})")


def _reason(exc: OSError) -> str:
    if exc.errno == errno.ELOOP:
        return "it is a symbolic link, which is not followed"
    return exc.strerror or str(exc)


def _set_aside(path: str) -> str:
    number = 1
    while os.path.lexists(f"{path}.corrupt-{number}"):
        number += 1
    Path(path).rename(f"{path}.corrupt-{number}")
    return f"{path}.corrupt-{number}"


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_directory(path: str) -> None:
    fd = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
