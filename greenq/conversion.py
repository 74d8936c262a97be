"""Convert what people write for a setting into what the code reads, and hide what nobody should read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from greenq.rates import parse_rate

_ANY_CASE = re.IGNORECASE
MASK = "********"
_SECRET = re.compile("api|token|key|secret|pass|profanities_list|signature|database|beat_dburi", _ANY_CASE)
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^:@/?#\s]*):(?P<password>[^/?#;\s]*)@")
_SECRET_PARAMETER = re.compile(r"(?P<name>[?&][^=&;#]*(?:pass|secret|token|key)[^=&;#]*=)[^&;#]*", _ANY_CASE)
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class Kind(NamedTuple):
    """How to convert one kind of value, and what to call it. `convert` raises TypeError or ValueError."""

    convert: Callable[[Any], Any]
    expected: str


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    raise TypeError("expected true or false (also yes/no, on/off, 1/0)")


def _int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            raise TypeError("expected a whole number") from None
    raise TypeError("expected a whole number")


def _float(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise TypeError("expected a number") from None
    raise TypeError("expected a number")


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    try:
        seconds = _float(value)
    except TypeError:
        raise TypeError("expected a number of seconds or a timedelta") from None
    if not seconds >= 0:
        raise ValueError("expected a number of seconds that is not negative")
    return seconds


def _str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("expected text")


def _list(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    raise TypeError("expected a list")


def _dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError("expected a dict")


def _url(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) for each in value):
        return ";".join(value)
    if isinstance(value, str) and value:
        return value
    raise TypeError("expected a URL, or a list of URLs")


def _rate(value: Any) -> Any:
    parse_rate(value)
    return value


def _delivery_mode(value: Any) -> int:
    modes = {"transient": 1, "persistent": 2, "1": 1, "2": 2}
    if str(value) not in modes:
        raise TypeError("expected 2 or 'persistent', 1 or 'transient'")
    return modes[str(value)]


def _concurrency(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    try:
        number = _int(value)
    except TypeError:
        raise TypeError("expected a whole number or 'auto'") from None
    if number < 0:
        raise ValueError("expected a number that is not negative")
    return number


def _queues(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    raise TypeError("expected a dict of queue names, or a list of names or queues")


def _any(value: Any) -> Any:
    return value


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "any": Kind(_any, "any value"),
        "bool": Kind(_bool, "true or false"),
        "concurrency": Kind(_concurrency, "a whole number or 'auto'"),
        "delivery_mode": Kind(_delivery_mode, "a delivery mode"),
        "dict": Kind(_dict, "a dict"),
        "float": Kind(_float, "a number"),
        "int": Kind(_int, "a whole number"),
        "list": Kind(_list, "a list"),
        "queues": Kind(_queues, "a dict or list of queues"),
        "rate": Kind(_rate, "a rate limit"),
        "seconds": Kind(_seconds, "a number of seconds"),
        "str": Kind(_str, "text"),
        "url": Kind(_url, "a URL"),
    }
)


def mask_url(url: str) -> str:
    """Hide passwords in URLs, several with `;` between them included, and secrets in their parameters."""
    hidden = _CREDENTIALS.sub(r"\g<scheme>\g<user>:**@", url)
    return _SECRET_PARAMETER.sub(r"\g<name>**", hidden)


def masked_value(name: str, value: Any) -> Any:
    """The value of a setting as it may be shown (wire.md 9): hidden by its name, or cleaned of passwords."""
    if isinstance(value, Mapping):
        return {key: masked_value(key, each) if isinstance(key, str) else each for key, each in value.items()}
    if _SECRET.search(name):
        return MASK
    if isinstance(value, str) and "://" in value:
        return mask_url(value)
    if isinstance(value, (list, tuple)):
        return type(value)(masked_value("", each) for each in value)
    return value
