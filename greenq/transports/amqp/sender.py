"""Publish to RabbitMQ with confirms: a batch is written in one piece, its confirms are awaited together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from amqp.exceptions import NotFound

from greenq.exceptions import BrokerPaused, ConfigError, MalformedMessage
from greenq.model import TaskMessage
from greenq.transports.amqp.connection import LOST, connect
from greenq.transports.amqp.frames import publish_frames
from greenq.transports.amqp.tables import FrameError
from greenq.transports.link import LinkOptions, Receipt

T = TypeVar("T")

_PIECE = 1 << 18  # bytes a write, and about what is kept when the broker takes none


class AmqpSender:
    """A Sender to RabbitMQ over one channel in confirm mode."""

    def __init__(self, url: str, options: LinkOptions) -> None:
        # No heartbeat: a producer may do nothing for hours, and nobody would beat for it.
        self._connection = connect(url, options._replace(heartbeat=0))
        self._blocked = False
        self._sent = 0  # on this channel; the broker numbers confirms from 1
        self._waiting: dict[int, TaskMessage] = {}
        self._refused: list[TaskMessage] = []
        self._unroutable: list[TaskMessage] = []
        self._connection.on_blocked = self._on_blocked
        self._connection.on_unblocked = self._on_unblocked
        try:
            self._channel = self._open()
        except LOST as exc:
            self._connection.collect()
            raise self._connection.lost(exc) from exc

    def _open(self) -> Any:
        channel = self._connection.channel()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        channel.confirm_select()
        return channel

    def _guarded(self, call: Callable[..., T], *args: Any) -> T:
        try:
            return call(*args)
        except LOST as exc:
            raise self._connection.lost(exc) from exc

    def ready(self, timeout: float) -> None:
        """See Sender."""
        connection = self._connection
        until = time.monotonic() + timeout
        self._guarded(connection.drain)
        while self._blocked:
            left = until - time.monotonic()
            if left <= 0:
                raise BrokerPaused("RabbitMQ takes no messages now: an alarm for memory or disk space is on")
            self._guarded(connection.pause, left)
            self._guarded(connection.drain)

    def declare(self, queue: Any) -> None:
        """See Sender."""
        self._connection.declare(queue)

    def require(self, exchange: str) -> None:
        """See Sender."""
        try:
            with self._connection.channel() as channel:
                channel.exchange_declare(exchange, "direct", passive=True)
        except NotFound as exc:
            raise ConfigError(
                f"there is no exchange {exchange!r}: name it in task_queues, or declare it in the broker"
            ) from exc
        except LOST as exc:
            raise self._connection.lost(exc) from exc

    def prepare(self, message: TaskMessage, *, mandatory: bool) -> bytes:
        """See Sender."""
        properties = {
            **message.properties,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": message.headers,
        }
        try:
            return publish_frames(
                self._channel.channel_id,
                (message.exchange, message.routing_key),
                properties,
                message.body,
                mandatory=mandatory,
                frame_max=self._connection.frame_max,
            )
        except FrameError as exc:
            raise MalformedMessage("bad_header", str(exc)) from exc

    def send(self, messages: Sequence[tuple[TaskMessage, bytes]], timeout: float) -> Receipt:
        """See Sender. What is still unknown when time is up may be confirmed later, and is then forgotten."""
        until = time.monotonic() + timeout
        self._refused, self._unroutable = [], []
        first = self._sent + 1
        for message, _ in messages:
            self._sent += 1
            self._waiting[self._sent] = message
        cause: Exception | None = None
        try:
            self._write([frames for _, frames in messages], until)
            self._await(first, until)
        except LOST as exc:
            cause = self._connection.lost(exc)
        unknown = [message for number, message in self._waiting.items() if number >= first]
        return Receipt(self._unroutable, self._refused, unknown, cause)

    def _write(self, frames: Sequence[bytes], until: float) -> None:
        piece: list[bytes] = []
        size = 0
        for frame in frames:
            piece.append(frame)
            size += len(frame)
            if size >= _PIECE:
                self._put(b"".join(piece), until)
                piece, size = [], 0
        self._put(b"".join(piece), until)

    def _put(self, piece: bytes, until: float) -> None:
        connection = self._connection
        connection.send(piece)
        while connection.wire.pending > _PIECE:
            connection.drain()  # confirms: a broker that cannot write them would stop reading
            self._pause(until)

    def _await(self, first: int, until: float) -> None:
        # Confirms come in any order, the numbers are in order: the last one left tells.
        while self._waiting and next(reversed(self._waiting)) >= first:
            self._pause(until)
            self._connection.drain()

    def _pause(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the broker has not confirmed in time")
        self._connection.pause(left)

    def _on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001  (py-amqp calls it so)
        self._settle(tag, multiple)

    def _on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001  (py-amqp calls it so)
        self._refused += self._settle(tag, multiple)

    def _settle(self, tag: int, multiple: bool) -> list[TaskMessage]:  # noqa: FBT001  (passed on)
        numbers = takewhile(lambda number: number <= tag, self._waiting) if multiple else (tag,)
        # A number not waited for: a confirm that came after its sender had given up.
        return [self._waiting.pop(number) for number in tuple(numbers) if number in self._waiting]

    def _on_return(self, _: Exception, exchange: str, routing_key: str, returned: Any) -> None:
        """A Return comes before the confirm of its message and says not which one it is; its id does."""
        task_id = returned.properties.get("correlation_id")
        for message in self._waiting.values():
            if (
                message.properties.get("correlation_id") == task_id
                and message.routing_key == routing_key
                and message.exchange == exchange
                and not any(message is other for other in self._unroutable)
            ):
                self._unroutable.append(message)
                return

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    @property
    def blocked(self) -> bool:
        """Whether the broker has said that it reads nothing more from this connection for now."""
        return self._blocked

    def purge(self, queue: str) -> int:
        """See Sender."""
        return self._counted("queue_purge", queue)

    def length(self, queue: str) -> int:
        """See Sender."""
        return self._counted("queue_declare", queue, passive=True)

    def _counted(self, method: str, queue: str, **options: Any) -> int:
        try:
            with self._connection.channel() as channel:
                found = getattr(channel, method)(queue, **options)
        except NotFound:
            return 0
        except LOST as exc:
            raise self._connection.lost(exc) from exc
        return int(getattr(found, "message_count", found))

    def close(self) -> None:
        """See Sender."""
        self._connection.finish()
