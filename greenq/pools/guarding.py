"""The last resort around a request: whatever fails inside the worker, a slot survives it."""

from __future__ import annotations

import logging

from greenq.model import Outcome, Request, Settle, State
from greenq.pools.base import Done, Run

logger = logging.getLogger(__name__)


def run_guarded(run: Run, request: Request) -> Outcome:
    """The outcome of a request.

    The executor turns everything user code does into one; what is raised here is a defect of greenq, and the
    message goes back.
    """
    try:
        return run(request)
    except BaseException:
        logger.exception("Running request %s failed inside the worker.", request.id)
        return Outcome(request, State.CANCELLED, Settle.REQUEUE)


def tell_done(done: Done, request: Request, outcome: Outcome) -> None:
    """Say that a request ended.

    Where `done` waits, for the log, what an earlier task left behind may strike: a timeout, a kill.
    """
    try:
        done(request, outcome)
    except BaseException:
        logger.exception("Settling request %s failed inside the worker.", request.id)
