"""Many waiters on one subscribed connection: one of them reads and hands out, no thread is added."""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from greenq.exceptions import BrokerError, ResultError, ResultTimeout
from greenq.transports.redis.connection import Wire
from greenq.transports.redis.doorbell import Waker
from greenq.transports.redis.endpoint import Endpoint

SILENCE = 20.0  # seconds without a word after which the connection is probed, and the keys are read anyway
PATIENCE = 30.0  # seconds of trouble after which who waits is told
FIRST_RETRY, LAST_RETRY = 0.05, 1.0  # seconds


class _Waiter:
    __slots__ = ("channel", "error", "event", "payloads", "task_id")

    def __init__(self, task_id: str, channel: str) -> None:
        self.task_id = task_id
        self.channel = channel
        self.payloads: deque[bytes] = deque()
        self.error: ResultError | None = None
        self.event = threading.Event()


class Waiters:
    """Who waits for which key, and the connection that hears of it.

    One waiter, the leader, owns the socket: it alone reads it and writes to it, for everybody. The others
    wait for an event of their own. A leader that has what it came for passes the lead to another waiter; so
    there is no thread, and nothing happens while nobody waits. Works with threads and with greenlets of a
    patched process.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        read: Callable[[Sequence[str]], list[bytes | None]],
        channel: Callable[[str], str],
    ) -> None:
        self._wire = Wire(endpoint)
        self._read = read
        self._channel = channel
        self._lock = threading.Lock()
        self._table: dict[str, list[_Waiter]] = {}
        self._leader: _Waiter | None = None
        self._waker = Waker()
        self._subscribed: set[str] = set()
        self._heard = 0.0  # monotonic time of the last word from Redis
        self._probed = False
        self._trouble_since: float | None = None
        self._closed = False

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        """As `ResultStore.wait`. The key is read once the subscription stands, so nothing is missed."""
        deadline = inf if timeout is None else time.monotonic() + timeout
        waiter = self._join(task_id)
        try:
            while True:
                while waiter.payloads:
                    payload = waiter.payloads.popleft()
                    if ready(payload):
                        return payload
                if waiter.error is not None:
                    raise waiter.error
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ResultTimeout(f"no result of task {task_id} within {timeout} s; it may still run")
                if self._leader is waiter:
                    self._lead(waiter, deadline)
                else:
                    waiter.event.wait(None if left == inf else left)
                    waiter.event.clear()
        finally:
            self._leave(waiter)

    def close(self) -> None:
        self._closed = True
        self._fail(ResultError("the result store was closed"))
        self._waker.wake()
        with self._lock:
            if self._leader is None:
                self._wire.close()

    def _join(self, task_id: str) -> _Waiter:
        waiter = _Waiter(task_id, self._channel(task_id))
        with self._lock:
            if self._closed:
                raise ResultError("the result store was closed")
            self._table.setdefault(waiter.channel, []).append(waiter)
            if self._leader is None:
                self._leader = waiter
                return waiter
        self._waker.wake()  # the leader has to subscribe for us
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            others = self._table[waiter.channel]
            others.remove(waiter)
            if not others:
                # The subscription goes with the next leader's first step: until then at most this one
                # task's last messages lie in the socket.
                del self._table[waiter.channel]
            if self._leader is waiter:
                self._leader = next((w for found in self._table.values() for w in found), None)
                if self._leader is not None:
                    self._leader.event.set()
                elif self._closed:
                    self._wire.close()

    def _lead(self, me: _Waiter, deadline: float) -> None:
        """Read and hand out until there is something for `me`, or the time is up."""
        pause = FIRST_RETRY
        while not me.payloads and me.error is None and time.monotonic() < deadline:
            try:
                self._step(deadline)
                pause = FIRST_RETRY
            except (BrokerError, ResultError) as exc:
                # The subscriptions go with the connection; the next step makes them again and reads all keys.
                self._wire.close()
                self._give_up_after_a_while(exc)
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
                pause = min(pause * 2, LAST_RETRY)

    def _step(self, deadline: float) -> None:
        self._subscribe()
        connection = self._wire.connection()
        fresh: list[str] = []
        readable = self._wire.buffered() or self._readable(min(deadline, self._heard + SILENCE))
        with self._wire.translated("SUBSCRIBE"):
            while readable:
                self._take(connection.read_response(), fresh)
                readable = self._wire.buffered()
        if fresh:
            self._hand_out_stored(fresh)
        if time.monotonic() - self._heard >= SILENCE:
            self._probe()

    def _readable(self, until: float) -> bool:
        """Wait for the socket; False when the time is up or somebody joined or closed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker.ear, selectors.EVENT_READ)
            selector.register(self._wire.socket(), selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(max(0.0, until - time.monotonic()))]
        if self._waker.ear in ready:
            self._waker.clear()
            ready.remove(self._waker.ear)
        return bool(ready)

    def _subscribe(self) -> None:
        """Make the subscriptions those of the table, in one write each way."""
        opened = self._wire.connections
        connection = self._wire.connection()
        if self._wire.connections != opened:
            self._subscribed.clear()
            self._heard, self._probed = time.monotonic(), False
        with self._lock:
            wanted = set(self._table)
        missing, done = wanted - self._subscribed, self._subscribed - wanted
        with self._wire.translated("SUBSCRIBE"):
            for verb, channels in (("SUBSCRIBE", missing), ("UNSUBSCRIBE", done)):
                if channels:
                    connection.send_command(verb, *channels, check_health=False)
        self._subscribed = wanted

    def _take(self, reply: Any, fresh: list[str]) -> None:
        self._heard, self._probed, self._trouble_since = time.monotonic(), False, None
        kind = reply[0] if isinstance(reply, list) and len(reply) == 3 else b""
        if kind == b"message":
            self._hand_out(reply[1].decode(errors="replace"), reply[2])
        elif kind == b"subscribe":
            fresh.append(reply[1].decode(errors="replace"))

    def _hand_out(self, channel: str, payload: bytes) -> None:
        with self._lock:
            for waiter in self._table.get(channel, ()):
                waiter.payloads.append(payload)
                waiter.event.set()

    def _hand_out_stored(self, channels: Sequence[str]) -> None:
        with self._lock:
            found = [(c, self._table[c][0].task_id) for c in channels if c in self._table]
        for (channel, _), payload in zip(found, self._read([task_id for _, task_id in found]), strict=True):
            if payload is not None:
                self._hand_out(channel, payload)

    def _probe(self) -> None:
        """Ask a silent connection for a sign of life; drop it if it gave none since the last time."""
        if self._probed:
            raise ResultError("the subscribed connection is silent")
        self._heard, self._probed = time.monotonic(), True
        with self._wire.translated("PING"):
            self._wire.connection().send_command("PING", check_health=False)
        self._hand_out_stored(list(self._subscribed))

    def _give_up_after_a_while(self, exc: Exception) -> None:
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
        elif now - self._trouble_since > PATIENCE:
            self._trouble_since = None
            self._fail(ResultError(f"the result store could not be reached for {PATIENCE:.0f} s: {exc}"))

    def _fail(self, error: ResultError) -> None:
        with self._lock:
            for waiter in [w for found in self._table.values() for w in found]:
                waiter.error = error
                waiter.event.set()
