"""The zygote: a process forked before anything was patched or opened, from which all others of a pool come.

It imports nothing but what stands here and does one thing: it forks nurseries. A nursery loads the app and forks
the children, so a pool that restarts gets its code from a fresh nursery, and user code finds ordinary Python.
"""

from __future__ import annotations

import os
import signal
import socket

NEW_NURSERY = b"nursery"
MOST_BYTES = 4096


class Zygote:
    """The launcher's end: its process, and a socket to it (SOCK_SEQPACKET)."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd


def launch() -> Zygote:
    """Fork the zygote. Call it before any patch, thread, hub or connection exists.

    It ends when this process closes its end of the socket, which its death does too.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        _live(theirs)
    theirs.close()
    return Zygote(pid, ours.detach())


def _live(control: socket.socket) -> None:
    """Fork nurseries until the launcher has gone; never returns."""
    code = 1
    try:
        # A session of its own: Ctrl-C and a signal to the launcher's process group are meant for the launcher,
        # which ends its children when their tasks have ended.
        os.setsid()
        _be_deaf()
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  (pathlib would be one more import)
            os.dup2(nothing.fileno(), 0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a nursery ended: the kernel reaps it
        while True:
            word, fds, _, _ = socket.recv_fds(control, MOST_BYTES, 2)
            if not word:
                break
            if word == NEW_NURSERY and len(fds) == 2:
                _fork_nursery(control, fds[0], fds[1])
            for fd in fds:
                os.close(fd)
        code = 0
    finally:
        os._exit(code)


def _fork_nursery(control: socket.socket, fd: int, board: int) -> None:
    pid = os.fork()
    if pid:
        control.send(str(pid).encode())
        return
    code = 1
    try:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from greenq.pools._prefork.nursery import serve

        code = serve(fd, board)
    finally:
        os._exit(code)


def _be_deaf() -> None:
    """A supervisor may signal every process of a worker at once: only the launcher acts on it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
