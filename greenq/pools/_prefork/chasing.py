"""Ending one task in a child process, and never another one that has just taken its place.

An ending stands on the board with the task's number, and a signal makes the child look. A child that has to be
killed is first stopped; only when it stands still can be seen which task it is on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from greenq.exceptions import Killed, SoftTimeLimitExceeded
from greenq.pools._prefork.board import Board
from greenq.pools._prefork.endings import as_numbers
from greenq.pools._prefork.handle import Chase, Handle
from greenq.pools.base import Ending
from greenq.pools.interrupts import NUDGE

GRACE = 0.3  # seconds for an ending raised in the task, or for a signal that can be handled, to take effect


class Chaser:
    """Owned by the pool's greenlet."""

    def __init__(self, board: Board, read: Callable[[Handle], object]) -> None:
        """`read` takes in everything a child has written."""
        self._board = board
        self._read = read

    def begin(self, child: Handle, ending: Ending) -> None:
        """End the task at the head of the child's line."""
        number, chase = child.line[0][0], child.chase
        if chase is not None and chase.number == number and (chase.struck or type(chase.ending) is type(ending)):
            return  # a cold stop is asked for again and again: its grace began with the first
        child.chase = Chase(number, ending, time.monotonic())
        self._board.want(child.index, number, as_numbers(ending))
        if isinstance(ending, Killed):
            self._stop(child)
        else:
            child.brood.signal(child.pid, NUDGE)

    def look(self, child: Handle) -> None:
        """Several times a second: see an ending through."""
        chase = child.chase
        if chase is None:
            return
        if not child.line or child.line[0][0] != chase.number:
            child.chase = None
        elif not child.stopping_for and time.monotonic() - chase.since > GRACE and _forceful(chase.ending):
            self._stop(child)
        elif not chase.struck and not isinstance(chase.ending, Killed):
            child.brood.signal(child.pid, NUDGE)

    def stopped(self, child: Handle) -> None:
        """The child stands still: look what it is on, and strike or let it go on."""
        if not child.stopping_for:
            return  # somebody else stopped it, and will have a reason
        wanted, child.stopping_for = child.stopping_for, 0
        self._read(child)
        chase = child.chase
        on_it = bool(child.line) and child.line[0][0] == wanted == self._board.started(child.index)
        if chase is None or not on_it:
            child.brood.signal(child.pid, signal.SIGCONT)
            return
        child.chase = chase._replace(since=time.monotonic(), struck=True)
        number = _signal_of(chase)
        if number == signal.SIGKILL:
            child.brood.signal(child.pid, number)
        else:
            child.brood.signal(child.pid, number, signal.SIGCONT)

    def _stop(self, child: Handle) -> None:
        child.stopping_for = child.line[0][0]
        # One that somebody else has stopped would not stop once more, and nobody hear of it.
        child.brood.signal(child.pid, signal.SIGCONT, signal.SIGSTOP)


def _forceful(ending: Ending) -> bool:
    """A soft limit is for the task to handle; every other ending is carried out."""
    return not isinstance(ending, SoftTimeLimitExceeded)


def _signal_of(chase: Chase) -> int:
    """The signal a command named, at the first try; then the one that cannot be ignored."""
    if chase.struck or not isinstance(chase.ending, Killed):
        return signal.SIGKILL
    named = chase.ending.args[0] if chase.ending.args else None
    return named if isinstance(named, int) and named in signal.valid_signals() else signal.SIGKILL
