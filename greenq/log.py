"""Logging: one line format, with the task a line was written in."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from greenq.context import current
from greenq.conversion import mask_urls_in

FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_tag)s%(message)s"
SHORTEST_ESCAPE = {i: f"\\x{i:02x}" for i in (*range(32), 127)}


class TaskTag(logging.Filter):
    """Puts the running task's name and id on every record, whatever library wrote it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        context = current.get()
        message = context.message if context is not None else None
        record.task_id = message.id if message is not None else ""
        record.task_name = message.name if message is not None else ""
        record.task_tag = f"{printable(message.name)}[{printable(message.id)}] " if message is not None else ""
        return True


def printable(text: str) -> str:
    """The text with control characters escaped, so that data cannot forge a log line."""
    return text.translate(SHORTEST_ESCAPE)


class Formatter(logging.Formatter):
    """Hides the passwords of URLs, whoever wrote the line: a library's traceback may have one."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        return mask_urls_in(super().format(record))


def configure(level: str, logfile: str | None = None) -> None:
    """Send log lines of this level and above to stderr or the file.

    The root logger gets the handler only if it has none: an application that has set up its own logging keeps it.
    """
    root = logging.getLogger()
    number = logging.getLevelName(level.upper())
    logging.getLogger("greenq").setLevel(number)
    if root.handlers:
        return
    handler: logging.Handler
    if logfile:
        Path(logfile).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(logfile, encoding="utf-8")
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(FORMAT))
    handler.addFilter(TaskTag())
    root.addHandler(handler)
    root.setLevel(number)
