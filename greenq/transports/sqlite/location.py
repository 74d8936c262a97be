"""Where an embedded broker's file is, and whether it may live there: URL, links, rights, file system."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from greenq.exceptions import BrokerUnreachable, ConfigError

logger = logging.getLogger(__name__)

# WAL needs shared memory and POSIX locks that the kernel drops at a process's death: both are host-local.
_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs", "gfs2", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb2", "smb3", "smbfs"}
)
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.bindfs"})  # rootless containers; a bind mount
_MINIMUM = (3, 35, 0)  # RETURNING


class Location(NamedTuple):
    """A database file and how it is to be written."""

    path: Path  # absolute
    full: bool  # synchronous=FULL: commits survive a power cut
    busy: float  # seconds to wait for another writer


def parse_url(url: str, options: Mapping[str, Any] | None = None) -> Location:
    """Read `sqlite:////absolute/path` or `sqlite:///relative/to/the/working/directory`, as SQLAlchemy does.

    `durability` (`normal` or `full`) and `busy_timeout` (seconds, 5) may stand in the query or in `options`;
    other options belong to other transports and are named in a warning.

    Raises:
        ConfigError: for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or parts.fragment:
        raise ConfigError(
            f"{url!r}: write sqlite:////absolute/path or sqlite:///relative/path, # and ? of a path as %23 and %3F"
        )
    name = unquote(parts.path)[1:]
    if not name or name == ":memory:" or name.endswith("/") or "\0" in name:
        raise ConfigError(f"{url!r} names no file: a broker that processes share needs one")
    known: dict[str, Any] = {"durability": "normal", "busy_timeout": 5.0}
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in query.keys() - known.keys():
        raise ConfigError(f"{url!r}: there is no option {key!r}; known are durability and busy_timeout")
    for key in sorted((options or {}).keys() - known.keys()):
        logger.warning("the transport option %s has no meaning for sqlite and is not used", key)
    known.update((key, value) for key, value in (options or {}).items() if key in known)
    known.update(query)
    if known["durability"] not in {"normal", "full"}:
        raise ConfigError(f"{url!r}: durability is normal or full, not {known['durability']!r}")
    try:
        busy = float(known["busy_timeout"])
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{url!r}: busy_timeout is a number of seconds, not {known['busy_timeout']!r}") from exc
    return Location(Path(name).absolute(), known["durability"] == "full", busy)


def file_system(directory: Path) -> str:
    """The type of the file system a directory is on, as the kernel names it; "" where it does not say."""
    best, kind = -1, ""
    real = str(directory.resolve())
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return kind
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mounted = left.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")  # \040 is a blank
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= best:  # of two on one point the later hides the earlier
            best, kind = len(mounted), right.split(" ")[0]
    return kind


def prepare_files(path: Path) -> None:
    """Make the directory (0700) and the file (0600) if they are missing; refuse what is unsafe.

    Raises:
        ConfigError: a link instead of a file, a file others may write, a network file system, an old SQLite.
        BrokerUnreachable: the file cannot be made.
    """
    if sqlite3.sqlite_version_info < _MINIMUM:
        raise ConfigError(f"the embedded broker needs SQLite 3.35, this Python has {sqlite3.sqlite_version}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = file_system(path.parent)
        if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
            raise ConfigError(f"{path} is on {kind}, where locks and shared memory fail: name a file on a local disk")
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            _refuse_unsafe(name)
        if not path.exists():
            _create(path)
        Path(f"{path}.d").mkdir(mode=0o700, exist_ok=True)
        _refuse_unsafe(Path(f"{path}.d"), directory=True)
    except OSError as exc:
        raise BrokerUnreachable(f"cannot make the broker's file {path}: {exc.strerror}") from exc


def _refuse_unsafe(path: Path, *, directory: bool = False) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    right_kind = stat.S_ISDIR if directory else stat.S_ISREG
    if not right_kind(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "not what it should be"
        raise ConfigError(f"{path} is {what}: refused, since another user may have put it there; remove it")
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path} may be written by any user of this host: chmod o-w {path}")


def _create(path: Path) -> None:
    # Only a file that did not exist may be opened and closed here: closing any descriptor of a file drops
    # the locks this process holds on it, SQLite's own included.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        logger.debug("another process made %s first", path)
