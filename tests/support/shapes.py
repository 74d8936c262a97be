"""What a reply has to look like, and where one does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


class Open(dict[Any, Any]):
    """An object that may have more than these."""


class Each(tuple[Any, Any]):
    """An object of any number of entries: (what a key has to be, what a value has to be)."""

    __slots__ = ()


def misfit(shape: Any, value: Any, where: str = "reply") -> str:
    """Where `value` is not of that shape; "" if it is.

    A shape is a type (a float may be an int, an int is no bool), a pattern for text, a list of one shape, an object
    of shapes, `Each`, a tuple of shapes of which one has to fit, or the value itself.
    """
    if isinstance(shape, Each):
        return _misfit_of_each(shape, value, where)
    if isinstance(shape, tuple):
        return "" if not all(misfit(one, value) for one in shape) else f"{where} fits none of {shape}: {value!r}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list: {value!r}"
        return next(filter(None, (misfit(shape[0], one, f"{where}[{at}]") for at, one in enumerate(value))), "")
    if isinstance(shape, Mapping):
        return _misfit_of_object(shape, value, where)
    return "" if _fits(shape, value) else f"{where} is no {shape}: {value!r}"


def _fits(shape: Any, value: Any) -> bool:
    if shape is object:
        return True
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if isinstance(shape, type):
        wanted = (int, float) if shape is float else shape
        return isinstance(value, wanted) and (shape is bool or not isinstance(value, bool))
    return bool(value == shape)


def _misfit_of_each(shape: Each, value: Any, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is no object: {value!r}"
    keys = (misfit(shape[0], key, f"a key of {where}") for key in value)
    values = (misfit(shape[1], one, f"{where}.{key}") for key, one in value.items())
    return next(filter(None, (*keys, *values)), "")


def _misfit_of_object(shape: Mapping[Any, Any], value: Any, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is no object: {value!r}"
    if missing := sorted(shape.keys() - value.keys()):
        return f"{where} lacks {missing}: {value!r}"
    if not isinstance(shape, Open) and (more := sorted(value.keys() - shape.keys())):
        return f"{where} has {more} besides"
    return next(filter(None, (misfit(one, value[key], f"{where}.{key}") for key, one in shape.items())), "")
