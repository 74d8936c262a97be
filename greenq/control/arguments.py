"""What a command's annotations say: checking values from the wire, reading text typed at the prompt."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_LISTS: tuple[Any, ...] = (list, tuple, Sequence)
_DICTS: tuple[Any, ...] = (dict, Mapping)


class _Missing:
    def __repr__(self) -> str:
        return "required"


MISSING: Any = _Missing()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a command. `default is MISSING` where it has to be given, `keyword` after a `*`.

    `reader` reads what is typed at the prompt for an argument that may be anything on the wire.
    """

    name: str
    kind: Any = Any
    default: Any = MISSING
    keyword: bool = False
    reader: Callable[[str], Any] | None = None

    def read(self, text: str) -> Any:
        """Read what a person typed for it.

        Raises:
            ValueError: when it cannot be read so.
        """
        return read_text(self.kind, text) if self.reader is None else self.reader(text)

    @property
    def required(self) -> bool:
        """Must it be given?"""
        return self.default is MISSING

    @property
    def is_flag(self) -> bool:
        """Is it a plain yes or no?"""
        return self.kind is bool or (_is_union(self.kind) and set(get_args(self.kind)) == {bool, types.NoneType})


def supported(kind: Any) -> bool:
    """Can values of that annotation be checked?"""
    if kind in (Any, None, types.NoneType, bool, int, float, str, *_LISTS, *_DICTS):
        return True
    origin = get_origin(kind)
    if origin is Literal:
        return True
    if _is_union(kind) or origin in (*_LISTS, *_DICTS):
        return all(part is Ellipsis or supported(part) for part in get_args(kind))
    return False


def describe(kind: Any) -> str:
    """Name the annotation as an error message or a help page does."""
    if kind is Any:
        return "anything"
    if kind in (None, types.NoneType):
        return "null"
    if _is_union(kind):
        return " or ".join(describe(part) for part in get_args(kind))
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if origin in _LISTS:
        return "list of " + describe(get_args(kind)[0])
    if kind in _LISTS:
        return "list"
    if _is(kind, _DICTS):
        return f"object of {describe(get_args(kind)[1])}" if get_args(kind) else "object"
    return str(kind.__name__)


def check(kind: Any, value: Any) -> Any:
    """Return the value as the annotation wants it: an integral float for an int, a number for a float.

    Raises:
        TypeError: when it is of another kind. Text is never read as a number here: only a person types that.
    """
    if kind is Any:
        return value
    if _is_union(kind):
        return _first_that_fits(kind, value)
    if _is(kind, _LISTS) and isinstance(value, (list, tuple)):
        part = _part(kind, 0, Any)
        return [check(part, each) for each in value]
    if _is(kind, _DICTS) and isinstance(value, dict):
        part = _part(kind, 1, Any)
        return {str(key): check(part, each) for key, each in value.items()}
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    return _check_scalar(kind, value)


def _check_scalar(kind: Any, value: Any) -> Any:
    if kind in (None, types.NoneType) and value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number and abs(value) <= sys.float_info.max:
        return float(value)
    if kind is int and number and value == value // 1:
        return int(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise TypeError(describe(kind))


def _first_that_fits(kind: Any, value: Any) -> Any:
    for part in get_args(kind):
        try:
            return check(part, value)
        except TypeError:
            continue
    raise TypeError(describe(kind))


def read_text(kind: Any, text: str) -> Any:
    """Read what a person typed for an argument of that kind.

    Raises:
        ValueError: when it cannot be read so; the message names the kind wanted.
    """
    if _is_union(kind):
        # str takes anything, so it is asked last.
        for part in sorted(get_args(kind), key=lambda part: part is str):
            try:
                return read_text(part, text)
            except ValueError:
                continue
        raise ValueError(f"{text!r} is not {describe(kind)}")
    try:
        return _read_scalar(kind, text)
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not {describe(kind)}") from None


def _read_scalar(kind: Any, text: str) -> Any:
    if kind in (int, float):
        return kind(text)
    if _is(kind, _LISTS):
        part = _part(kind, 0, str)
        return [read_text(part, each) for each in text.split(",")]
    if _is(kind, _DICTS):
        return json.loads(text)
    if kind is str or kind is Any:
        return text
    return _words_of(kind)[text if get_origin(kind) is Literal else text.lower()]


def _words_of(kind: Any) -> dict[str, Any]:
    """What may be typed for a kind with few values, and what it means."""
    if kind is bool:
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}
    return {"null": None, "none": None}


def _is(kind: Any, family: tuple[Any, ...]) -> bool:
    return kind in family or get_origin(kind) in family


def _part(kind: Any, index: int, default: Any) -> Any:
    parts = get_args(kind)
    return parts[index] if parts else default


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)
