"""Endings as two numbers, so that they can stand on the board."""

from __future__ import annotations

from greenq.exceptions import ColdStop, HardTimeLimit, Killed, SoftTimeLimitExceeded
from greenq.pools._prefork.board import Wanted
from greenq.pools.base import Ending

SOFT, HARD, COLD, KILLED = 1, 2, 3, 4
MILLIONTHS = 1_000_000


def as_numbers(ending: Ending) -> Wanted:
    """The ending for the board."""
    if isinstance(ending, SoftTimeLimitExceeded):
        return Wanted(SOFT, _millionths(ending))
    if isinstance(ending, HardTimeLimit):
        return Wanted(HARD, _millionths(ending))
    if isinstance(ending, ColdStop):
        return Wanted(COLD, 0)
    return Wanted(KILLED, int(ending.args[0]) if ending.args else 0)


def as_ending(wanted: Wanted) -> Ending:
    """The ending from the board."""
    if wanted.kind == SOFT:
        return SoftTimeLimitExceeded(wanted.detail / MILLIONTHS)
    if wanted.kind == HARD:
        return HardTimeLimit(wanted.detail / MILLIONTHS)
    if wanted.kind == COLD:
        return ColdStop("the worker ends now")
    return Killed(wanted.detail)


def _millionths(ending: Ending) -> int:
    return int(float(ending.args[0]) * MILLIONTHS) if ending.args else 0
