"""The nouns that cross rooms: a request, what a gate says of it, what became of it, how it is settled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from greenq._speedups import Malformed, Request

__all__ = [
    "Malformed",
    "Outcome",
    "Record",
    "Rejected",
    "Request",
    "Settle",
    "Settlement",
    "State",
    "TaskMessage",
    "Verdict",
    "VerdictKind",
]


class State:
    """Result states as they stand on the wire (wire.md 6.1)."""

    PENDING = "PENDING"
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    RETRY = "RETRY"
    REVOKED = "REVOKED"
    REJECTED = "REJECTED"
    IGNORED = "IGNORED"
    CANCELLED = "CANCELLED"

    READY = frozenset({SUCCESS, FAILURE, REVOKED})
    EXCEPTION = frozenset({RETRY, FAILURE, REVOKED})
    PROPAGATE = frozenset({FAILURE, REVOKED})


class Settle(Enum):
    """How a delivery ends. A delivery is settled exactly once."""

    ACK = "ack"  # done; the broker forgets it
    REQUEUE = "requeue"  # back to the head of its queue, at once
    DEAD = "dead"  # to the dead queue, byte for byte, with a reason
    DELAY = "delay"  # back to the broker, not before `due`


class Settlement(NamedTuple):
    """Any ending of a delivery but a plain ack."""

    tag: str | int
    queue: str
    how: Settle
    due: float = 0.0  # unix seconds; DELAY only
    reason: str = ""  # why it is DEAD; with DELAY: why it was cut short, which makes it a redelivery


class Rejected(NamedTuple):
    """A delivery that could not be decoded into a request."""

    tag: str | int
    epoch: int
    queue: str
    raw: bytes
    error: Malformed


class VerdictKind(Enum):
    """A gate's answer."""

    DROP = "drop"  # never run it; `reason` says why (revoked, expired)
    HOLD = "hold"  # not before `until`
    LIMIT = "limit"  # its bucket is empty; `until` says when to ask again


class Verdict(NamedTuple):
    """Why a request does not pass a gate; a gate returns None when it does."""

    kind: VerdictKind
    reason: str = ""
    until: float = 0.0  # unix seconds for HOLD, monotonic seconds for LIMIT


class Record(NamedTuple):
    """One result to be stored: the encoded meta object and where it goes."""

    task_id: str
    state: str
    payload: bytes  # wire.results.encode_meta(...)
    reply_to: str = ""  # rpc only: the client's queue
    expires: float | None = None  # seconds to keep it; None keeps it for ever


class TaskMessage(NamedTuple):
    """One message ready to be published.

    `body` is the serialized (and perhaps compressed) body before any transport encoding.
    `exchange == ""` means straight to the queue named by `routing_key`.
    `plain` says that headers and properties hold only what was made here: text, numbers, lists, null.
    """

    headers: dict[str, Any]
    body: bytes
    content_type: str
    content_encoding: str
    properties: dict[str, Any]  # correlation_id, reply_to, priority, delivery_mode, expiration
    exchange: str
    routing_key: str
    plain: bool = False


@dataclass(slots=True)
class Outcome:
    """The one terminal outcome of a request: it ran and ended so, or it was given back (CANCELLED)."""

    request: Request
    state: str
    how: Settle = Settle.ACK
    record: Record | None = None
    more_records: list[Record] = field(default_factory=list)  # of later tasks that will never run
    follow_ups: list[TaskMessage] = field(default_factory=list)
    runtime: float = 0.0  # seconds
    value: Any = None  # what the task returned
    result_text: str = ""  # repr of the exception, shortened
    traceback: str = ""
    expected: bool = False  # an exception the task names in `throws`
    due: float = 0.0  # unix seconds; with Settle.DELAY
    reason: str = ""  # with Settle.DEAD, and why it is REVOKED
    signum: int | None = None  # of the command that terminated it
