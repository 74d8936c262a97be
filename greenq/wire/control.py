"""What bytes mean on the control plane: names of exchanges and queues, commands, replies (wire.md 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from greenq.exceptions import ControlError

CLOCK_MAX = 2**53  # beyond it a double, which is all some peers have, no longer counts
PATTERN_MAX = 255  # characters of a node pattern


class BadFrame(ControlError):
    """A command frame, or an entry of the log of revokes, that is not one; it is dropped and counted.

    `kind` is one of: undecodable, too_large, expired, not_an_object, method, arguments, destination, pattern,
    matcher, reply_to, ticket; and for what is well formed, but not signed as it has to be (wire.signing): unsigned,
    signature_shape, signature_key, signature_wrong, signature_time, replayed. Of the events of elections, which are
    dropped and counted in the same way: undecodable, too_large, not_an_object, event, full. Of an entry
    (wire.revoked): log_shape, log_unsigned, log_signature, log_time.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def command_exchange(namespace: str) -> str:
    """Name the fanout exchange of commands; `namespace` is the setting `control_exchange`."""
    return f"{namespace}.pidbox"


def reply_exchange(namespace: str) -> str:
    """Name the direct exchange of replies."""
    return f"reply.{namespace}.pidbox"


def node_queue(hostname: str, namespace: str) -> str:
    """Name the mailbox queue of a node."""
    return f"{hostname}.{namespace}.pidbox"


def reply_queue(key: str, namespace: str) -> str:
    """Name the reply queue that is bound with routing key `key`."""
    return f"{key}.{reply_exchange(namespace)}"


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """One command as it came in, checked for shape. `reply_key == ""`: nobody waits for an answer.

    `body` is what it was read from, as a signature covers it.
    """

    method: str
    arguments: dict[str, Any]
    destination: tuple[str, ...]
    pattern: str
    ticket: str
    reply_key: str
    clock: int
    body: Mapping[str, Any]

    def is_for(self, hostname: str) -> bool:
        """Is that node asked? By name if there is a destination, else by glob, else always."""
        if self.destination:
            return hostname in self.destination
        return not self.pattern or fnmatchcase(hostname, self.pattern)


def read_frame(body: object, headers: object, namespace: str) -> ControlFrame:
    """Check a decoded frame and its headers.

    Replies are only ever sent to `reply_exchange(namespace)`: a frame that names another exchange could turn
    every node into a writer of somebody's task queue, so it is refused as a whole.

    Raises:
        BadFrame: with the kind of fault.
    """
    if not isinstance(body, dict):
        raise BadFrame("not_an_object", type(body).__name__)
    method = body.get("method")
    if not isinstance(method, str) or not method:
        raise BadFrame("method", "missing" if method is None else type(method).__name__)
    arguments = body.get("arguments")
    if arguments is not None and not (isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)):
        raise BadFrame("arguments", type(arguments).__name__)
    destination = _destination(body.get("destination"))
    return ControlFrame(
        method=method,
        arguments=arguments or {},
        destination=destination,
        pattern="" if destination else _pattern(body.get("pattern"), body.get("matcher")),
        ticket=_ticket(body.get("ticket")),
        reply_key=_reply_key(body.get("reply_to"), namespace),
        clock=read_clock(headers.get("clock") if isinstance(headers, Mapping) else None),
        body=body,
    )


def _destination(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, (list, tuple)) and all(isinstance(node, str) for node in value):
        return tuple(value)
    raise BadFrame("destination", type(value).__name__)


def _pattern(pattern: object, matcher: object) -> str:
    # Either one alone means "everybody", as for Celery's nodes.
    if not pattern or not matcher:
        return ""
    if not isinstance(pattern, str) or len(pattern) > PATTERN_MAX:
        raise BadFrame("pattern", f"{type(pattern).__name__}, or longer than {PATTERN_MAX}")
    if matcher != "glob":
        # One regular expression built to backtrack would hold the control thread for as long as it likes.
        raise BadFrame("matcher", "only glob patterns are matched here")
    return pattern


def _ticket(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadFrame("ticket", type(value).__name__)
    return value


def _reply_key(value: object, namespace: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict) or value.get("exchange") != reply_exchange(namespace):
        raise BadFrame("reply_to", f"replies go to {reply_exchange(namespace)} only")
    key = value.get("routing_key")
    if not isinstance(key, str) or not key:
        raise BadFrame("reply_to", "no routing key")
    return key


def read_clock(value: object) -> int:
    """The sender's logical clock, or 0 if it is missing or makes no sense."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= CLOCK_MAX:
        return value
    return 0


def read_expires(value: object) -> float:
    """The moment a command expires (unix seconds), or 0 if it says none or makes no sense."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= CLOCK_MAX:
        return float(value)
    return 0.0


def command_body(
    method: str,
    arguments: Mapping[str, Any],
    *,
    destination: Sequence[str] | None = None,
    pattern: str | None = None,
    matcher: str | None = None,
) -> dict[str, Any]:
    """The body of a command; `with_reply` adds where the answer goes."""
    return {
        "method": method,
        "arguments": dict(arguments),
        "destination": list(destination) if destination else None,
        "pattern": pattern,
        "matcher": matcher,
    }


def with_reply(body: Mapping[str, Any], ticket: str, key: str, namespace: str) -> dict[str, Any]:
    """The same command, asking for an answer under `ticket` to the reply queue bound with `key`."""
    return {**body, "ticket": ticket, "reply_to": {"exchange": reply_exchange(namespace), "routing_key": key}}


class LogicalClock:
    """A Lamport clock, shared by everything that sends or reads messages in one process.

    No lock: a race between two threads loses a tick, which orders nothing that was not concurrent anyway.
    """

    __slots__ = ("value",)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def forward(self) -> int:
        """Tick, and return the new time."""
        self.value += 1
        return self.value

    def adjust(self, other: int) -> int:
        """Move past a time seen in a message, and return the new time."""
        self.value = max(self.value, other) + 1
        return self.value
