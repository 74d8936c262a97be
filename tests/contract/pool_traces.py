"""What a process leaves in the system: descriptors, and processes wherever they have been adopted.

Everything a driver starts inherits a mark in its environment, through any number of forks, sessions and lost
parents, so it can be found and ended by that.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MARK = "GREENQ_POOL_CONTRACT"


def descriptors() -> dict[int, str]:
    """The open files of this process: number to what it is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:  # the one through which the list was read
            continue
    return found


def marked(mark: str) -> dict[int, str]:
    """Living processes with that mark: pid to command line."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in _processes():
        if wanted in _read(entry, "environ").split(b"\0"):
            found[int(entry)] = _read(entry, "cmdline").replace(b"\0", b" ").decode(errors="replace")
    return found


def relatives() -> dict[int, str]:
    """What belongs to this process: its descendants, zombies too, and those its descendants have lost."""
    mark = os.environ.get(MARK)  # none at the prompt: descendants only
    mine = marked(mark) if mark else {}
    children: dict[int, list[int]] = {}
    for entry in _processes():
        if (stat := _read(entry, "stat")):
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(entry))
    line = [os.getpid()]
    for pid in line:
        for child in children.get(pid, []):
            mine.setdefault(child, _read(str(child), "stat").decode(errors="replace")[:60])
            line.append(child)
    mine.pop(os.getpid(), None)
    return mine


def end_all(mark: str) -> None:
    """SIGKILL to everything with that mark, until nothing is left."""
    until = time.monotonic() + 5.0
    while (left := marked(mark)) and time.monotonic() < until:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _processes() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: str, name: str) -> bytes:
    try:
        return Path("/proc", pid, name).read_bytes()
    except OSError:  # it has ended
        return b""
