"""Texts of values for people: bounded in length, depth and work, whatever the value does when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

LIMIT = 1024  # characters, Celery's for argsrepr
LEVELS = 3  # Celery's task_repr_maxlevels

_FEW = 8  # small items fit for sure
_SIMPLE = (int, float, bool, type(None))
_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def safe_repr(value: Any, limit: int = LIMIT, levels: int = LEVELS) -> str:
    """What `repr` gives for small plain values; cut to `limit` characters, `...` below `levels`.

    Never raises, and looks at no more of a large value than fits.
    """
    if not value and type(value) in _BRACKETS and not isinstance(value, (set, frozenset)):
        return repr(value)
    if type(value) in (tuple, list) and len(value) <= _FEW and all(map(_is_small, value)):
        text = repr(value)
        if len(text) <= limit:
            return text
    parts: list[str] = []
    left = limit
    for part in _parts(value, levels, limit):
        left -= len(part)
        parts.append(part)
        if left < 0:
            text = "".join(parts)
            return text[: max(limit - 3, 0)] + "..."
    return "".join(parts)


def _is_small(item: Any) -> bool:
    """A number or text whose `repr` is short and cannot fail."""
    kind = type(item)
    if kind is int:
        return bool(-(1 << 63) < item < 1 << 63)
    return len(item) <= 64 if kind is str else kind in _SIMPLE


def _parts(value: Any, levels: int, limit: int) -> Iterator[str]:
    kind = type(value)
    if kind is str or kind is bytes:
        # One more than fits, so that the caller sees that it does not.
        yield repr(value[: limit + 1])
    elif kind in _SIMPLE or kind not in _BRACKETS or not value:
        yield _ask(value, limit)
    elif levels <= 0:
        yield "...".join(_BRACKETS[kind])
    else:
        opening, closing = _BRACKETS[kind]
        yield opening
        # Each item takes at least three characters ("1, "), so more than this cannot be shown.
        items: Iterable[Any] = islice(value.items() if kind is dict else value, limit // 3 + 1)
        for position, item in enumerate(items):
            if position:
                yield ", "
            if kind is dict:
                yield from _parts(item[0], levels - 1, limit)
                yield ": "
                yield from _parts(item[1], levels - 1, limit)
            else:
                yield from _parts(item, levels - 1, limit)
        yield ",)" if kind is tuple and len(value) == 1 else closing


def _ask(value: Any, limit: int) -> str:
    try:
        return repr(value)[: limit + 1]
    except Exception as exc:  # noqa: BLE001
        # Somebody else's __repr__, and it may do anything; a text is wanted, not its bugs.
        return f"<unprintable {type(value).__name__}: {type(exc).__name__}>"


def shortened(value: object, show: Callable[[object], str] = repr) -> str:
    """A text for people, bounded, whatever the object's own repr does, leaving the process included."""
    try:
        text = show(value)
    except BaseException as broken:  # noqa: BLE001
        text = f"<{type(value).__name__}, whose {show.__name__} raises {type(broken).__name__}>"
    return encodable(text if len(text) <= LIMIT else text[: LIMIT - 3] + "...")


def encodable(text: str) -> str:
    """Half a surrogate pair in a text would stop the encoder and the log alike."""
    return text.encode("utf-8", "backslashreplace").decode()
