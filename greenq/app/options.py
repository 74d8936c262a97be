"""The options of `@app.task`: their names, where their defaults come from, and what they may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from greenq.config import Settings
from greenq.conversion import KINDS
from greenq.exceptions import ConfigError


class TaskOptions(TypedDict, total=False):
    """What `@app.task` takes besides `name` and `bind`. Times are seconds."""

    typing: bool
    ignore_result: bool
    store_errors_even_if_ignored: bool
    store_eager_result: bool
    acks_late: bool
    acks_on_failure_or_timeout: bool
    acks_on_failure: bool
    acks_on_timeout: bool
    reject_on_worker_lost: bool
    rate_limit: str | float | None
    time_limit: float | None
    soft_time_limit: float | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: type[BaseException] | tuple[type[BaseException], ...]
    dont_autoretry_for: type[BaseException] | tuple[type[BaseException], ...]
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    expires: float | None
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    delivery_mode: int | str | None
    serializer: str | None
    compression: str | None
    throws: type[BaseException] | tuple[type[BaseException], ...]
    track_started: bool


if TYPE_CHECKING:
    KNOWN: frozenset[str]
else:
    KNOWN = frozenset(TaskOptions.__annotations__)

# Options that follow a setting until they are given.
FROM_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "ignore_result": "task_ignore_result",
        "store_errors_even_if_ignored": "task_store_errors_even_if_ignored",
        "store_eager_result": "task_store_eager_result",
        "acks_late": "task_acks_late",
        "acks_on_failure_or_timeout": "task_acks_on_failure_or_timeout",
        "acks_on_failure": "task_acks_on_failure",
        "acks_on_timeout": "task_acks_on_timeout",
        "reject_on_worker_lost": "task_reject_on_worker_lost",
        "rate_limit": "task_default_rate_limit",
        "time_limit": "task_time_limit",
        "soft_time_limit": "task_soft_time_limit",
        "priority": "task_default_priority",
        "serializer": "task_serializer",
        "compression": "task_compression",
        "delivery_mode": "task_default_delivery_mode",
        "track_started": "task_track_started",
    }
)
FIXED: Mapping[str, Any] = MappingProxyType(
    {
        "typing": True,
        "max_retries": 3,
        "default_retry_delay": 180,
        "autoretry_for": (),
        "dont_autoretry_for": (),
        "retry_kwargs": MappingProxyType({}),
        "retry_backoff": False,
        "retry_backoff_max": 600,
        "retry_jitter": True,
        "expires": None,
        "queue": None,
        "exchange": None,
        "routing_key": None,
        "throws": (),
    }
)
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "rate_limit": "rate",
        "time_limit": "seconds",
        "soft_time_limit": "seconds",
        "default_retry_delay": "seconds",
        "retry_backoff_max": "seconds",
        "max_retries": "int",
        "priority": "int",
        "delivery_mode": "delivery_mode",
        "retry_kwargs": "dict",
        **dict.fromkeys(("queue", "exchange", "routing_key", "serializer", "compression"), "str"),
        **dict.fromkeys(
            (
                "typing",
                "ignore_result",
                "store_errors_even_if_ignored",
                "store_eager_result",
                "acks_late",
                "acks_on_failure_or_timeout",
                "acks_on_failure",
                "acks_on_timeout",
                "reject_on_worker_lost",
                "retry_jitter",
                "track_started",
            ),
            "bool",
        ),
    }
)
_EXCEPTIONS = frozenset({"autoretry_for", "dont_autoretry_for", "throws"})
# Celery's, with the reason why this version has none of it.
_NOT_HERE: Mapping[str, str] = MappingProxyType(
    {
        "base": "class-based tasks are not part of this version",
        "backend": "the result store belongs to the app: set result_backend",
        "filter": "wrap the function with your own decorator below @app.task instead",
        "lazy": "tasks are registered when they are defined",
        "pydantic": "arguments are not converted in this version",
        "resultrepr_maxsize": "the length of results in the log is fixed",
        "retry_on_worker_lost": "reject_on_worker_lost says whether a late-acked task of a lost process comes back",
        "send_events": "events are not part of this version",
        "shared": "use @shared_task for tasks that belong to every app",
        "trail": "the tasks a task sends are always recorded; pass add_to_parent=False at the call instead",
    }
)


def checked(task_name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options somebody wrote for a task.

    Raises:
        TypeError: for a name that is no option, with the nearest one.
        ConfigError: for a value of the wrong kind, or a soft limit above the hard one.
    """
    options = {name: _checked_value(task_name, name, value) for name, value in given.items()}
    check_limits(task_name, options.get("soft_time_limit"), options.get("time_limit"))
    return options


def check_limits(task_name: str, soft: float | None, hard: float | None) -> None:
    """Refuse limits of which the soft one could never be seen.

    Raises:
        ConfigError: if the soft limit is above the hard one.
    """
    if soft and hard and soft > hard:
        raise ConfigError(f"task {task_name}: soft_time_limit {soft:g} is above time_limit {hard:g}")


def resolved(conf: Settings, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Every option with the value in force: as given, else from its setting, else its default."""
    values: dict[str, Any] = dict(FIXED)
    for name, setting in FROM_SETTINGS.items():
        values[name] = getattr(conf, setting)
    values.update((name, value) for name, value in explicit.items() if value is not None or name in FIXED)
    for name in ("acks_on_failure", "acks_on_timeout"):
        if values[name] is None:
            values[name] = values["acks_on_failure_or_timeout"]
    return values


def annotated(conf: Settings, task_name: str) -> dict[str, Any]:
    """The options `task_annotations` lays over a task: those for "*", then those for its name.

    Raises:
        ConfigError: for anything but options.
    """
    annotations = conf.task_annotations or {}
    found: dict[str, Any] = {}
    for key in ("*", task_name):
        given = annotations.get(key) or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"setting task_annotations: {key!r} must hold a dict of task options")
        try:
            found.update(checked(task_name, given))
        except TypeError as exc:
            raise ConfigError(f"setting task_annotations: {exc}") from None
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say `: did you mean x?` for the nearest known name, or nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def _checked_value(task_name: str, name: str, value: Any) -> Any:
    if name not in KNOWN:
        reason = _NOT_HERE.get("pydantic" if name.startswith("pydantic") else name)
        hint = f": {reason}" if reason else suggestion(name, [*KNOWN, "name", "bind"])
        raise TypeError(f"task {task_name}: there is no option {name!r}{hint}")
    if value is None:
        if name in FIXED and FIXED[name] is not None and name != "max_retries":
            raise ConfigError(f"task {task_name}: option {name} may not be None")
        return None
    if name in _EXCEPTIONS:
        return _exceptions(task_name, name, value)
    kind = KINDS.get(_KINDS.get(name, "any"))
    try:
        return kind.convert(value) if kind else value
    except (TypeError, ValueError, ConfigError) as exc:
        raise ConfigError(f"task {task_name}: option {name} = {value!r}: {exc}") from None


def _exceptions(task_name: str, name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ConfigError(f"task {task_name}: option {name} takes exception classes, not {each!r}")
    return classes
