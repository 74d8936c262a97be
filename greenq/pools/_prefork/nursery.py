"""The nursery: the process that has loaded the app, and the parent, to the system, of all children.

It forks them, signals them and hears how they end. Only a process's own parent can do that without ever hitting
a stranger who was given the same number.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import threading
import time
import traceback
from typing import Any

from greenq.exceptions import GreenqError
from greenq.pools._prefork.board import Board
from greenq.pools._prefork.kernel import STOPPING, be_called, die_with
from greenq.pools.base import ChildSide

MOST_BYTES = 128 * 1024
MOST_TEXT = 20_000  # characters of a traceback
ORPHAN_SECONDS = 1.0  # for children to end by themselves when the worker has died

# Words of the control socket, each a pickled tuple: (word, ...).
LOAD, BIRTH, SIGNAL = "load", "birth", "signal"  # from the worker
LOADED, BROKEN, BORN, STILLBORN, EXITED, STOPPED = "loaded", "broken", "born", "stillborn", "exited", "stopped"


def serve(fd: int, board: int) -> int:
    """Live as a nursery until the worker has gone; returns the exit code. In a child it never returns."""
    return Nursery(socket.socket(fileno=fd), Board(board)).serve()


class Nursery:
    """Single-threaded: everything happens between two polls."""

    def __init__(self, control: socket.socket, board: Board) -> None:
        self._control = control
        self._board = board
        self._side: ChildSide | None = None
        self._living: set[int] = set()
        self._pid = os.getpid()
        # A signal writes a byte here, so that a child's end wakes the poll.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> int:
        """Until the worker has gone."""
        be_called("greenq-nursery")
        self._handle_signals()
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._wake_read:
                    self._look_at_children()
                elif not self._obey():
                    self._end_orphans()
                    return 0

    def _handle_signals(self) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def _obey(self) -> bool:
        try:
            data = self._control.recv(MOST_BYTES)
        except ConnectionError:
            return False
        if not data:
            return False
        word, *rest = pickle.loads(data)  # noqa: S301  (from our own parent)
        if word == LOAD:
            self._load(*rest)
        elif word == BIRTH:
            self._give_birth(*rest)
        elif word == SIGNAL:
            self._signal(*rest)
        return True

    def _load(self, target: str, arguments: dict[str, Any], cwd: str, environ: dict[str, str]) -> None:
        os.chdir(cwd)
        os.environ.update(environ)
        module, _, name = target.partition(":")
        try:
            self._side = getattr(importlib.import_module(module), name)(**arguments)
        except GreenqError as error:
            self._say(BROKEN, str(error))
        except BaseException:  # noqa: BLE001  (modules of the user's; the worker says it)
            self._say(BROKEN, traceback.format_exc()[-MOST_TEXT:])
        else:
            # Threads do not live on in a fork; who started them at import wants to know.
            threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            # A module may have taken them; a TERM for every process would end this one, and all children with it.
            self._handle_signals()
            gc.collect()
            gc.freeze()  # what is loaded stays shared with the children: the collector would touch every page
            self._say(LOADED, threads)

    def _give_birth(self, index: int, max_tasks: int | None, max_memory: int | None) -> None:
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(STILLBORN, index, str(error))
            pid = -1
        if not pid:
            ours.close()
            self._become_child(theirs, index, max_tasks, max_memory)
        theirs.close()
        if pid > 0:
            self._living.add(pid)
            # Both ends leave this process at once: the next child would inherit them, and nobody see the end.
            socket.send_fds(self._control, [pickle.dumps((BORN, index, pid))], [ours.fileno()])
        ours.close()

    def _become_child(self, pipe: socket.socket, index: int, max_tasks: int | None, max_memory: int | None) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            from greenq.pools._prefork.child import Child

            die_with(self._pid)
            assert self._side is not None  # births are asked for after LOADED
            code = Child(pipe, index, self._side, self._board, max_tasks, max_memory).serve()
        except BaseException:  # noqa: BLE001  (a child may not come back from here and live on as a nursery)
            traceback.print_exc()
        finally:
            os._exit(code)

    def _signal(self, pid: int, *numbers: int) -> None:
        if pid in self._living:
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):  # it has just ended; its parent has not looked yet
                    os.kill(pid, number)

    def _look_at_children(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 512):
                pass
        while self._living:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status):
                self._say(STOPPED, pid)
            elif pid in self._living:
                self._living.discard(pid)
                self._say(EXITED, pid, os.waitstatus_to_exitcode(status))

    def _say(self, *words: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next poll sees that the worker is gone
            self._control.send(pickle.dumps(words))

    def _end_orphans(self) -> None:
        """The worker is gone. Idle children see it themselves; what still runs would end with nobody to tell."""
        until = time.monotonic() + ORPHAN_SECONDS
        while self._living and time.monotonic() < until:
            self._look_at_children()
            time.sleep(0.01)
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _noted(number: int, frame: object) -> None:
    """The interpreter has written its byte already; a handler must exist for it to do so."""
