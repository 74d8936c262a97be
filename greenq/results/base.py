"""The interface of every result store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from greenq.model import Record


class ResultStore(Protocol):
    """Where outcomes are kept. Safe to call from several greenlets and threads of one process at once.

    Methods block for their own I/O only and raise `ResultError`; nothing of a client library escapes.
    """

    name: str  # "redis", "sqlite", "rpc", "disabled"
    persistent: bool  # False where a result can be read only once, by its caller (rpc)

    def store(self, records: Sequence[Record]) -> None:
        """Write the records in order, in as few round trips as possible, then wake who waits for them.

        A record whose id already has SUCCESS stored is dropped, silently.
        """

    def read(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """The stored payloads, None where there is none."""

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        """Block until a payload is stored for which `ready` says yes, and return it.

        Raises:
            ResultTimeout: after `timeout` seconds.
        """

    def expect(self, task_ids: Sequence[str]) -> None:
        """Called by a producer just before it publishes these ids; a store that needs no preparation does nothing."""

    def forget(self, task_id: str) -> None:
        """Delete the result if there is one."""

    def close(self) -> None:
        """Let go of connections. Closing twice is legal."""
