"""Hold one application's settings: checked and converted when set, with a source for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from greenq.conversion import KINDS, masked_value
from greenq.environment import ALWAYS_ASKED, mistyped, settings_in, value_of, variable_in
from greenq.exceptions import ConfigError, UnknownSetting
from greenq.settings import OTHER_STORES, TABLE, Setting, Status

logger = logging.getLogger(__name__)

# Names of Celery 3 whose new name is not the old one without its prefix.
_RENAMED = MappingProxyType(
    {
        "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
        "CELERY_MESSAGE_COMPRESSION": "task_compression",
        "CELERY_REPR_MAXLEVELS": "task_repr_maxlevels",
        "CELERY_SEND_EVENTS": "worker_send_task_events",
        "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
        "CELERY_STORE_EAGER_RESULT": "task_store_eager_result",
        "CELERY_TASK_RESULT_EXPIRES": "result_expires",
        "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    }
)
_FAILOVER = "fail-over is not supported yet"
_PREFIXES = (
    ("CELERYBEAT_", ("beat_",)),
    ("CELERYD_", ("", "task_", "worker_")),
    ("CELERY_", ("", "task_", "worker_", "result_")),
    ("", ("",)),
)


class Settings:
    """All settings of one application, as attributes and as items.

    A value is checked and converted when it is set; `update` reports everything wrong with its argument in
    one error and then changes nothing. `warnings` collects, in order, what was accepted without effect.
    `on_change` is called after every change.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        state = self.__dict__
        state["_environ"] = environ = os.environ if environ is None else environ
        # Kept out of plain sight, so that reading them asks the environment.
        state["_overridden"] = set(settings_in(environ) | ALWAYS_ASKED)
        state["_sources"] = {}
        state["warnings"] = []
        state["on_change"] = None
        for row in TABLE.values():
            default = row.default
            state[self._place(row.name)] = dict(default) if isinstance(default, dict) else default

    def source(self, name: str) -> str:
        """Say where a value comes from: "default", "environment variable X", or what `update` was told."""
        if name in self._overridden and (variable := variable_in(self._environ, name)):
            return f"environment variable {variable}"
        found: str = self._sources.get(name, "default")
        return found

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_overridden", ()):
            variable = variable_in(self._environ, name)
            return value_of(name, variable, self._environ[variable]) if variable else self.__dict__[self._place(name)]
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(_unknown(name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "on_change":
            self.__dict__[name] = value
        else:
            self.update({name: value})

    def __getitem__(self, name: str) -> Any:
        if name not in TABLE:
            raise UnknownSetting(_unknown(name))
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __contains__(self, name: object) -> bool:
        return name in TABLE

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *TABLE]

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where it is None."""
        value = self[name]
        return default if value is None else value

    def is_set(self, name: str) -> bool:
        """Whether somebody gave the setting a value, even its default."""
        return self.source(name) != "default"

    def update(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        source: str = "app.conf",
        over_environment: bool = False,
        **values: Any,
    ) -> None:
        """Set several values, all or none. The environment is stronger, unless it is to be overruled.

        Old upper-case names of Celery are taken under their new name, with a warning.

        Raises:
            UnknownSetting: when the only mistakes are names; each with the nearest known one.
            ConfigError: when values are wrong too; the message names setting, value, kind and source.
        """
        self._apply({**(mapping or {}), **values}, source, over_environment=over_environment)

    def check_environment(self) -> None:
        """Read every setting that the environment gives, and warn about variables that are nearly one.

        Raises:
            ConfigError: naming all that cannot be read.
        """
        wrong = []
        for name in sorted(self._overridden):
            try:
                value = getattr(self, name)
            except ConfigError as exc:
                wrong.append(str(exc))
                continue
            if self.source(name).startswith("environment") and (note := _note(TABLE[name], value, self.source(name))):
                self._warn([note])
        self._warn(mistyped(self._environ))
        if wrong:
            raise ConfigError("; ".join(wrong))

    def from_object(self, obj: object, *, namespace: str | None = None, source: str | None = None) -> None:
        """Take the settings out of a mapping, a module, a class or any other object.

        With a namespace only the names that begin with it count: `CELERY_TASK_SERIALIZER` for
        `task_serializer` and namespace "CELERY". Without one, every public lower-case name of an object must
        be a setting; modules, classes and functions in it are passed over.

        Raises:
            ConfigError: as `update`.
        """
        name = getattr(obj, "__name__", type(obj).__name__)
        source = source or (f"module {name}" if isinstance(obj, ModuleType) else name)
        if isinstance(obj, Mapping):
            found = dict(obj)
        else:
            found = {key: getattr(obj, key) for key in dir(obj) if not key.startswith("_")}
        if namespace:
            prefix = namespace.rstrip("_") + "_"
            taken = {key[len(prefix) :].lower(): found[key] for key in found if key.startswith(prefix)}
        elif isinstance(obj, Mapping):
            taken = found
        else:
            taken = {key: value for key, value in found.items() if _is_setting(key, value)}
        self._apply(taken, source)

    def copy(self, **changes: Any) -> Settings:
        """A second, independent Settings with some values changed; nothing is warned about twice."""
        twin = Settings(self._environ)
        state = twin.__dict__
        state["_overridden"] = set(self._overridden)
        for name in TABLE:
            value = self.__dict__[self._place(name)]
            state.pop(name, None)
            state[self._place(name)] = dict(value) if isinstance(value, dict) else value
        state["_sources"] = dict(self._sources)
        twin.update(changes)
        return twin

    def as_dict(self) -> dict[str, Any]:
        """Every setting with its value in force."""
        return {name: getattr(self, name) for name in TABLE}

    def masked(self) -> dict[str, Any]:
        """As `as_dict`, with secrets replaced by `********` and passwords in URLs hidden (wire.md 9)."""
        return {name: masked_value(name, value) for name, value in self.as_dict().items()}

    def __repr__(self) -> str:
        changed = {name: masked_value(name, getattr(self, name)) for name in TABLE if self.is_set(name)}
        return f"<Settings {changed!r}>"

    def _apply(self, values: Mapping[str, Any], source: str, *, over_environment: bool = False) -> None:
        good: dict[str, Any] = {}
        unknown: list[str] = []
        wrong: list[str] = []
        notes: list[str] = []
        for given, value in values.items():
            name = _current_name(given, notes)
            row = TABLE.get(name)
            if row is None:
                if name.startswith(OTHER_STORES):
                    notes.append(f"setting {name} ({source}) is not supported: results go to redis, sqlite or rpc")
                else:
                    unknown.append(f"{_unknown(given)} ({source})")
                continue
            try:
                good[name] = _converted(row, value)
            except (TypeError, ValueError, ConfigError) as exc:
                shown = masked_value(name, value)
                wrong.append(f"setting {name} = {shown!r} ({source}): {exc}")
                continue
            if note := _note(row, good[name], source):
                notes.append(note)
        if wrong or unknown:
            raise (ConfigError if wrong else UnknownSetting)("; ".join((*unknown, *wrong)))
        if over_environment:
            self._overrule(good)
        self.__dict__.update({self._place(name): value for name, value in good.items()})
        self._sources.update(dict.fromkeys(good, source))
        self._warn(notes)
        on_change: Callable[[], object] | None = self.__dict__["on_change"]
        if good and on_change is not None:
            on_change()

    def _place(self, name: str) -> str:
        return f"_{name}" if name in self._overridden else name

    def _overrule(self, names: Iterable[str]) -> None:
        for name in self._overridden.intersection(names):
            self._overridden.discard(name)
            self.__dict__[name] = self.__dict__.pop(f"_{name}")

    def _warn(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self.warnings:
                self.warnings.append(note)
                logger.warning("%s", note)


def _converted(row: Setting, value: Any) -> Any:
    if value is None:
        if row.default is None or row.name in _NONE_MEANS_NEVER:
            return None
        expected = KINDS[row.kind].expected
        raise TypeError(f"expected {expected}, not None")
    return KINDS[row.kind].convert(value)


# None is Celery's "no limit" for these, though their default is a number.
_NONE_MEANS_NEVER = frozenset(
    {
        "broker_connection_max_retries",
        "broker_connection_timeout",
        "broker_heartbeat",
        "broker_pool_limit",
        "result_expires",
    }
)


def _note(row: Setting, value: Any, source: str) -> str | None:
    if row.status is Status.MEANINGLESS:
        return f"setting {row.name} ({source}) has no meaning here: {row.reason}"
    if row.status is Status.UNSUPPORTED and value != row.default:
        return f"setting {row.name} ({source}) is not supported yet: {row.reason}"
    if row.name == "broker_url" and value is not None and ";" in value:
        return f"setting broker_url ({source}) names several brokers: only the first is used, {_FAILOVER}"
    return None


def _is_setting(key: str, value: Any) -> bool:
    """Whether a public attribute of a configuration module can only be meant as a setting."""
    if isinstance(value, (ModuleType, FunctionType, type)):
        return key in TABLE
    if key.islower():
        return True
    # Constants of the user's own are in upper case too; Celery's old names are known by their beginning.
    return key.isupper() and (key.startswith(("CELERY", "BROKER_")) or _new_name(key) is not None)


def _current_name(given: str, notes: list[str]) -> str:
    if given in TABLE or not given.isupper():
        return given
    name = _new_name(given)
    if name is None:
        return given
    notes.append(f"setting {given} is Celery's old name for {name}: write {name}")
    return name


def _new_name(old: str) -> str | None:
    """The lower-case name of one of Celery 3's upper-case settings."""
    if old in _RENAMED:
        return _RENAMED[old]
    for prefix, new_prefixes in _PREFIXES:
        if old.startswith(prefix):
            stem = old[len(prefix) :].lower()
            for new in new_prefixes:
                if new + stem in TABLE:
                    return new + stem
    return None


def _unknown(name: str) -> str:
    near = get_close_matches(name.lower(), TABLE, n=1, cutoff=0.6)
    hint = f": did you mean {near[0]}?" if near else "; `greenq.settings.TABLE` lists them all"
    return f"there is no setting {name!r}{hint}"
