"""The thread that writes the state file: a slow disk stops neither tasks nor commands."""

from __future__ import annotations

import logging
import time
from _queue import Empty, SimpleQueue  # the C one: it blocks a native thread, whatever has been patched
from collections.abc import Callable

from greenq.runtime.base import Fiber, Runtime
from greenq.worker.statedb import Record, StateFile

logger = logging.getLogger(__name__)

AGAIN_AFTER = 5.0  # seconds between two tries to write to a disk that refused
PATIENCE = 0.5  # seconds that a command waits for the disk


class Written:
    """Says of one record whether the disk has it. The writer's thread sets it, others look."""

    __slots__ = ("done", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.done = False


class StateWriter:
    """Appends records in the order they come, all that wait in one write, and writes the file anew when it has grown.

    While the disk refuses, nothing is kept in line: what holds then is in memory anyway, and is written as a whole
    as soon as there is room.
    """

    def __init__(self, file: StateFile, snapshot: Callable[[], list[Record]], runtime: Runtime) -> None:
        """`snapshot` gives all that holds now, oldest first; it is called in the writer's thread."""
        self._file = file
        self._snapshot = snapshot
        self._runtime = runtime
        self._line: SimpleQueue[Written | None] = SimpleQueue()
        self._thread: Fiber | None = None
        self._refused = False

    def start(self) -> None:
        """Start the thread."""
        self._thread = self._runtime.isolated(self._serve, name="statedb")

    def put(self, record: Record) -> Written:
        """Have a record written; any thread."""
        written = Written(record)
        self._line.put(written)
        return written

    def wait(self, written: Written) -> None:
        """Wait until the disk has a record, or has refused it; no longer than `PATIENCE`. In any fiber."""
        deadline = time.monotonic() + PATIENCE
        pause = 0.0005
        while not written.done and time.monotonic() < deadline:
            self._runtime.sleep(pause)
            pause = min(pause * 2, 0.02)

    def stop(self, timeout: float) -> None:
        """Write what is in line, and all that holds besides; then let go of the file."""
        self._line.put(None)
        if self._thread is not None:
            self._thread.join(timeout)

    def _serve(self) -> None:
        more = True
        while more:
            batch, more = self._take()
            if self._refused or not more or self._file.grown:
                self._try(lambda: self._file.replace(self._snapshot()))
            elif batch:
                records = [written.record for written in batch]
                self._try(lambda: self._file.append(records))  # noqa: B023  (called before the next round)
            for written in batch:
                written.done = True
        self._file.close()

    def _take(self) -> tuple[list[Written], bool]:
        """Wait for records, and return all that are in line; False with them when it is time to end."""
        batch: list[Written] = []
        try:
            found = self._line.get(timeout=AGAIN_AFTER) if self._refused else self._line.get()
            while found is not None:
                batch.append(found)
                found = self._line.get(block=False)
        except Empty:
            return batch, True
        return batch, False

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as exc:
            if not self._refused:
                logger.warning(
                    "The state file %s cannot be written (%s): revoked tasks are kept in memory until it can.",
                    self._file.path,
                    exc.strerror or exc,
                    extra={"event": "statedb.refused"},
                )
            self._refused = True
        else:
            if self._refused:
                logger.warning("The state file %s is written again.", self._file.path)
            self._refused = False
