"""The events of a task's life, from the request and its outcome (wire.md 7.3)."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from greenq.events.dispatcher import Dispatcher
from greenq.model import Outcome, Request, Settle, State
from greenq.wire.reprs import shortened


class TaskEvents:
    """Notes what happens to tasks; callers ask `wanted` first, so that a task nobody watches costs nothing more."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @property
    def wanted(self) -> bool:
        """Does anybody want task events?"""
        return self._dispatcher.tasks

    def received(self, request: Request) -> None:
        """A message came from the broker."""
        self._dispatcher.note(
            "task-received",
            {
                "uuid": request.id,
                "name": request.display_name,
                "args": request.argsrepr or "()",
                "kwargs": request.kwargsrepr or "{}",
                "root_id": request.root_id,
                "parent_id": request.parent_id,
                "retries": request.retries,
                "eta": _iso(request.eta),
                "expires": _iso(request.expires),
            },
        )

    def started(self, request: Request) -> None:
        """A slot took it."""
        self._dispatcher.note("task-started", {"uuid": request.id})

    def ended(self, request: Request, outcome: Outcome) -> None:
        """The one outcome of a request; an ignored task has no event, as with Celery."""
        told = _ENDS.get(outcome.state)
        if told is not None:
            kind, fields = told
            self._dispatcher.note(kind, {"uuid": request.id, **fields(outcome)})


def _succeeded(outcome: Outcome) -> dict[str, Any]:
    return {"result": outcome.result_text or shortened(outcome.value), "runtime": outcome.runtime}


def _failed(outcome: Outcome) -> dict[str, Any]:
    return {"exception": outcome.result_text, "traceback": outcome.traceback or None}


def _revoked(outcome: Outcome) -> dict[str, Any]:
    return {
        "terminated": outcome.reason == "terminated",
        "signum": outcome.signum,
        "expired": outcome.reason == "expired",
    }


def _rejected(outcome: Outcome) -> dict[str, Any]:
    return {"requeue": outcome.how is Settle.REQUEUE}


def _cancelled(_outcome: Outcome) -> dict[str, Any]:
    return {}


_ENDS = {
    State.SUCCESS: ("task-succeeded", _succeeded),
    State.FAILURE: ("task-failed", _failed),
    State.RETRY: ("task-retried", _failed),
    State.REVOKED: ("task-revoked", _revoked),
    State.REJECTED: ("task-rejected", _rejected),
    State.CANCELLED: ("task-cancelled", _cancelled),
}


def _iso(moment: float | None) -> str | None:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat() if moment else None
