"""What psutil and the system say of this process."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import greenq


def rusage() -> dict[str, float | int]:
    """The resource usage of this process, as in `inspect stats` (wire.md 3.5)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    names = (
        "utime stime maxrss ixrss idrss isrss minflt majflt nswap inblock oublock msgsnd msgrcv nsignals "
        "nvcsw nivcsw"
    )
    return {name: getattr(usage, f"ru_{name}") for name in names.split()}


def memory() -> int:
    """Resident memory of this process in bytes."""
    import psutil  # a tenth of the time to ready, for something asked once in a while

    resident: int = psutil.Process().memory_info().rss
    return resident


def cpus(root: Path = Path("/")) -> int:
    """How many processors this process may use at once: its affinity, and the quota of its container; at least 1.

    A container with half a processor on a host of 64 shows 64 to who asks the system only. `root` is where
    /proc and /sys are looked for.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return allowed if quota is None else max(1, min(allowed, -int(-quota // 1)))


def _quota(root: Path) -> float | None:
    """The smallest number of processors that a control group of this process, or one above it, grants."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return None
    found: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":  # version 2: one tree for all
            top, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            top, read = root / "sys/fs/cgroup" / controllers, _quota_v1
        else:
            continue
        # In a container the path may be the host's, of which only the end, or nothing, is there to be seen.
        parts = [part for part in group.split("/") if part]
        folders = {top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)}
        found += [quota for folder in folders if (quota := read(folder)) is not None]
    return min(found, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        granted, period = (folder / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        granted = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return granted / period if granted > 0 and period > 0 else None


def software() -> dict[str, str]:
    """Who this is, as events and reports say it (wire.md 7.3)."""
    return {"sw_ident": "greenq", "sw_ver": greenq.__version__, "sw_sys": sys.platform.capitalize()}
