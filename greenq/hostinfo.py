"""What psutil and the system say of this process."""

from __future__ import annotations

import resource
import sys

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


def software() -> dict[str, str]:
    """Who this is, as events and reports say it (wire.md 7.3)."""
    return {"sw_ident": "greenq", "sw_ver": greenq.__version__, "sw_sys": sys.platform.capitalize()}
