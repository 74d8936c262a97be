"""What helps at three in the morning: how many messages are where, and what the node is connected to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenq.worker.worker import Worker


class WorkerVitals:
    """See control.panel.Vitals. Called from the service thread; reads plain numbers and snapshots."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def messages(self) -> dict[str, int]:
        """See Vitals."""
        ledger, outbox = self._worker.ledger, self._worker.outbox
        limited = len(ledger.waiting_for_rate())
        waiting = {"held": len(ledger.held), "limited": limited, "ready": len(ledger.ready)}
        running, unwritten = len(ledger.running), len(outbox)
        return {
            **waiting,
            "running": running,
            "outbox": unwritten,
            "unsettled": sum(waiting.values()) + running + unwritten,
            "finished": ledger.finished,
            "refused": ledger.rejected,
            "redelivered_while_running": ledger.redelivered_while_running,
            "settled_in_vain": outbox.without_effect,
        }

    def connections(self) -> dict[str, Any]:
        """See Vitals."""
        intake, listener = self._worker.intake, self._worker.listener
        fetched = intake.last_fetch
        return {
            "consuming": intake.connected,
            "epoch": self._worker.consumer.epoch,
            "seconds_since_fetch": round(time.monotonic() - fetched, 3) if fetched else None,
            "listening": listener is not None and listener.connected,
        }
