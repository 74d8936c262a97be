"""What a command revokes: read alike by the commands themselves and by who keeps it for workers that are away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from greenq.exceptions import BadArgument
from greenq.wire.control import ControlFrame
from greenq.wire.revoked import LOGGED, LONGEST, Revoked
from greenq.wire.stamps import values_of


def ids_of(task_id: str | Sequence[str]) -> list[str]:
    """The ids of a command.

    Raises:
        BadArgument: one is longer than what is remembered.
    """
    ids = [task_id] if isinstance(task_id, str) else list(task_id)
    if any(len(each) > LONGEST for each in ids):
        raise BadArgument(f"revoke: an id has at most {LONGEST} characters")
    return ids


def stamps_of(headers: Mapping[str, Any] | Sequence[str] | str) -> dict[str, Any]:
    """The stamps of a command: an object of values or lists of them, or "header=value" words.

    Raises:
        BadArgument: a header without a value, or a word without a header.
    """
    if isinstance(headers, Mapping):
        for header, values in headers.items():
            if not values_of(values):
                raise BadArgument(f"revoke_by_stamped_headers: {header!r} needs a value, or a list of them")
        return dict(headers)
    found: dict[str, Any] = {}
    for word in [headers] if isinstance(headers, str) else headers:
        header, equals, value = word.partition("=")
        if not header or not equals:
            raise BadArgument(f"revoke_by_stamped_headers: write header=value, not {word[:100]!r}")
        before = found.get(header)
        found[header] = value if before is None else [*([before] if isinstance(before, str) else before), value]
    return found


def pairs_of(stamps: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same one by one, values as text.

    Raises:
        BadArgument: one is longer than what is remembered.
    """
    pairs = [(header, value) for header, values in stamps.items() for value in values_of(values)]
    if any(len(text) > LONGEST for pair in pairs for text in pair):
        raise BadArgument(f"revoke_by_stamped_headers: a stamp has at most {LONGEST} characters")
    return pairs


def revoked_by(method: str, arguments: Mapping[str, Any]) -> Revoked:
    """What this command revokes wherever it is obeyed; nothing if it is another one, or none that a node obeys."""
    ids, headers = arguments.get("task_id"), arguments.get("headers")
    try:
        if method in ("revoke", "terminate") and _is_text(ids):
            return Revoked(ids=ids_of(ids))
        if method == "revoke_by_stamped_headers" and (_is_text(headers) or _is_text_keyed(headers)):
            return Revoked(stamps=pairs_of(stamps_of(headers)))
    except BadArgument:
        return Revoked()  # each node says so to who asks
    return Revoked()


def to_be_logged(frame: ControlFrame) -> Revoked:
    """What a command that was obeyed here revokes everywhere, and whose sender has not kept it in the broker."""
    if frame.destination or frame.pattern or frame.body.get(LOGGED) is True:
        return Revoked()
    return revoked_by(frame.method, frame.arguments)


def _is_text(value: Any) -> TypeGuard[str | Sequence[str]]:
    several = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(each, str) for each in several)


def _is_text_keyed(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and all(isinstance(each, str) for each in value)
