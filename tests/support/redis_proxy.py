"""A TCP proxy that loses, holds or rewrites what passes to and from Redis, and envelopes as kombu makes them."""

from __future__ import annotations

import base64
import json
import selectors
import socket
import threading
from typing import Any

from typing_extensions import Self

from greenq.transports.base import Post


def envelope(number: int, queue: str = "q", priority: int = 0, **headers: Any) -> bytes:
    """One message as kombu stands it in a list (wire.md 5.9)."""
    body = base64.b64encode(json.dumps([[number], {}, {}]).encode()).decode()
    payload = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": f"id-{number}", "task": "t", **headers},
        "properties": {
            "correlation_id": f"id-{number}",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{number}",
        },
    }
    return json.dumps(payload).encode()


def posts(count: int, queue: str = "q", start: int = 0) -> list[Post]:
    return [Post(queue, envelope(number, queue)) for number in range(start, start + count)]


def items(client: Any, key: str) -> list[bytes]:
    """What a list holds; the client is typed as if it decoded or not at each call."""
    found: list[bytes] = client.lrange(key, 0, -1)
    return found


def number_of(raw: bytes) -> int:
    """The number an envelope was made with."""
    return int(json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0])


def without_marks(raw: bytes) -> dict[str, Any]:
    """The envelope without the two marks of a redelivery."""
    payload: dict[str, Any] = json.loads(raw)
    payload["headers"].pop("redelivered", None)
    payload["properties"]["delivery_info"].pop("redelivered", None)
    return payload


class RedisProxy:
    """`with RedisProxy(server.port) as proxy:` and connect to `proxy.url`.

    `swallow(word)`: the next request that holds the word is passed on, its reply is thrown away and the
    connection closed. `hold(word)`: the connection is closed to the client, and the request reaches Redis
    only at `release()`. `rewrite`: replaced in every reply.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._swallow: bytes | None = None
        self._hold: bytes | None = None
        self._held: tuple[socket.socket, bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.rewrite: tuple[bytes, bytes] | None = None
        self.rewrite_request: tuple[bytes, bytes] | None = None
        self.swallowed = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def swallow(self, word: bytes) -> None:
        self._swallow = word

    def hold(self, word: bytes) -> None:
        self._hold = word

    def release(self) -> bytes:
        """Let the held request reach Redis now; returns Redis's reply."""
        assert self._held is not None
        server, data = self._held
        server.sendall(data)
        reply = server.recv(65536)
        server.close()
        return reply

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        losing = kept = False
        with client, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    sock = client if key.fileobj is client else server
                    data = sock.recv(1 << 20)
                    if not data or (losing and sock is server):
                        self.swallowed += int(losing)
                        server.close()
                        return
                    if sock is client and self._hold and self._hold in data:
                        self._hold, self._held, kept = None, (server, data), True
                        break
                    if sock is client and self._swallow and self._swallow in data:
                        self._swallow, losing = None, True
                    change = self.rewrite if sock is server else self.rewrite_request
                    if change:
                        data = data.replace(*change)
                    (server if sock is client else client).sendall(data)
                if kept:
                    return  # without closing the server's side: the request is still on its way
        server.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
