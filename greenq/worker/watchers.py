"""What remote commands may do about the events that this worker sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenq.worker.worker import Worker


class WorkerWatchers:
    """See `control.panel.Watchers`. Called in the service thread; the flag is read everywhere."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def enable(self) -> bool:
        """See Watchers."""
        return self._switch(on=True)

    def disable(self) -> bool:
        """See Watchers."""
        return self._switch(on=False)

    def beat(self) -> None:
        """See Watchers."""
        self._worker.announcer.beat()

    def _switch(self, *, on: bool) -> bool:
        events = self._worker.events
        changed = events.tasks is not on
        events.tasks = on
        return changed
