"""The worker's view of one child: its pipe, and the requests it has in hand."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from greenq.model import Request
from greenq.pools._prefork.brood import Brood
from greenq.pools._prefork.frames import READ_BYTES, Frame, FrameReader, Kind, frame
from greenq.pools.base import Ending
from greenq.runtime.base import WatchingRuntime
from greenq.wire.passing import pack_epitaph, pack_request


class Job(NamedTuple):
    """A request, or with an error the epitaph that a child is to write for it."""

    request: Request
    error: BaseException | None = None
    tries: int = 0  # children that died over this epitaph


class Chase(NamedTuple):
    """An ending on its way to the task at the head of a child's line."""

    number: int
    ending: Ending
    since: float  # monotonic seconds
    struck: bool = False  # the child has been stopped, looked at and signalled


class Handle:
    """Owned by the main hub; writing never waits: what the pipe does not take now follows when it can."""

    def __init__(self, brood: Brood, index: int, pid: int, fd: int, runtime: WatchingRuntime) -> None:
        os.set_blocking(fd, False)
        self.brood = brood
        self.index = index
        self.pid = pid
        self.born = time.monotonic()
        self.ready = False
        self.leaving = False  # takes nothing new, and ends after what it has
        self.silent = False  # its end of the pipe is closed: it has ended, or will have to
        self.unfit = ""  # why its start failed
        self.line: deque[tuple[int, Job]] = deque()  # in hand, in order; it is on the first
        self.handed = 0
        self.chase: Chase | None = None
        self.stopping_for = 0  # the number of the task for whose sake it was sent SIGSTOP
        self._fd = fd
        self._reader = FrameReader()
        self._runtime = runtime
        self._unwritten: deque[memoryview] = deque()
        self._write_watch = runtime.watch(fd, self._write_more, writing=True)
        self._read_watch = runtime.watch(fd, self._readable)
        self._heard: Callable[[Handle], object] = _nobody
        self._frames: list[Frame] = []  # read by the hub, not yet collected by the crier

    def listen(self, heard: Callable[[Handle], object]) -> None:
        """From now on, read what it writes; `heard(self)` is called on the hub when there is something to collect."""
        self._heard = heard
        self._read_watch.start()

    def _readable(self) -> None:
        frames = self._read()
        if frames:
            first = not self._frames
            self._frames += frames
            if first:
                self._heard(self)
        elif self.silent:
            self._read_watch.stop()

    def collect(self) -> list[Frame]:
        """What it has written since the last time."""
        frames, self._frames = self._frames, []
        return frames

    def collect_all(self) -> list[Frame]:
        """Everything it has written; for a child that is stopped or has ended."""
        while (frames := self._read()) is not None:
            self._frames += frames
        return self.collect()

    def _read(self) -> list[Frame] | None:
        """The frames that are complete now; None if there is nothing to read."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            self.silent = True
            return None
        return self._reader.feed(data)

    def hand(self, number: int, job: Job, *, tells: bool) -> None:
        """Give it a request; `tells`: its outcome is to have the text of the task's value."""
        self.line.append((number, job))
        self.handed += 1
        if job.error is None:
            self._write(frame(Kind.TELL if tells else Kind.RUN, number, pack_request(job.request)))
        else:
            self._write(frame(Kind.EPITAPH, number, pack_epitaph(job.request, job.error)))

    def leave(self) -> None:
        """Have it end after what it has in hand."""
        if not self.leaving:
            self.leaving = True
            self._write(frame(Kind.LEAVE))

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.brood.signal(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipe."""
        self._read_watch.close()
        self._write_watch.close()
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        if self._unwritten:
            self._unwritten.append(memoryview(data))
            return
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except OSError:  # it has ended: its nursery says so, and then its line is taken back
            return
        if written < len(data):
            self._unwritten.append(memoryview(data)[written:])
            self._write_watch.start()

    def _write_more(self) -> None:
        while self._unwritten:
            piece = self._unwritten[0]
            try:
                written = os.write(self._fd, piece)
            except BlockingIOError:
                return
            except OSError:
                self._unwritten.clear()
                break
            if written < len(piece):
                self._unwritten[0] = piece[written:]
                return
            self._unwritten.popleft()
        self._write_watch.stop()


def _nobody(handle: Handle) -> None:
    """Nobody listens yet."""
