"""The Redis broker in batches: claims under a lease, in kombu's own layout (spike.md: one script a batch)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable, ConfigError, PublishUncertain
from greenq.model import Settle, Settlement
from greenq.transports.base import Delivery, Post
from greenq.transports.redis.connection import Arg, Wire
from greenq.transports.redis.doorbell import Doorbell, Waker
from greenq.transports.redis.endpoint import Endpoint, parse_endpoint
from greenq.transports.redis.envelopes import WRAPPED, mark_redelivered, parse_entry, priority_of, tail, unwrap
from greenq.transports.redis.keys import Keys, keys_from
from greenq.transports.redis.reclaim import Reclaimer
from greenq.transports.redis.scripts import CLAIM, RECOVER, RENEW, SETTLE

T = TypeVar("T")

MOST = 100  # messages a claim: it blocks Redis about 9 us each, and more than 100 gain nothing
MOST_BYTES = 2_000_000  # a claim above this makes the next ones smaller, so that Redis is not blocked longer
CHUNK = 500  # tags a command that acks or renews
LEASE = 20.0  # seconds
VISIBILITY_TIMEOUT = 3600.0  # seconds, kombu's


class _Asked(NamedTuple):
    """A claim whose answer has not come."""

    series: str
    first: int
    number: int


class RedisStore:
    """A Redis server as `transports.base.Store`, on one raw connection, beside kombu's own workers.

    A tag is `<owner>/<series>-<number>`; the series is new for every instance and after every lost reply.
    `lease` is the silence, in seconds, after which an owner is given up for dead: call `renew` at least every
    `lease / 4`. It is never longer than `visibility_timeout`, by which kombu's workers go. `leased=False`:
    claims are held as kombu's own are, by the visibility timeout alone.
    """

    def __init__(self, endpoint: Endpoint, owner: str, options: Mapping[str, Any], *, leased: bool = True) -> None:
        if leased and not owner:
            raise ConfigError("a Redis store needs an owner: a name no other process has")
        self.owner = owner
        self.keys: Keys = keys_from(options)
        timeout = _seconds(options, "visibility_timeout", VISIBILITY_TIMEOUT)
        self.lease = min(_seconds(options, "lease", LEASE), timeout)
        self._leased = leased
        self._order = str(options.get("queue_order_strategy") or "round_robin")
        if self._order not in ("round_robin", "sorted", "priority"):
            raise ConfigError(f"queue_order_strategy is round_robin, sorted or priority, not {self._order!r}")
        self._wire = Wire(endpoint, protocol=3)
        self._waker = Waker()
        self._bell = Doorbell(self._wire)
        self._reclaimer = Reclaimer(self._wire, self.keys, self.lease, timeout)
        self._series = self._new_series()
        self._number = 0
        self._asked: _Asked | None = None
        self._found: deque[Delivery] = deque()
        self._unsure: frozenset[str] = frozenset()
        self._turn = 0
        self._most = MOST

    def claim(self, queues: Sequence[str], limit: int) -> list[Delivery]:
        if self._asked is not None:
            self._recover_asked()
        if self._found:
            return [self._found.popleft() for _ in range(min(limit, len(self._found)))]
        count = min(limit, self._most)
        if count <= 0 or not queues:
            return []
        turned = self._in_turn(queues)
        keys = self.keys
        first = self._number
        self._asked = _Asked(self._series, first, count)
        self._number += count
        args: list[Arg] = [count, self.owner if self._leased else "", self._series, first]
        args += ["1" if self._order == "round_robin" else "0", self.lease, len(turned), *map(tail, turned)]
        named = [keys.unacked, keys.index, keys.owners, keys.closed, keys.delayed, *keys.bands(turned)]
        with self._watched():
            reply = self._wire.run(CLAIM, named, args)
        self._asked = None
        return self._deliveries(reply, turned, first)

    def wait(self, queues: Sequence[str], timeout: float) -> bool:
        if self._asked is not None or self._found:
            return True
        with self._watched():
            return self._bell.wait(self._wait_keys(queues), timeout, self._waker)

    def interrupt(self) -> None:
        self._waker.wake()

    def arm(self, queues: Sequence[str]) -> tuple[bool, float]:
        """For who polls several sockets: as the start of `wait`. See `Doorbell.arm`, `rung` and `socket`."""
        if self._asked is not None or self._found:
            return True, 0.0
        with self._watched():
            return self._bell.arm(self._wait_keys(queues))

    def rung(self, *, readable: bool = False) -> bool:
        """Whether a list changed since `arm`; `readable` once a poll said so of `socket()`. Never waits."""
        with self._watched():
            return self._bell.rung(readable=readable)

    @property
    def rings(self) -> bool:
        """False where Redis refuses to ring: look again every few milliseconds."""
        return not self._bell.refused

    def socket(self) -> Any:
        """The connection's socket, to be polled only."""
        return self._wire.socket()

    def settle(self, acks: Sequence[str], others: Sequence[Settlement] = ()) -> int:
        """As `Store.settle`; what is not an ack costs a second round trip, for its envelope is read first."""
        tags = [str(tag) for tag in acks]
        read = [str(other.tag) for other in others]
        commands: list[list[Arg]] = []
        for part in _parts(tags, CHUNK):
            # The hash first: cut in between, an index entry without a message is left, which harms nobody.
            commands += [["HDEL", self.keys.unacked, *part], ["ZREM", self.keys.index, *part]]
        acked = len(commands)
        commands += [["HMGET", self.keys.unacked, *part] for part in _parts(read, MOST)]
        if not commands:
            return 0
        unsure, self._unsure = self._unsure, frozenset([*self._unsure, *tags, *read])
        with self._watched():
            replies = self._wire.pipeline(commands)
            gone = len(tags) - sum(replies[:acked:2])
            # The last first: what goes back is pushed to the head, so the first must be pushed last.
            pairs = zip(_parts(others, MOST), replies[acked:], strict=True)
            gone += sum(self._settle_others(part, values) for part, values in reversed(list(pairs)))
        self._unsure = frozenset()
        # Settled by the attempt whose reply was lost: gone from Redis, but not by somebody else's hand.
        mine = len(unsure.intersection([*tags, *read]))
        return max(0, int(gone) - mine)

    def post(self, messages: Sequence[Post]) -> None:
        commands: list[list[Arg]] = []
        for message in messages:
            key = self.keys.ready(message.queue, message.priority)
            if not commands or commands[-1][1] != key:
                commands.append(["LPUSH", key])
            commands[-1].append(message.raw)
        if not commands:
            return
        with self._watched():
            self._wire.connection()  # what fails here was not sent for sure
            try:
                self._wire.pipeline(commands)
            except BrokerUnreachable as exc:
                raise PublishUncertain(f"{exc}; what was being sent may or may not be there") from exc

    def renew(self, tags: Sequence[str]) -> bool:
        keys = (self.keys.index, self.keys.owners, self.keys.closed)
        buried = 0
        with self._watched():
            for part in _parts(tags, CHUNK) or [()]:
                buried += self._wire.run(RENEW, keys, [self.owner, self.lease, *part])
        return not buried

    def reclaim(self) -> int:
        """As `Store.reclaim`, and what any kombu worker has held for longer than the visibility timeout.

        After trouble on this connection it does nothing for half a lease: others had the same trouble and
        must get the time to say that they live.
        """
        with self._watched():
            return self._reclaimer.run()

    def recover(self) -> list[str]:
        found: list[str] = []
        cursor: Any = b"0"
        with self._watched():
            while True:
                cursor, page = self._wire.call("ZSCAN", self.keys.index, cursor, "COUNT", 1000)
                found += [tag.decode(errors="replace") for tag in page[::2]]
                if int(cursor) == 0:
                    break
        # A scan may show a member twice.
        return sorted({tag for tag in found if tag.rpartition("/")[0] == self.owner})

    def length(self, queue: str) -> int:
        with self._watched():
            return sum(self._wire.pipeline([["LLEN", key] for key in self.keys.bands([queue])]))

    def purge(self, queue: str) -> int:
        lists = self.keys.bands([queue])
        commands: list[list[Arg]] = [["MULTI"]]
        for key in lists:
            commands += [["LLEN", key], ["DEL", key]]
        with self._watched():
            return sum(self._wire.pipeline([*commands, ["EXEC"]])[-1][::2])

    def close(self) -> None:
        self._wire.close()
        self._waker.close()

    def _deliveries(self, reply: list[Any], queues: Sequence[str], number: int) -> list[Delivery]:
        found: list[Delivery] = []
        size = 0
        series = self._series
        for queue_number, raws in zip(reply[::2], reply[1::2], strict=True):
            queue = queues[queue_number - 1]
            size += sum(map(len, raws))
            found += [
                Delivery(f"{series}{n:010d}", raw if raw[:13] != WRAPPED else unwrap(raw), queue)
                for n, raw in enumerate(raws, number)
            ]
            number += len(raws)
        if size > MOST_BYTES:
            self._most = max(1, len(found) * MOST_BYTES // (2 * size))
        elif self._most < MOST:
            self._most = min(MOST, self._most * 2)
        return found

    def _recover_asked(self) -> None:
        """Fetch what a claim without an answer took, and shut its series: it may still be on its way."""
        asked = self._asked
        if asked is None:
            return
        tags = [f"{asked.series}{n:010d}" for n in range(asked.first, asked.first + asked.number)]
        with self._watched():
            values = self._wire.run(RECOVER, (self.keys.unacked, self.keys.closed), [asked.series, *tags])
        for tag, value in zip(tags, values, strict=True):
            entry = parse_entry(value) if value is not None else None
            if entry is not None:
                self._found.append(Delivery(tag, entry.raw, entry.routing_key))
        self._series = self._new_series()
        self._number = 0
        self._asked = None

    def _settle_others(self, others: Sequence[Settlement], values: Sequence[bytes | None]) -> int:
        args: list[Arg] = []
        gone = 0
        for other, value in zip(others, values, strict=True):
            entry = parse_entry(value) if value is not None else None
            if entry is None:
                gone += 1
            else:
                args += self._settle_args(other, entry.raw, other.queue or entry.routing_key)
        if not args:
            return gone
        keys = (self.keys.unacked, self.keys.index, self.keys.delayed)
        missing, *refused = self._wire.run(SETTLE, keys, args)
        if refused:
            raise BrokerError(
                f"{self._wire.endpoint}: the key {refused[0].decode(errors='replace')!r} is not a list, so "
                "no message can be put there; rename that key. The message stays claimed"
            )
        return gone + int(missing)

    def _settle_args(self, other: Settlement, raw: bytes, queue: str) -> list[Arg]:
        tag = str(other.tag)
        if other.how is Settle.ACK:
            raise ValueError("an ack goes into the first argument of settle()")
        if other.how is Settle.DEAD:
            about = json.dumps({"reason": other.reason, "tag": tag})[:-1]
            return ["dead", tag, self.keys.dead(queue), raw, about]
        key = self.keys.ready(queue, priority_of(raw))
        if other.how is Settle.REQUEUE:
            return ["requeue", tag, key, mark_redelivered(raw), ""]
        if other.reason:  # it had begun; one that only waits for its time has not
            raw = mark_redelivered(raw)
        name, place = tag.encode(), key.encode()
        return ["delay", tag, key, b"%d %d %b%b%b" % (len(name), len(place), name, place, raw), other.due]

    def _in_turn(self, queues: Sequence[str]) -> list[str]:
        if self._order == "sorted":
            return sorted(queues)
        if self._order == "priority":
            return list(queues)
        turn = self._turn % len(queues)
        self._turn += 1
        return [*queues[turn:], *queues[:turn]]

    def _wait_keys(self, queues: Sequence[str]) -> list[str]:
        return [self.keys.delayed, *self.keys.bands(queues)]

    def _new_series(self) -> str:
        nonce = uuid4().hex
        return f"{self.owner}/{nonce[:16]}-" if self._leased else f"{nonce}."

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (BrokerUnreachable, BrokerPaused):
            self._reclaimer.trouble()
            raise


def open_store(url: str, owner: str, options: Mapping[str, Any]) -> RedisStore:
    """Make a store for the URL; connects at its first use.

    Args:
        url: `redis://`, `rediss://`, `redis+socket:///path?virtual_host=N`, `unix://` (see `parse_endpoint`).
        owner: a name no other process has, now or ever: a restarted process takes a new one.
        options: kombu's `broker_transport_options`, and `lease` (seconds).

    Raises:
        ConfigError: naming the part that cannot be used.
    """
    return RedisStore(parse_endpoint(url, options), owner, options)


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in pieces small enough not to block Redis for longer than a millisecond or two."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    try:
        seconds = default if value is None else float(value)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{name} is a number of seconds, not {value!r}") from exc
    if seconds <= 0:
        raise ConfigError(f"{name} must be above 0, not {seconds}")
    return seconds
