"""The compiled leaf: header decoding, token bucket, revoked set, timer heap, and a watch over the interpreter lock.

Nothing in it yields, does I/O, reads a clock it was not given (but for the watch), or imports greenq.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

class Malformed(ValueError):
    """A message that cannot be decoded.

    `reason` is one of `exceptions.MessageError`'s codes; `task_id`, `task` and `reply_to` hold what
    could still be read ("" if nothing), so that a failure can be stored where there is an id.
    """

    reason: str
    detail: str
    task_id: str
    task: str
    reply_to: str

    def __init__(
        self, reason: str, detail: str = "", task_id: str = "", task: str = "", reply_to: str = ""
    ) -> None: ...

@final
class Request:
    """One decoded task message: the headers that decide about it, and its body still raw.

    `tag` identifies the delivery to the consumer that made it (a str, or an int on AMQP), `epoch` the
    connection generation it belongs to. Times are unix seconds. A protocol 1 message has `protocol == 1`
    and an empty `name` until `wire.messages.complete_v1` has read its body.
    """

    id: str
    name: str
    shadow: str | None
    queue: str
    tag: str | int
    epoch: int
    protocol: int
    eta: float | None
    expires: float | None
    retries: int
    soft_limit: float | None
    hard_limit: float | None
    ignore_result: bool | None
    root_id: str | None
    parent_id: str | None
    group: str | None
    group_index: int | None
    origin: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    reply_to: str
    correlation_id: str
    priority: int
    redelivered: bool
    stamped: bool  # its header `stamped_headers` names some
    exchange: str
    routing_key: str
    content_type: str
    content_encoding: str
    compression: str | None
    body: bytes | str
    body_encoding: str  # "base64" or ""
    raw: bytes | None  # the whole envelope where the transport has one, else None
    state: str  # "received", "held", "limited", "ready", "running"
    acked: bool  # acknowledged before it ran (early ack)
    received: float  # time.monotonic() at decoding is set by the caller; 0.0 until then
    started: float  # unix time at which a slot took it; 0.0 until then

    @property
    def display_name(self) -> str:
        """`shadow` if one was sent, else `name`: what logs, events and inspect show."""
    @property
    def headers(self) -> dict[str, Any]:
        """All headers as sent; decoded again from `raw` at each access, so that what waits keeps bytes."""
    @property
    def properties(self) -> dict[str, Any]:
        """All properties as sent; as `headers`."""

def decode_envelope(raw: bytes, queue: str, tag: str | int, epoch: int = 0) -> Request:
    """Decode one kombu virtual-transport envelope (wire.md 5.9).

    Raises:
        Malformed: for anything that is not a task message of protocol 1 or 2.
    """

def decode_parts(
    headers: dict[str, Any] | None,
    properties: dict[str, Any],
    content_type: str | None,
    content_encoding: str | None,
    body: bytes | str,
    queue: str,
    tag: str | int,
    epoch: int = 0,
) -> Request:
    """Build a request from a message a transport has taken apart already (AMQP and generic kombu).

    `body` has no transport encoding any more, whatever `properties["body_encoding"]` says. The exchange,
    routing key and redelivered flag are read from `properties["delivery_info"]`.

    Raises:
        Malformed: as `decode_envelope`.
    """

def parse_time(text: str) -> float:
    """Unix seconds of an ISO 8601 moment (YYYY-MM-DD[THH:MM[:SS[.f]][Z|+HH:MM]]); without an offset it is UTC.

    Raises:
        ValueError: not such a moment, or outside the years 1 to 9999 once in UTC.
    """

def load_json(data: bytes) -> Any:
    """Decode JSON as kombu does, typed values (`{"__type__": ..., "__value__": ...}`) included.

    Raises:
        ValueError: nested deeper than 128 levels.
        Exception: of many kinds; the text is not JSON, or a typed value in it is none.
    """

def too_deep(data: bytes, limit: int = 128) -> bool:
    """Say whether JSON text nests arrays and objects deeper than `limit`."""

def plain_json(value: object) -> str | None:
    """JSON text of a value made of None, bool, int, finite float, str, list, tuple and dict with str keys only.

    The text is what `json.dumps` gives, default separators and ASCII only. Anything else (other types,
    subclasses, NaN, deep nesting) gives None: it is for kombu's encoder, which has hooks for it.
    """

@final
class TokenBucket:
    """A rate: `rate` tokens a second, at most `capacity` saved up. `now` is any monotonic clock in seconds."""

    rate: float
    capacity: float
    def __init__(self, rate: float, capacity: float = 1.0) -> None: ...
    def can_consume(self, now: float, tokens: float = 1.0) -> bool:
        """Take the tokens if they are there."""
    def expected_time(self, now: float, tokens: float = 1.0) -> float:
        """Seconds until that many tokens are there; 0.0 if they are, infinity if they never will be."""

@final
class RevokedSet:
    """A bounded set of task ids that forgets after `ttl` seconds, oldest first; 38 bytes a UUID, all told.

    Safe to use from several threads: every method is one step under the interpreter lock.
    """

    @property
    def maxlen(self) -> int: ...
    @property
    def ttl(self) -> float: ...
    def __init__(self, maxlen: int = 50_000, ttl: float = 10_800.0) -> None: ...
    def add(self, task_id: str, now: float) -> None: ...
    def discard(self, task_id: str) -> None: ...
    def contains(self, task_id: str, now: float) -> bool: ...
    def purge(self, now: float) -> None: ...
    def ids(self) -> list[str]:
        """Oldest first."""
    def items(self) -> list[tuple[str, float]]:
        """Each id with the time it was added at, oldest first."""
    def update(self, ids: Iterable[str], now: float) -> None: ...
    def __len__(self) -> int: ...

@final
class Timer:
    """One entry of a TimerHeap."""

    @property
    def when(self) -> float: ...
    @property
    def payload(self) -> Any:
        """What was added; None once cancelled."""
    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None:
        """Take the deadline back and let go of the payload; cancelling twice, or too late, is legal."""

@final
class TimerHeap:
    """Deadlines in order; cancelling is lazy and O(1). One owner; not for two threads at once."""

    def add(self, when: float, payload: Any) -> Timer:
        """Add a deadline, on whatever clock `pop_due` is asked with; equal deadlines keep their order."""
    def next_due(self) -> float | None:
        """The earliest live deadline, or None."""
    def pop_due(self, now: float) -> list[Timer]:
        """Remove and return what is due, earliest first."""
    def live(self) -> list[Timer]:
        """A snapshot of live entries, in no order."""
    def __len__(self) -> int:
        """Live entries."""

@final
class HoldWatch:
    """Notices that nobody has had the interpreter lock for `limit` seconds, and looks who kept it.

    `over(seconds)` is then called in the main thread, once for each time, where the C code returns to Python: its
    caller's frame is the one that waited. It may neither wait nor raise. A process that stood still as a whole
    (SIGSTOP, a suspended machine) is no such case.
    """

    def __init__(self, limit: float, over: Callable[[float], object]) -> None: ...
    def feed(self) -> None:
        """Say that the lock goes round: another thread calls it well within `limit`, again and again."""
    def serve(self) -> None:
        """Watch, until `stop`; in a native thread of its own, which needs no lock meanwhile."""
    def stop(self) -> None:
        """Let `serve` return, within a tenth of a second."""
