"""Commands that change what the node does."""

from __future__ import annotations

import os
import signal as signals
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from greenq.control.panel import Panel
from greenq.control.registry import make_command
from greenq.control.revoking import ids_of, pairs_of, stamps_of
from greenq.exceptions import BadArgument, ConfigError
from greenq.rates import parse_rate

# What the profile "standard" allows no more: ending what runs, and limits that let next to nothing through.
_SELDOM = 1 / 60  # tasks a second
_SOON = 1.0  # seconds


def _terminates(_panel: Panel, arguments: Mapping[str, Any]) -> str:
    return "with terminate" if arguments.get("terminate") else ""


def _stops_a_type(_panel: Panel, arguments: Mapping[str, Any]) -> str:
    try:
        rate = parse_rate(arguments["rate_limit"])
    except ConfigError:
        return ""  # the command says so itself
    return "to less than one a minute" if rate is not None and 0 < rate < _SELDOM else ""


def _ends_at_once(_panel: Panel, arguments: Mapping[str, Any]) -> str:
    limits = (arguments.get("soft"), arguments.get("hard"))
    return f"below {_SOON:g} s" if any(0 < (limit or 0) < _SOON for limit in limits) else ""


def revoke(
    panel: Panel,
    *,
    task_id: str | list[str],
    terminate: bool = False,
    signal: str | int | None = None,
) -> dict[str, str]:
    """Never start the tasks of these ids; with terminate, end those that run."""
    ids = ids_of(task_id)
    number = signal_number(signal) if terminate else 0
    panel.revokes.add(ids)
    if not terminate:
        return {"ok": f"tasks {set(ids)} flagged as revoked"}
    ended = panel.terminate(ids, number)
    return {"ok": f"terminate: {', '.join(ended) if ended else 'tasks unknown'}"}


def terminate(panel: Panel, *, signal: str | int, task_id: str | list[str]) -> dict[str, str]:
    """End the tasks of these ids though they run."""
    return revoke(panel, task_id=task_id, terminate=True, signal=signal)


def revoke_by_stamped_headers(
    panel: Panel,
    *,
    headers: dict[str, Any] | list[str] | str,
    terminate: bool = False,
    signal: str | int | None = None,
) -> dict[str, str]:
    """Never start tasks that carry one of these stamps; with terminate, end those that run."""
    wanted = stamps_of(headers)
    pairs = pairs_of(wanted)
    number = signal_number(signal) if terminate else 0
    panel.revokes.add_stamps(pairs)
    if not terminate:
        return {"ok": f"headers {wanted} flagged as revoked, but not terminated"}
    ended: dict[str, set[str]] = defaultdict(set)
    for header, value in panel.revokes.terminate_stamped(pairs, number):
        ended[header].add(value)
    return {"ok": f"headers {ended} revoked" if ended else f"headers {wanted} were not terminated"}


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
    if rate and panel.app.conf.worker_disable_rate_limits:
        return {"error": "rate limits are disabled on this node (worker_disable_rate_limits)"}
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
    make_command(revoke, "control", variadic="task_id", access="limits", beyond=_terminates),
    make_command(terminate, "control", args=[("signal", str)], variadic="task_id"),
    make_command(
        revoke_by_stamped_headers,
        "control",
        variadic="headers",
        signature="HEADER=VALUE [HEADER=VALUE ...]",
        access="limits",
        beyond=_terminates,
    ),
    make_command(
        rate_limit,
        "control",
        args=[("task_name", str), ("rate_limit", str)],
        access="limits",
        beyond=_stops_a_type,
    ),
    make_command(
        time_limit,
        "control",
        args=[("task_name", str), ("soft", float), ("hard", float)],
        access="limits",
        beyond=_ends_at_once,
    ),
    make_command(shutdown, "control", args=[], replies=False),
)
