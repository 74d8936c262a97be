"""What is asked of the kernel for a process: to die with its parent, a name for top and ps, and the signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # sent to every process of a worker at once, or to one
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # of prctl(2)


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies: a task nobody can end or hear of helps nobody."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def be_called(name: str) -> None:
    """Show this process under that name, 15 characters of it."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def _prctl(option: int, argument: object) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, argument)
