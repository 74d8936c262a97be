"""Reply mailboxes that are kept open between two questions."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from greenq.broker.mailbox import ReplyMailbox
from greenq.exceptions import BrokerUnreachable

_KEPT = 4  # mailboxes kept open between calls; more only while more calls run at once
_FRESH = 8.0  # seconds: an unused one is not trusted longer, and its queue expires after 10


@dataclass(slots=True)
class _Kept:
    mailbox: ReplyMailbox
    pid: int
    used: float


class Mailboxes:
    """Lends a mailbox to each call in progress; safe to use from several greenlets or threads.

    They are deleted by `close` or when the process ends.
    """

    def __init__(self, make: Callable[[], ReplyMailbox]) -> None:
        self._make = make
        self._kept: deque[_Kept] = deque()
        self._finalizer = weakref.finalize(self, _close_all, self._kept)

    @contextmanager
    def lent(self, ask: Callable[[ReplyMailbox], object]) -> Iterator[ReplyMailbox]:
        """Send through a kept mailbox, or a new one where there is none or its connection has died."""
        mailbox = self._take()
        try:
            if mailbox is not None:
                try:
                    ask(mailbox)
                except BrokerUnreachable:
                    mailbox.close()
                    mailbox = None
            if mailbox is None:
                mailbox = self._make()
                ask(mailbox)
            yield mailbox
        except BaseException:
            if mailbox is not None:
                mailbox.close()
            raise
        self._keep(mailbox)

    def close(self) -> None:
        """Delete the reply queues and let go of the connections. More may be lent afterwards."""
        _close_all(self._kept)

    def _take(self) -> ReplyMailbox | None:
        while self._kept:
            try:
                kept = self._kept.pop()
            except IndexError:
                return None
            if kept.pid != os.getpid():
                continue  # a fork's copy: the socket is the parent's
            if time.monotonic() - kept.used < _FRESH:
                return kept.mailbox
            kept.mailbox.close()
        return None

    def _keep(self, mailbox: ReplyMailbox) -> None:
        if len(self._kept) >= _KEPT:
            mailbox.close()
        else:
            self._kept.append(_Kept(mailbox, os.getpid(), time.monotonic()))


def _close_all(kept: deque[_Kept]) -> None:
    while kept:
        one = kept.pop()
        if one.pid == os.getpid():
            one.mailbox.close()
