"""A child: runs the requests its parent hands it, one after the other, in an ordinary Python process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from greenq.exceptions import GreenqError, Interrupt, SoftTimeLimitExceeded
from greenq.model import Outcome, Record, Request, State
from greenq.pools._prefork.board import Board
from greenq.pools._prefork.endings import KILLED, as_ending
from greenq.pools._prefork.frames import READ_BYTES, Frame, FrameReader, Kind, frame
from greenq.pools._prefork.kernel import STOPPING, be_called
from greenq.pools.base import ChildSide
from greenq.pools.guarding import run_guarded
from greenq.pools.interrupts import NUDGE, PATIENCE, at_a_loops_end, untouched
from greenq.wire.passing import pack_outcome, pack_record, unpack_epitaph, unpack_request
from greenq.wire.reprs import shortened

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class ParentGone(Exception):
    """The other end of the pipe is closed: what was to be sent reaches nobody."""


class Child:
    """Everything happens in the main thread; the signal handlers only look and raise."""

    def __init__(
        self,
        pipe: socket.socket,
        index: int,
        side: ChildSide,
        board: Board,
        max_tasks: int | None,
        max_memory: int | None,
    ) -> None:
        """`max_memory` is in KiB of peak resident memory, as the kernel counts it."""
        self._fd = pipe.detach()
        self._index = index
        self._side = side
        self._board = board
        self._max_tasks = max_tasks
        self._max_memory = max_memory
        self._tasks = 0
        self._number = 0
        self._request: Request | None = None
        self._report: Callable[[UnraisableHookArgs], object] = sys.__unraisablehook__
        self._asked = (0, 0, 0.0)  # the task and the kind of ending that is wanted, and since when (monotonic)
        self._told = (0, 0)  # the task and the kind of ending that was raised in it: once is enough

    def serve(self) -> int:
        """Until told to leave; returns the exit code."""
        be_called(f"greenq-child-{self._index}")
        self._handle_signals()
        try:
            self._side.start(self._index, self._store)
        except BaseException as error:  # noqa: BLE001  (a hook of the user's; the parent says it)
            text = str(error) if isinstance(error, GreenqError) else f"{type(error).__name__}: {error}"
            self._send(frame(Kind.UNFIT, 0, text.encode("utf-8", "backslashreplace")))
            return 1
        try:
            with contextlib.suppress(ParentGone):  # nobody is left to answer: an end like any other
                self._send(frame(Kind.READY))
                self._work()
        finally:
            self._side.stop()
            with contextlib.suppress(AttributeError, OSError, ValueError):  # a task may have closed or replaced it
                sys.stdout.flush()
        return 0

    def _work(self) -> None:
        """Until told to leave, or the parent closes the pipe."""
        reader = FrameReader()
        while True:
            try:
                data = os.read(self._fd, READ_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                return
            for received in reader.feed(data):
                if received[0] == Kind.LEAVE:
                    return
                leaving = self._one(received)
                if leaving:
                    return

    def _one(self, received: Frame) -> bool:
        """Run one request; True if it was this child's last."""
        kind, number, payload = received
        self._number = number
        self._board.start(self._index, number)
        outcome = self._outcome(kind, number, payload)
        self._request = None
        if kind == Kind.TELL and outcome.state == State.SUCCESS:
            outcome.result_text = shortened(outcome.value)  # the value itself stays here
        try:
            packed = pack_outcome(outcome)
        except Exception as error:  # noqa: BLE001  (whatever pickle runs into)
            # Headers of a follow-up that cannot travel: the task's own doing, and its failure.
            packed = pack_outcome(self._side.epitaph(outcome.request, error))
        answer = frame(Kind.DONE, number, packed)
        self._tasks += 1
        leaving = self._has_done_its_share()
        self._send(frame(Kind.LEAVING) + answer if leaving else answer)
        return leaving

    def _outcome(self, kind: int, number: int, payload: bytes) -> Outcome:
        if kind == Kind.EPITAPH:
            return self._side.epitaph(*unpack_epitaph(payload, self._side.accept))
        self._request = request = unpack_request(payload, self._side.accept)
        wanted = self._board.wanted(self._index, number)
        if wanted is not None:
            return self._side.epitaph(request, as_ending(wanted))
        return run_guarded(self._side.run, request)

    def _has_done_its_share(self) -> bool:
        if self._max_tasks and self._tasks >= self._max_tasks:
            return True
        if not self._max_memory:
            return False
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > self._max_memory

    def _store(self, record: Record) -> None:
        self._send(frame(Kind.RECORD, self._number, pack_record(record)))

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except (BrokenPipeError, ConnectionResetError):
            raise ParentGone from None

    def _handle_signals(self) -> None:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        for number in STOPPING:
            signal.signal(number, self._on_stop)  # not SIG_IGN, which every program that a task starts would inherit
        signal.signal(NUDGE, self._on_nudge)
        os.register_at_fork(after_in_child=_be_anybody)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable

    def _on_nudge(self, number: int, where: FrameType | None) -> None:
        request = self._request
        if request is None or request.state != "running":
            return
        wanted = self._board.wanted(self._index, self._number)
        if wanted is None or wanted.kind == KILLED or self._told == (self._number, wanted.kind):
            return
        ending, now = as_ending(wanted), time.monotonic()
        if self._asked[:2] != (self._number, wanted.kind):
            self._asked = (self._number, wanted.kind, now)
        # Where it may not be raised the parent sends the signal again.
        if where is None or untouched(where, ending) or (at_a_loops_end(where) and now - self._asked[2] < PATIENCE):
            return
        self._told = (self._number, wanted.kind)
        raise ending

    def _on_unraisable(self, lost: UnraisableHookArgs) -> None:
        """An ending that struck in a finalizer got no further: have it raised once more."""
        if isinstance(lost.exc_value, (Interrupt, SoftTimeLimitExceeded)):
            self._told = (0, 0)
        else:
            self._report(lost)

    def _on_stop(self, number: int, where: FrameType | None) -> None:
        """These go to every process of a worker at once; one is for this task only if the parent says so."""
        wanted = self._board.wanted(self._index, self._number)
        if wanted is not None and wanted.kind == KILLED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _be_anybody() -> None:
    """A process that a task forks is no child of the pool: who signals it, such as multiprocessing, means it."""
    for number in (*STOPPING, NUDGE):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
