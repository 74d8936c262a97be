"""The limit of a prefork pool: the same pipes, with nothing but the system calls.

`python -m bench.macro.bare_pipes CHILDREN WINDOW`. `WINDOW` messages of a task's size in each child, answers of an
outcome's size; one write a message, one poll and one read for what is there. Children answer at once.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MESSAGE, ANSWER = b"m" * 1100, b"a" * 30
TASKS = 400  # a round
ROUNDS = 100


def child(fd: int) -> None:
    """Answer each message; never returns."""
    kept = 0
    while data := os.read(fd, 65536):
        complete, kept = divmod(kept + len(data), len(MESSAGE))
        for _ in range(complete):
            os.write(fd, ANSWER)
    os._exit(0)


def measure(children: int, window: int) -> float:
    """CPU microseconds of this process a message: the best of the rounds."""
    pipes = [_fork() for _ in range(children)]
    poll = select.epoll()
    for fd in pipes:
        poll.register(fd, select.EPOLLIN)
    best = min(_round(pipes, poll, window) for _ in range(ROUNDS))
    for fd in pipes:
        os.close(fd)
    for _ in pipes:
        os.wait()
    return best / TASKS * 1e6


def measure_apart(children: int, window: int) -> float:
    """`measure` in a process of its own: this one may be large, or have threads."""
    argv = [sys.executable, "-m", "bench.macro.bare_pipes", str(children), str(window)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found: float = json.loads(done.stdout)
    return found


def _fork() -> int:
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        child(theirs.fileno())
    theirs.close()
    return ours.detach()


def _round(pipes: list[int], poll: select.epoll, window: int) -> float:
    sent, answered, used = 0, 0, time.process_time()
    for fd in pipes * window:
        os.write(fd, MESSAGE)
        sent += 1
    while answered < TASKS:
        for fd, _ in poll.poll():
            got = len(os.read(fd, 65536)) // len(ANSWER)
            answered += got
            for _ in range(min(got, TASKS - sent)):
                os.write(fd, MESSAGE)
                sent += 1
    return time.process_time() - used


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
