"""Commands that change what the node does."""

from __future__ import annotations

import os
import signal as signals

from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.exceptions import BadArgument, ConfigError
from greenq.rates import parse_rate


def revoke(
    panel: Panel,
    *,
    task_id: str | list[str],
    terminate: bool = False,
    signal: str | int | None = None,
) -> dict[str, str]:
    """Never start the tasks of these ids; with terminate, end those that run."""
    ids = [task_id] if isinstance(task_id, str) else list(task_id)
    number = signal_number(signal) if terminate else 0
    panel.revoke(ids)
    if not terminate:
        return {"ok": f"tasks {set(ids)} flagged as revoked"}
    ended = panel.terminate(ids, number)
    return {"ok": f"terminate: {', '.join(ended) if ended else 'tasks unknown'}"}


def terminate(panel: Panel, *, signal: str | int, task_id: str | list[str]) -> dict[str, str]:
    """End the tasks of these ids though they run."""
    return revoke(panel, task_id=task_id, terminate=True, signal=signal)


def signal_number(signal: str | int | None) -> int:
    """The number of a signal given as a number, as "KILL" or as "SIGKILL"; None is the default, TERM.

    The environment variable REMAP_SIGTERM=SIGQUIT changes that default, as for Celery (wire.md 1.4).

    Raises:
        BadArgument: for a name or number that is not a signal's.
    """
    given = signal
    if signal is None:
        signal = os.environ.get("REMAP_SIGTERM") or "TERM"
    try:
        if isinstance(signal, int):
            return signals.Signals(signal).value
        return signals.Signals["SIG" + signal.removeprefix("SIG")].value
    except (KeyError, ValueError):
        raise BadArgument(f"signal {given!r} is not one: write TERM, SIGKILL, ... or a number") from None


def rate_limit(panel: Panel, *, task_name: str, rate_limit: str | float | None) -> dict[str, str]:
    """Set how often tasks of a type may start: 5, "10/s", "200/m", "5/h"; 0 lifts the limit."""
    if task_name not in panel.app.tasks:
        return {"error": "unknown task"}
    try:
        rate = parse_rate(rate_limit)
    except ConfigError as exc:
        return {"error": f"Invalid rate limit string: {ValueError(str(exc))!r}"}
    panel.rate_limit(task_name, rate_limit if rate else None)
    return {"ok": "new rate limit set successfully" if rate else "rate limit disabled successfully"}


def time_limit(
    panel: Panel, *, task_name: str, soft: float | None = None, hard: float | None = None
) -> dict[str, str]:
    """Set the time limits of a task, in seconds, for all that starts from now on; none or 0 lifts them.

    What the sender of a message wrote into it goes before this, and the worker's own limits come after.
    """
    if task_name not in panel.app.tasks:
        return {"error": "unknown task"}
    for name, limit in (("soft", soft), ("hard", hard)):
        if limit is not None and limit < 0:
            raise BadArgument(f"time_limit: {name} must not be negative, it is {limit:g}")
    if soft and hard and soft > hard:
        raise BadArgument(f"time_limit: the soft limit, {soft:g} s, is above the hard one, {hard:g} s")
    panel.time_limit(task_name, soft or None, hard or None)
    return {"ok": "time limits set successfully"}


def shutdown(panel: Panel, *, msg: str = "Got shutdown from remote") -> None:
    """Stop the node: running tasks finish, the rest goes back. Never answers."""
    panel.shutdown(msg)


COMMANDS = (
    make_command(revoke, "control", variadic="task_id"),
    make_command(terminate, "control", args=[("signal", str)], variadic="task_id"),
    make_command(rate_limit, "control", args=[("task_name", str), ("rate_limit", str)]),
    make_command(time_limit, "control", args=[("task_name", str), ("soft", float), ("hard", float)]),
    make_command(shutdown, "control", args=[], replies=False),
)
