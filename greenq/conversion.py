"""Convert what people write for a setting into what the code reads, and hide what nobody should read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

from greenq.rates import parse_rate

_ANY_CASE = re.IGNORECASE
MASK = "********"
_SECRET = re.compile(
    "api|token|key|secret|pass|pwd|credential|profanities_list|signature|database|beat_dburi", _ANY_CASE
)
_SECRET_MAPPING = re.compile("secret|passw|credential|token|keys$", _ANY_CASE)
# What stands between a scheme's `://` and an `@`. A password may hold anything, unescaped too, so it ends at the
# last `@` before the next URL: rather too much is hidden than a piece of it is shown.
_CREDENTIALS = re.compile(
    r"(?P<scheme>(?<![\w+.-])[A-Za-z][\w+.-]{0,40}://)(?P<user>[^:@/?#\s]*):(?:(?!://)[^\s])*@"
)
_CREDENTIALS_WITH_SPACES = re.compile(
    r"(?P<scheme>(?<![\w+.-])[A-Za-z][\w+.-]{0,40}://)(?P<user>[^:@/?#\s]*):(?:(?!://).)*@", re.DOTALL
)
_BARE_CREDENTIALS = re.compile(r"^(?P<user>[^:@/\s]*):[^@\s]*@")
_TOKEN = re.compile(r"(?P<scheme>\bhttps?://)[^:@/?#\s]+@", _ANY_CASE)
_HIDDEN_WORDS = "pass|pwd|secret|token|key|credential|signature|sig=|auth"
_SECRET_PARAMETER = re.compile(rf"(?P<name>[?&;#](?=[^=&;#\s]*(?:{_HIDDEN_WORDS}))[^=&;#\s]*=)[^&;#\s]*", _ANY_CASE)
# `password=x`, `Pwd={x};`, `"token": "x"`: the connection strings of databases, and what libraries make of objects.
_ASSIGNMENT = re.compile(
    r"(?P<name>(?:passw(?:or)?d|passphrase|pass|pwd|secret|token|credentials?|(?:api|access|account|shared)[_-]?key)"
    r"[\w-]{0,40}[\"']?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|\{[^}]*\}|[^\s,;&\"'(){}\[\]]+)",
    _ANY_CASE,
)
_PROFILES = ("full", "standard", "read", "off")
_SECRET_LENGTH = 16  # characters
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


def _profile(value: Any) -> str:
    if value in _PROFILES:
        return str(value)
    raise TypeError(f"expected one of {', '.join(_PROFILES)}")


def _keys(value: Any) -> dict[str, str]:
    """Ids of keys and their secrets; as text, for the environment, `id:secret` with commas between."""
    if isinstance(value, str):
        value = dict(part.strip().partition(":")[::2] for part in value.split(",") if part.strip())
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise TypeError("expected a dict of key ids and secrets, or the text 'id:secret,id:secret'")
    if not all(value):
        raise ValueError("a key id may not be empty")
    # Whoever sees one signed command can try secrets for as long as it likes.
    if short := [name for name, secret in value.items() if len(secret) < _SECRET_LENGTH]:
        raise ValueError(f"the secret of key {short[0]!r} has fewer than {_SECRET_LENGTH} characters")
    return dict(value)


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
        "keys": Kind(_keys, "a dict of key ids and secrets"),
        "list": Kind(_list, "a list"),
        "profile": Kind(_profile, "one of full, standard, read, off"),
        "queues": Kind(_queues, "a dict or list of queues"),
        "rate": Kind(_rate, "a rate limit"),
        "seconds": Kind(_seconds, "a number of seconds"),
        "str": Kind(_str, "text"),
        "url": Kind(_url, "a URL"),
    }
)


def mask_url(url: str) -> str:
    """Hide passwords in URLs, several with `;` between them included, and secrets in their parameters."""
    if "://" not in url:
        return _BARE_CREDENTIALS.sub(r"\g<user>:**@", url)
    return _mask_urls(url, _CREDENTIALS_WITH_SPACES)


def mask_urls_in(text: str) -> str:
    """The same for text that may have URLs in it, such as a line of the log."""
    return _mask_urls(text, _CREDENTIALS) if "://" in text else text


def _mask_urls(text: str, credentials: re.Pattern[str]) -> str:
    hidden = credentials.sub(r"\g<scheme>\g<user>:**@", text)
    return _SECRET_PARAMETER.sub(r"\g<name>**", _TOKEN.sub(r"\g<scheme>**@", hidden))


def mask_text(text: str) -> str:
    """Hide passwords in text of any kind: in URLs, and where something secret by its name is set to a value."""
    return _ASSIGNMENT.sub(r"\g<name>**", mask_url(text) if text.count("://") == 1 else mask_urls_in(text))


def scrubbed(text: str, *urls: str) -> str:
    """What a library says of URLs, without their passwords and the pieces it may have taken them to."""
    for url in urls:
        for found in _CREDENTIALS_WITH_SPACES.finditer(url):
            password = found.group()[len(found["scheme"]) + len(found["user"]) + 1 : -1]
            plain = unquote(password)
            pieces = {password, plain, *re.split("[/?#:@]", password), *re.split("[/?#:@]", plain)}
            for piece in sorted(pieces, key=len, reverse=True):
                text = text.replace(piece, "**") if len(piece) > 2 else text
    return mask_text(text)


def masked_value(name: str, value: Any) -> Any:
    """The value of a setting as it may be shown (wire.md 9): hidden by its name, or cleaned of passwords."""
    if isinstance(value, Mapping):
        hidden = bool(_SECRET_MAPPING.search(name))
        return {
            mask_text(key) if isinstance(key, str) else key: _hidden(each)
            if hidden
            else masked_value(key if isinstance(key, str) else "", each)
            for key, each in value.items()
        }
    if _SECRET.search(name):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [masked_value("", each) for each in value] if isinstance(value, list) else _masked_tuple(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    # An object is shown by its text, which may be anything: it stays itself only if there is nothing to hide.
    shown = repr(value)
    cleaned = mask_text(shown)
    return value if cleaned == shown else cleaned


def _masked_tuple(value: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(masked_value("", each) for each in value)


def _hidden(value: Any) -> Any:
    return {key: _hidden(each) for key, each in value.items()} if isinstance(value, Mapping) else MASK
