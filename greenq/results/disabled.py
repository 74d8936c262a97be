"""No result store: nothing is kept, and asking says how to change that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greenq.exceptions import ResultError
from greenq.model import Record


class DisabledResults:
    """Results are dropped by choice, so storing one is silent and reading one is an error."""

    name = "disabled"
    persistent = False

    def store(self, records: Sequence[Record]) -> None:
        """See ResultStore."""

    def read(self, task_ids: Sequence[str]) -> list[bytes | None]:
        """See ResultStore."""
        raise ResultError("no result store is configured: set result_backend, e.g. to the broker's redis:// URL")

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        """See ResultStore."""
        raise ResultError("no result store is configured: set result_backend, e.g. to the broker's redis:// URL")

    def expect(self, task_ids: Sequence[str]) -> None:
        """See ResultStore."""

    def forget(self, task_id: str) -> None:
        """See ResultStore."""
        raise ResultError("no result store is configured: set result_backend, e.g. to the broker's redis:// URL")

    def close(self) -> None:
        """See ResultStore."""
