"""Turn a task, its arguments and the options of a call into a message (wire.md 5.1 to 5.7)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from greenq.app.options import check_limits, suggestion
from greenq.app.signature import Signature, as_signature, refuse_composed
from greenq.context import TaskContext, current
from greenq.conversion import KINDS
from greenq.exceptions import ConfigError
from greenq.model import TaskMessage
from greenq.wire.messages import build_task_message

if TYPE_CHECKING:
    from greenq.app.base import GreenQ

logger = logging.getLogger(__name__)


class SendOptions(TypedDict, total=False):
    """What `Task.apply_async` takes besides the arguments. Times are seconds from now, or moments."""

    countdown: float
    eta: datetime | None
    expires: float | datetime | None
    task_id: str | None
    queue: Any
    exchange: Any
    routing_key: str | None
    priority: int | None
    serializer: str | None
    compression: str | None
    delivery_mode: int | str | None
    headers: Mapping[str, Any] | None
    retry: bool
    retry_policy: Mapping[str, float]
    link: Any
    link_error: Any
    shadow: str | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    add_to_parent: bool
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    reply_to: str | None
    chain: Any
    chord: Any
    retries: int


if TYPE_CHECKING:
    KNOWN: frozenset[str]
else:
    KNOWN = frozenset(SendOptions.__annotations__)

_STAMPS = ("stamped_headers", "stamps", "replaced_task_nesting")  # options Celery puts on signatures


class Outgoing(NamedTuple):
    """A message ready to go, and what the caller has to know of it."""

    message: TaskMessage
    task_id: str
    ignored: bool  # nobody will ever store a result
    parent: TaskContext | None  # the run that sends it, if it is to be told


def build(
    app: GreenQ,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    embed: Mapping[str, Any] | None = None,
) -> Outgoing:
    """Make the message of one call; `embed` is that of an earlier message, passed on as it came.

    Raises:
        TypeError: for an option that does not exist, or arguments no serializer takes.
        ConfigError: for an address or a limit that makes no sense.
    """
    producer = app.producer
    plan = producer.plan(name)
    parent = running()
    now = datetime.now(timezone.utc)
    fields: dict[str, Any] = {"reply_to": producer.reply_to}
    if parent is not None:
        fields.update(root_id=parent.root_id or parent.id, parent_id=parent.id)
    fields.update(plan.message)
    if plan.expires:
        fields["expires"] = now + timedelta(seconds=plan.expires)
    if options or not plan.static:
        fields.update(_from_options(app, name, args, kwargs, options, plan, parent))
    if embed:
        fields.update(embed)
    task_id = options.get("task_id") or new_id()
    message = build_task_message(
        name=name, args=args, kwargs=kwargs, task_id=task_id, origin=producer.origin, now=now, **fields
    )
    told = parent if parent is not None and options.get("add_to_parent", True) else None
    return Outgoing(message, task_id, fields["ignore_result"] is True, told)


class Plan(NamedTuple):
    """What all messages of one task have in common, while the settings stay as they are."""

    message: dict[str, Any]  # arguments of build_task_message
    own: dict[str, Any]  # options written at the task, which routes do not override
    expires: float | None  # seconds, from the task's options
    static: bool  # the destination does not depend on the call


def make_plan(app: GreenQ, name: str) -> Plan:
    """Work out what the messages of that task have in common; the producer keeps it."""
    task = app.tasks.get(name)
    values = task.options_in_force() if task is not None else app.producer.default_options
    explicit = task.explicit if task is not None else {}
    own = {key: explicit[key] for key in _OWN if explicit.get(key) is not None}
    message: dict[str, Any] = {
        "serializer": values["serializer"],
        "compression": values["compression"],
        "priority": values["priority"],
        "delivery_mode": values["delivery_mode"],
        "ignore_result": values["ignore_result"] if task is not None else None,
    }
    static = app.producer.router.static and not app.conf.task_inherit_parent_priority
    if static:
        routed = app.producer.router.route(name, (), {}, own, task)
        static = not routed.keys() & _TIMES
        message.update(_fields(app, name, routed), **_address(app, routed))
    return Plan(message, own, values["expires"], static)


def _from_options(
    app: GreenQ,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    given: Mapping[str, Any],
    plan: Plan,
    parent: TaskContext | None,
) -> dict[str, Any]:
    """Arguments of build_task_message that the options of one call, or a route that depends on it, decide."""
    for key in given:
        if key not in KNOWN:
            raise TypeError(f"sending {name}: there is no option {key!r}{suggestion(key, KNOWN)}")
    if plan.static and not given.keys() & _ADDRESS:
        return _fields(app, name, given)
    routed = app.producer.router.route(name, args, kwargs, {**plan.own, **given}, app.tasks.get(name))
    fields = {**_fields(app, name, routed), **_address(app, routed)}
    if parent is not None and parent.message is not None and app.conf.task_inherit_parent_priority:
        fields.setdefault("priority", parent.message.priority)
    return fields


def _fields(app: GreenQ, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of build_task_message for options of a call, a task or a route; None counts as not given."""
    fields: dict[str, Any] = {}
    for option, value in options.items():
        if value is None:
            continue
        field = _COPIED.get(option)
        if field is not None:
            fields[field] = value
        elif option in _LINKS:
            fields[_LINKS[option]] = [as_signature(each).plain() for each in _as_list(value)]
        elif option in _TIMES:
            fields["expires" if option == "expires" else "eta"] = _time(app, name, option, value)
    if "delivery_mode" in fields:
        fields["delivery_mode"] = KINDS["delivery_mode"].convert(fields["delivery_mode"])
    # Only limits written at the task or the call travel; those of the settings are the worker's own.
    check_limits(name, fields.get("soft_limit"), fields.get("hard_limit"))
    return fields


