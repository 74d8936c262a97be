"""The processes of one prefork worker, seen from outside: its zygote, its nursery, its children, and what is left."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def parent_of(pid: int) -> int:
    """The parent's pid; 0 if there is no such process (any more)."""
    return int((_stat(pid) or ["", "0"])[1])


def is_zombie(pid: int) -> bool:
    """Has it ended, with nobody having asked how?"""
    return (_stat(pid) or [""])[0] == "Z"


def alive(pid: int) -> bool:
    """Is there a process of that number which has not ended?"""
    return (_stat(pid) or ["Z"])[0] not in "ZX"


def children_of(pid: int) -> list[int]:
    """Its own children, zombies included, oldest number first."""
    return sorted(other for other in _pids() if parent_of(other) == pid)


def descriptors(pid: int) -> int:
    """How many files it has open."""
    return len(os.listdir(PROC / str(pid) / "fd"))  # noqa: PTH208  (names only, many times a second)


def open_files(pid: int) -> Counter[str]:
    """What these are: paths, and the kinds of the others."""
    found: Counter[str] = Counter()
    for file in (PROC / str(pid) / "fd").iterdir():
        with suppress(FileNotFoundError):
            found[str(file.readlink()).partition(":[")[0]] += 1
    return found


def resident(pid: int) -> float:
    """Resident memory in MB."""
    fields = (PROC / str(pid) / "statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def marked(mark: str) -> list[int]:
    """Live processes whose environment holds that text: everything that was ever started from one worker."""
    return [pid for pid in _pids() if mark.encode() in _environment(pid)]


class Tree:
    """A worker forks its zygote, that its nursery, and that the children."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def zygote(self) -> int:
        """Its pid; 0 while there is none."""
        return next(iter(self._living(self.pid)), 0)

    def nurseries(self) -> list[int]:
        """Their pids: one, or two while the pool restarts."""
        zygote = self.zygote()
        return self._living(zygote) if zygote else []

    def children(self) -> list[int]:
        """Pids of the processes that run tasks."""
        return [child for nursery in self.nurseries() for child in self._living(nursery)]

    def all(self) -> list[int]:
        """Every process, the worker first."""
        zygote = self.zygote()
        return [self.pid, *([zygote] if zygote else []), *self.nurseries(), *self.children()]

    def _living(self, pid: int) -> list[int]:
        return [child for child in children_of(pid) if alive(child)]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]  # noqa: PTH208


def _stat(pid: int) -> list[str] | None:
    """State and parent, as the kernel writes them behind the name."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[:2]


def _environment(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
