"""The control plane's mailboxes over any kombu transport: a node's for commands, a client's for replies.

Both are Celery's `pidbox` on the wire (wire.md 4). An instance owns one connection and has one owner.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import kombu

from greenq.broker.mailbox_link import MailboxLink
from greenq.broker.receiving import SUBSCRIBE
from greenq.broker.revoked_log import RevokeLog
from greenq.broker.stores import keeps_revoked, scheme_of
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable
from greenq.wire.control import (
    BadFrame,
    ControlFrame,
    LogicalClock,
    node_queue,
    read_clock,
    read_expires,
    read_frame,
    reply_queue,
)
from greenq.wire.revoked import Revoked
from greenq.wire.signing import WINDOW, Claim, signed

logger = logging.getLogger(__name__)

# Bytes of a frame; as many ids to revoke as a node remembers fit twice. A larger one would hold up every task
# while it is decoded.
_MOST_BYTES = 4 * 2**20
# Seconds of reading without a pause after which a command may have waited here for longer than its sender does.
# Before that an expired one only says that two clocks differ.
_BEHIND = 0.5
_LOOK = 0.001  # seconds in which a read sees whether there is anything

OnBadFrame = Callable[[BadFrame], None]


class NodeMailbox:
    """Where one node reads commands and answers them."""

    def __init__(self, url: str, conf: Settings, hostname: str, clock: LogicalClock, on_bad: OnBadFrame) -> None:
        self._link = MailboxLink(url, conf, heartbeat=conf.broker_heartbeat or 0)
        self._hostname = hostname
        self._clock = clock
        self._on_bad = on_bad
        self._expire_replies = scheme_of(url).startswith(("redis", "unix"))
        self._reply_ttl = int((conf.control_queue_ttl or 300.0) * 1000)
        self._listening = False
        self._caught_up = time.monotonic()  # when there was nothing left to read

    def open(self) -> None:
        """Connect, declare and listen.

        Raises:
            BrokerUnreachable: with the reason; a live node of the same name is one on AMQP.
        """
        self._link.open()
        name = node_queue(self._hostname, self._link.namespace)
        try:
            with self._link.errors():
                self._link.consume(name, self._link.commands)
            self._listening = True
        except BrokerUnreachable as exc:
            if getattr(exc.__cause__, "code", 0) == 405:
                raise BrokerUnreachable(
                    f"another live node is called {self._hostname}: give each its own name with -n"
                ) from exc
            raise
        # kombu's Redis channel subscribes when it first waits: before that, commands are published to nobody.
        self._link.drain(SUBSCRIBE)

    def read(self, timeout: float) -> list[ControlFrame]:
        """Wait up to `timeout` seconds; return the commands meant for this node. Bad ones go to `on_bad`.

        So do, unread, those that have waited for so long that nobody waits for them any more.
        """
        link = self._link
        if not link.inbox:
            link.drain(_LOOK)
            if not link.inbox and not link.bad:
                self._wait(timeout)
        messages = link.take()
        if self.behind > _BEHIND:
            messages = [message for message in messages if not self._is_expired(message)]
        frames = [frame for message in messages if (frame := self._frame(message)) is not None]
        for fault in link.bad:
            self._on_bad(fault)
        link.bad.clear()
        return [frame for frame in frames if frame.is_for(self._hostname)]

    def _wait(self, timeout: float) -> None:
        began = self._caught_up = time.monotonic()
        self._link.drain(timeout)
        # What comes after a wait has just come, unless the whole process stood still meanwhile.
        if time.monotonic() - began < timeout + _BEHIND / 2:
            self._caught_up = time.monotonic()

    @property
    def behind(self) -> float:
        """Seconds since there was nothing to read: what is read now may have waited here for so long."""
        return time.monotonic() - self._caught_up

    def _is_expired(self, message: kombu.Message) -> bool:
        expires = read_expires(message.headers.get("expires"))
        late = time.time() - expires if expires else 0.0
        if late > 0:
            self._on_bad(BadFrame("expired", f"{late:.1f} s ago"))
        return late > 0

    def _frame(self, message: kombu.Message) -> ControlFrame | None:
        if len(message.body or b"") > _MOST_BYTES:
            self._on_bad(BadFrame("too_large", f"{len(message.body)} bytes"))
            return None
        try:
            body = message.decode()
        except Exception as exc:  # noqa: BLE001  (whatever a serializer makes of a stranger's bytes)
            self._on_bad(BadFrame("undecodable", repr(exc)))
            return None
        try:
            frame = read_frame(body, message.headers, self._link.namespace)
        except BadFrame as fault:
            self._on_bad(fault)
            return None
        self._clock.adjust(frame.clock)
        return frame

    def reply(self, frame: ControlFrame, data: object) -> None:
        """Answer a command. What cannot be serialized is answered by an error that says so."""
        try:
            self._send(frame, data)
        except BrokerError:
            raise
        except Exception as exc:  # noqa: BLE001  (a user's command may return anything)
            self._send(frame, {"error": f"the reply of {frame.method} cannot be serialized: {exc!r}"[:2000]})

    def _send(self, frame: ControlFrame, data: object) -> None:
        link = self._link
        headers = {"ticket": frame.ticket, "clock": self._clock.forward()}
        link.send({self._hostname: data}, link.replies, frame.reply_key, headers)
        if self._expire_replies:
            # A reply to a client that has gone would lie in its list for ever: Redis has no message TTL.
            channel: Any = link.channel
            with link.errors(), channel.conn_or_acquire() as client:
                client.pexpire(reply_queue(frame.reply_key, link.namespace), self._reply_ttl)

    def beat(self) -> None:
        """Keep the connection alive and notice its death; call it about once a second."""
        self._link.beat()

    def close(self, *, forget: bool = False) -> None:
        """Let go; `forget` deletes the mailbox queue too."""
        if forget and self._listening:
            try:
                with self._link.errors():
                    self._link.consumer.cancel()
                    self._link.queue.delete()
            except BrokerError as exc:
                logger.debug("The mailbox is left to expire by itself: %s", exc)
        self._link.close()


class ReplyMailbox:
    """Where one client sends commands from and reads replies, over one connection and one reply queue.

    The queue lives as long as the mailbox: a client with a queue for each call leaves a blocking read behind
    on the last call's, and loses the next reply in it (wire.md 3.8).
    """

    def __init__(self, url: str, conf: Settings, clock: LogicalClock) -> None:
        self._link = MailboxLink(url, conf)
        self._clock = clock
        self._log: RevokeLog | None = None  # made when it is needed
        # The first key signs, so that a new one may be known everywhere before anything is signed with it.
        self._signer: tuple[str, str] | None = next(iter(conf.worker_control_keys.items()), None)
        self.key = str(uuid.uuid4())
        self.listening = False
        self._link.open()

    def listen(self) -> None:
        """Declare and bind the reply queue, before the first command that wants a reply."""
        if not self.listening:
            with self._link.errors():
                self._link.consume(reply_queue(self.key, self._link.namespace), self._link.replies, self.key)
            self.listening = True

    def keep(self, revoked: Revoked) -> bool:
        """Write what the next command revokes into the broker's log, for nodes that do not hear it.

        To be called before `send`: a node listens first and reads the log then, so nothing falls between. Where the
        broker refuses (rights, a full Redis) a warning is logged: those who listen are to be told all the same.

        Returns:
            Whether it is there; False where the broker keeps no log.

        Raises:
            BrokerUnreachable: it may or may not be there.
        """
        if not keeps_revoked(self._link.url):
            return False
        if self._log is None:
            self._log = RevokeLog(self._link.url, self._link.conf)
        try:
            self._log.append(revoked)
        except BrokerUnreachable:
            raise
        except BrokerError as exc:
            logger.warning("A revoke is told to the workers that listen now, and cannot be kept for others: %s", exc)
            return False
        return True

    def send(self, body: Mapping[str, Any], timeout: float) -> int | None:
        """Publish a command to every node, signed if the settings have a key; returns when the broker has it.

        Returns:
            How many mailboxes it went to; None where the broker does not say. RabbitMQ says only that there is none.
        """
        link = self._link
        if self._signer is not None:
            name, secret = self._signer
            body = signed(body, new_claim(name, timeout), link.namespace, secret)
        headers = {"clock": self._clock.forward(), "expires": time.time() + timeout if timeout else 0}
        link.send(body, link.commands, "", headers, mandatory=True)
        return link.reached()

    def receive(self, ticket: str, timeout: float) -> list[dict[str, Any]]:
        """Wait up to `timeout` seconds for something; return the replies to `ticket`, {node: data} each."""
        self._link.drain(timeout)
        self._link.bad.clear()
        found = []
        for message in self._link.take():
            self._clock.adjust(read_clock(message.headers.get("clock")))
            if message.headers.get("ticket", ticket) == ticket:
                body = _decoded(message)
                if body is not None:
                    found.append(body)
        return found

    def close(self) -> None:
        """Delete the reply queue and its binding, and let go of the connection."""
        link = self._link
        try:
            with link.errors():
                if self.listening:
                    link.consumer.cancel()
                    link.queue.delete()
        except BrokerError as exc:
            logger.debug("The reply queue is left to expire by itself: %s", exc)
        self.listening = False
        if self._log is not None:
            self._log.close()
        link.close()


def new_claim(key: str, timeout: float) -> Claim:
    """A claim for a command sent now; `timeout` (seconds) is how long its sender waits, 0 if not at all."""
    now = time.time()
    return Claim(key, now, now + min(timeout or WINDOW, WINDOW), uuid.uuid4().hex)


def _decoded(message: kombu.Message) -> dict[str, Any] | None:
    try:
        body = message.decode()
    except Exception:  # noqa: BLE001  (a node that answers in what we do not accept has not answered us)
        return None
    return body if isinstance(body, dict) else None
