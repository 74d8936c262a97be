"""The embedded broker: a SQLite file shared by the processes of one host."""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

from greenq.transports.sqlite.channel import Channel
from greenq.transports.sqlite.revoked import open_revoked_log
from greenq.transports.sqlite.store import SqliteStore, open_store
from greenq.transports.sqlite.transport import Transport

__all__ = ["Channel", "SqliteStore", "Transport", "open_revoked_log", "open_store", "register"]


def register() -> None:
    """Make `kombu.Connection("sqlite:///...")` lead here; once a process is enough."""
    TRANSPORT_ALIASES["sqlite"] = "greenq.transports.sqlite:Transport"
