"""Which owners live: each holds a POSIX record lock on a file of its own, and the kernel drops it at any death.

A record lock, not `flock`: a forked child inherits a `flock` and would keep a dead parent's messages.
Its price: closing *any* descriptor of a file drops all locks this process has on it. So a process keeps one
descriptor for each of its owners, in the registry `OWNERS`, and never opens such a file a second time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from greenq.exceptions import BrokerUnreachable
from greenq.transports.sqlite.mutex import NativeMutex, native_pause

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_TRIES = 200  # of 10 ms: a reclaimer holds a dead owner's lock for one transaction


def owner_stem(owner: str) -> str:
    """What the files of an owner are called, whatever characters its name has."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def lock_file(directory: Path, owner: str) -> Path:
    """The file whose lock says that the owner lives."""
    return directory / f"{owner_stem(owner)}.lock"


@dataclass
class _Hold:
    descriptor: int
    device: int
    inode: int
    users: set[int]


class OwnerLocks:
    """The locks this process holds, and their users. The one mutable object of this package at module level:
    the kernel keeps record locks per process, so their book-keeping cannot be smaller than the process.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # A child inherits descriptors but no locks; it leaves the descriptors alone and starts with none.
        self._mutex = NativeMutex()
        self._holds: dict[Path, _Hold] = {}

    def acquire(self, path: Path, user: int) -> bool:
        """Hold the lock, or share it with other users in this process. True if nobody here held it before.

        `user` is any number that tells the users apart.

        Raises:
            BrokerUnreachable: another process lives under this owner's name.
        """
        for _ in range(_TRIES):
            with self._mutex:
                hold = self._holds.get(path)
                if hold is not None:
                    hold.users.add(user)
                    return False
                hold = _lock(path)
                if hold is not None:
                    hold.users.add(user)
                    self._holds[path] = hold
                    return True
            native_pause(0.01)
        raise BrokerUnreachable(f"{path} is locked: another process runs under the same owner name; choose another")

    def release(self, path: Path, user: int, *, keep: bool) -> None:
        """Give up one use. With the last one the owner counts as dead, unless `keep` (it still has messages)."""
        with self._mutex:
            hold = self._holds.get(path)
            if hold is None:  # taken before a fork, by the parent
                return
            hold.users.discard(user)
            if hold.users or keep:
                return
            del self._holds[path]
            if _is_at(hold, path):
                path.unlink()
            os.close(hold.descriptor)

    def given_up(self, path: Path) -> bool:
        """Whether another process took this owner for dead (its file is gone); forgets the lock if so."""
        with self._mutex:
            hold = self._holds.get(path)
            if hold is None or _is_at(hold, path):
                return hold is None
            del self._holds[path]
            os.close(hold.descriptor)
            return True

    @contextmanager
    def seize(self, path: Path) -> Iterator[bool]:
        """Hold a dead owner's lock for the block and remove its file after it; yields False if the owner lives.

        The file is only ever removed by who holds its lock, so a new owner of that name cannot be hit.
        """
        with self._mutex:
            descriptor = self._take_from_dead(path)
            if descriptor is None:
                yield False
                return
            try:
                yield True
                if descriptor >= 0:
                    path.unlink()
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def _take_from_dead(self, path: Path) -> int | None:
        """A descriptor with the lock; -1 if there is no file, which is as dead; None if its owner lives."""
        try:
            found = os.stat(path)
            if any(h.inode == found.st_ino and h.device == found.st_dev for h in self._holds.values()):
                return None
            hold = _lock(path, create=False)
        except FileNotFoundError:
            return -1
        return hold.descriptor if hold is not None else None


def _lock(path: Path, *, create: bool = True) -> _Hold | None:
    """Open and lock; None if somebody else holds it or replaced the file meanwhile."""
    try:
        descriptor = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o600)
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) and not create:
            raise
        raise BrokerUnreachable(f"cannot open the owner's lock {path}: {exc.strerror}") from exc
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    found = os.fstat(descriptor)
    hold = _Hold(descriptor, found.st_dev, found.st_ino, set())
    if not _is_at(hold, path):
        os.close(descriptor)
        return None
    return hold


def _is_at(hold: _Hold, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return found.st_ino == hold.inode and found.st_dev == hold.device


OWNERS = OwnerLocks()
