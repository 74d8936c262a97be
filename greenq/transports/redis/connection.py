"""One raw Redis connection: commands in, replies out, every trouble as one of greenq's own errors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis import exceptions

from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable, ConfigError
from greenq.transports.redis.endpoint import Endpoint

Arg = str | bytes | int | float
OLDEST = (6, 2)

# Replies that mean "not now". Redis 6.2 wraps what a command inside a script answered into one longer text.
_PAUSED = re.compile(
    r"(?:^|[\s-])(LOADING|READONLY|OOM|MASTERDOWN|NOREPLICAS|BUSY|MISCONF|CLUSTERDOWN|TRYAGAIN|UNBLOCKED)\b"
)
_PAUSED_TYPES = (
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)


class Script(NamedTuple):
    """A Lua script and the name Redis knows it by."""

    source: bytes
    sha: str


def script(source: str) -> Script:
    """Name a Lua source as Redis does."""
    data = source.strip().encode()
    return Script(data, hashlib.sha1(data, usedforsecurity=False).hexdigest())


class Wire:
    """One connection to Redis with one owner at a time; connects when it is used, and again after a loss.

    Raises:
        BrokerUnreachable: no connection, or it broke; whether the command ran is not known.
        BrokerPaused: Redis answered that it cannot serve now.
        BrokerError: Redis refused the command for another reason (rights, a key of another type).
        ConfigError: the server is older than greenq can use.
    """

    def __init__(self, endpoint: Endpoint, protocol: int = 2) -> None:
        self.endpoint = endpoint
        self.protocol = protocol
        self.connections = 0  # how many were opened so far; a doorbell must be set again after each
        self._connection: Any = None

    def call(self, *args: Arg) -> Any:
        """Send one command and return its reply."""
        return self.pipeline([args])[0]

    def pipeline(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Send the commands in one write; raise the first error only after all replies were read."""
        with self._translated(commands[0][0]):
            connection = self._ready()
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return self._replies(connection, len(commands))

    def run(self, what: Script, keys: Sequence[Arg], args: Sequence[Arg], before: Sequence[Arg] = ()) -> Any:
        """Run a script by its name, by its text where Redis does not know it yet; one atomic step.

        `before` is a command to be sent in front of it, in the same write; its reply is dropped.
        """
        lead = [before] if before else []
        with self._translated("EVALSHA"):
            connection = self._ready()
            for verb, name in (("EVALSHA", what.sha), ("EVAL", what.source)):
                command = (verb, name, len(keys), *keys, *args)
                connection.send_packed_command(connection.pack_commands([*lead, command]), check_health=False)
                try:
                    return self._replies(connection, len(lead) + 1)[-1]
                except exceptions.NoScriptError:
                    # Nothing ran. EVAL also stores the script, so this happens once per restart or flush.
                    if verb == "EVAL":
                        raise
        raise AssertionError("unreachable")

    def connection(self) -> Any:
        """The open redis-py connection, for who reads pushes or polls its socket."""
        with self._translated("HELLO"):
            return self._ready()

    def socket(self) -> Any:
        """The socket of the open connection, to be polled only; None where there is none."""
        connection = self._connection
        return None if connection is None else connection._sock  # noqa: SLF001  redis-py has no public name

    def buffered(self) -> bool:
        """Whether something lies unread on this side of the socket, where polling it would not tell.

        Asks the parser, not the socket: under gevent each look at a socket is a turn of the hub.
        """
        connection = self._connection
        if connection is None or connection._sock is None:  # noqa: SLF001
            return False
        reader = getattr(connection._parser, "_reader", None)  # noqa: SLF001
        if reader is None:
            return bool(connection.can_read(timeout=0))
        pending = getattr(connection._sock, "pending", None)  # noqa: SLF001  a TLS socket has a buffer too
        return bool(reader.has_data() or (pending is not None and pending()))

    def close(self) -> None:
        """Let go of the socket; the next command connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    @contextmanager
    def translated(self, what: Arg) -> Iterator[None]:
        """Turn redis-py's errors inside the block into greenq's."""
        with self._translated(what):
            yield

    def _ready(self) -> Any:
        connection = self._connection
        if self.socket() is None:
            connection = self._connect()
            self._connection = connection
            self.connections += 1
        return connection

    def _connect(self) -> Any:
        connection = self.endpoint.connection(self.protocol)
        try:
            connection.connect()
        except exceptions.BusyLoadingError:
            raise
        except exceptions.ResponseError as exc:
            # A proxy or a user without the right to HELLO: RESP2 does everything but pushes.
            if self.protocol == 2 or _PAUSED.search(str(exc)):
                raise
            self.protocol = 2
            return self._connect()
        version = _server_version(connection)
        if version and version < OLDEST:
            connection.disconnect()
            found = ".".join(map(str, version))
            raise ConfigError(
                f"the Redis at {self.endpoint} is {found}; greenq needs 6.2 or later (lists popped by count, "
                "GETRANGE and ZRANGE inside scripts): upgrade the server"
            )
        return connection

    @staticmethod
    def _replies(connection: Any, count: int) -> list[Any]:
        replies: list[Any] = []
        failure: exceptions.ResponseError | None = None
        for _ in range(count):
            try:
                replies.append(connection.read_response())
            except exceptions.ResponseError as exc:
                # The replies behind it must be read, or the next command would be answered by them.
                failure = failure or exc
                replies.append(None)
        if failure is not None:
            raise failure
        return replies

    @contextmanager
    def _translated(self, what: Arg) -> Iterator[None]:
        try:
            yield
        except exceptions.RedisError as exc:
            command = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
            raise self._error(exc, command) from exc
        except OSError as exc:
            self.close()
            raise BrokerUnreachable(f"the connection to {self.endpoint} broke: {exc}") from exc
        except BaseException:
            # Cut short between a command and its reply (a killed greenlet): the next command would be
            # given this one's answer.
            self.close()
            raise

    def _error(self, exc: exceptions.RedisError, command: str) -> BrokerError:
        if isinstance(exc, _PAUSED_TYPES) or (isinstance(exc, exceptions.ResponseError) and _PAUSED.search(str(exc))):
            return BrokerPaused(f"{self.endpoint} cannot serve {command} now: {exc}")
        if isinstance(exc, exceptions.AuthenticationError):
            self.close()
            return BrokerUnreachable(f"{self.endpoint} refused the user or password: {exc}; check the URL")
        if isinstance(exc, exceptions.ResponseError):
            return BrokerError(f"{self.endpoint} refused {command}: {exc}")
        self.close()
        return BrokerUnreachable(f"no connection to {self.endpoint}: {exc}")


def _server_version(connection: Any) -> tuple[int, ...]:
    """The server's version, () where it does not tell; HELLO told it already under RESP3."""
    told = connection.handshake_metadata
    text = b""
    if isinstance(told, dict):
        text = told.get(b"version", b"")
    if not text:
        try:
            connection.send_command("INFO", "server", check_health=False)
            reply = connection.read_response()
        except exceptions.ResponseError:
            # No right to INFO is no reason to refuse: a server too old says so at the first claim.
            return ()
        found = re.search(rb"redis_version:([\d.]+)", reply if isinstance(reply, bytes) else b"")
        text = found.group(1) if found else b""
    return tuple(int(part) for part in text.split(b".") if part.isdigit())