_ADDRESS = frozenset({"queue", "exchange", "routing_key"})
_TIMES = frozenset({"countdown", "eta", "expires"})
_LINKS = {"link": "callbacks", "link_error": "errbacks"}
_OWN = (
    *_ADDRESS,
    "priority",
    "serializer",
    "compression",
    "delivery_mode",
    "time_limit",
    "soft_time_limit",
)
_COPIED = {
    "serializer": "serializer",
    "compression": "compression",
    "priority": "priority",
    "delivery_mode": "delivery_mode",
    "headers": "headers",
    "shadow": "shadow",
    "ignore_result": "ignore_result",
    "root_id": "root_id",
    "parent_id": "parent_id",
    "group_id": "group",
    "group_index": "group_index",
    "reply_to": "reply_to",
    "chain": "chain",
    "chord": "chord",
    "retries": "retries",
    "time_limit": "hard_limit",
    "soft_time_limit": "soft_limit",
}


def _time(app: GreenQ, name: str, option: str, value: Any) -> datetime:
    if option == "eta" and isinstance(value, (int, float)):
        raise TypeError(f"sending {name}: eta takes a datetime; for seconds from now use countdown")
    return moment(app, value, f"sending {name}: {option}")


def moment(app: GreenQ, value: Any, what: str) -> datetime:
    """A moment with its zone: naive ones are in the app's, and numbers are seconds from now.

    Raises:
        TypeError: for anything else; `what` names the culprit.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = timedelta(seconds=value)
    if isinstance(value, timedelta):
        return datetime.now(timezone.utc) + value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            raise TypeError(f"{what} {value!r} is not an ISO date and time") from None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=zone(app.conf.timezone))
    raise TypeError(f"{what} takes a number of seconds or a datetime, not {value!r}")


def zone(name: str | None) -> tzinfo:
    """The zone of the setting `timezone`; UTC for None.

    Raises:
        ConfigError: for a zone this machine does not know.
    """
    if not name or name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as exc:
        raise ConfigError(f"setting timezone = {name!r}: this machine knows no such zone") from exc


def new_id() -> str:
    """A random UUID of version 4 as text; a third of the time of `str(uuid.uuid4())`."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def running() -> TaskContext | None:
    """The run on a worker (or an eager one) that this code is part of, past any direct calls inside it."""
    context = current.get()
    while context is not None and context.called_directly:
        context = getattr(context, "outer", None)
    return context


def message_from_signature(
    app: GreenQ, signature: Mapping[str, Any], args: Sequence[Any], *, context: TaskContext, **extra: Any
) -> TaskMessage:
    """Make the message of a callback, an errback or a chain's next step, as a child of the run in `context`.

    `args` go in front of the signature's own, unless it is immutable. `extra` are more options.

    Raises:
        NotImplementedError: for the signature of a chain, group or chord.
    """
    refuse_composed(signature)
    args, kwargs, options = Signature(signature).merged(args)
    headers = dict(options.pop("headers", None) or {})
    headers.update({key: options.pop(key) for key in _STAMPS if key in options})
    unknown = [key for key in options if key not in KNOWN]
    if unknown:
        logger.warning("Options %s of the signature of %s are not known here.", unknown, signature["task"])
    options = {key: value for key, value in options.items() if key in KNOWN}
    lineage = {"root_id": context.root_id or context.id, "parent_id": context.id}
    if headers:
        options["headers"] = headers
    outgoing = build(app, signature["task"], args, kwargs, {**options, **lineage, **extra})
    if options.get("add_to_parent", True):
        tell(context, outgoing.task_id)
    return outgoing.message


def read_call(
    call: Mapping[str, Any] | tuple[Any, ...],
) -> tuple[str, Sequence[Any], Mapping[str, Any], dict[str, Any]]:
    """Read one item of `send_tasks` as (name, args, kwargs, options)."""
    if isinstance(call, Mapping):
        signature = as_signature(call)
        return signature.task, signature.args, signature.kwargs, signature.options
    if not isinstance(call, tuple) or not 1 <= len(call) <= 4:  # type: ignore[redundant-expr]  # not typed
        raise TypeError(f"expected a signature or (task, args, kwargs, options), not {call!r}")
    padded: tuple[Any, ...] = (*call, None, None, None)
    task, args, kwargs, options = padded[:4]
    name = task if isinstance(task, str) else getattr(task, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"expected a task or its name, not {task!r}")
    return name, args or (), kwargs or {}, dict(options or {})


def tell(parent: TaskContext, task_id: str) -> None:
    """Note a child in the run that sent it."""
    parent.children.append(task_id)


def _address(app: GreenQ, options: Mapping[str, Any]) -> dict[str, str]:
    queue, exchange, routing_key = (options.get(key) for key in ("queue", "exchange", "routing_key"))
    return app.producer.router.destination(queue, exchange, routing_key)._asdict()


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]
