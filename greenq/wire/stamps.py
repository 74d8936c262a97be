"""Stamps: values that a sender's canvas put on a message under header names of its own (wire.md 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from greenq.model import Request


def stamps_of(request: Request) -> Iterator[tuple[str, str]]:
    """The stamps of a request as (header, text of the value), a list's values one by one. Reads the headers again.

    Celery's worker looks only at the stamps that `stamped_headers` names, and so does this.
    """
    headers = request.headers
    stamps = headers.get("stamps")
    if not isinstance(stamps, Mapping):
        return
    for name in headers.get("stamped_headers") or ():
        if isinstance(name, str):
            for value in values_of(stamps.get(name)):
                yield name, value


def values_of(value: Any) -> list[str]:
    """The text of one value or of each in a list; nothing for null and for what is no plain value."""
    several = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    return [str(each) for each in several if isinstance(each, (str, int, float))]
