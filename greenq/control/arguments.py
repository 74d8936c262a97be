"""What a command's annotations say: checking values that came over the wire, reading text typed at the prompt."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
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
    """One argument of a command. `default is MISSING` where it has to be given."""

    name: str
    kind: Any = Any
    default: Any = MISSING

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
    if kind in _DICTS or origin in _DICTS:
        return "object"
    return str(kind.__name__)


def check(kind: Any, value: Any) -> Any:
    """Return the value as the annotation wants it: an integral float for an int, a number for a float.

    Raises:
        TypeError: when it is of another kind. Text is never read as a number here: only a person types that.
    """
    if kind is Any:
        return value
    if kind in (None, types.NoneType):
        if value is None:
            return None
    elif _is_union(kind):
        return _first_that_fits(kind, value)
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif kind in _LISTS or get_origin(kind) in _LISTS:
        if isinstance(value, (list, tuple)):
            part = get_args(kind)[0] if get_args(kind) else Any
            return [check(part, each) for each in value]
    elif kind in _DICTS or get_origin(kind) in _DICTS:
        if isinstance(value, dict):
            part = get_args(kind)[1] if get_args(kind) else Any
            return {str(key): check(part, each) for key, each in value.items()}
    else:
        return _check_scalar(kind, value)
    raise TypeError(describe(kind))


def _check_scalar(kind: Any, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number:
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
    except ValueError:
        raise ValueError(f"{text!r} is not {describe(kind)}") from None


def _read_scalar(kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if kind in (int, float):
        return kind(text)
    if kind in (None, types.NoneType):
        if text.lower() not in {"null", "none"}:
            raise ValueError
        return None
    if kind in _LISTS or get_origin(kind) in _LISTS:
        part = get_args(kind)[0] if get_args(kind) else str
        return [read_text(part, each) for each in text.split(",")]
    if kind in _DICTS or get_origin(kind) in _DICTS:
        return json.loads(text)
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
        raise ValueError
    return text


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)
