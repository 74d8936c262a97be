"""What was revoked while this worker was away: read from the broker's log, and written there for others."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from greenq.broker.mailbox import NodeMailbox
from greenq.broker.revoked_log import Logged, RevokeLog
from greenq.control.permissions import Permissions
from greenq.control.registry import Registry
from greenq.control.revoking import to_be_logged
from greenq.exceptions import BrokerError, BrokerPaused, BrokerUnreachable, CommandRefused
from greenq.wire.control import ControlFrame
from greenq.wire.revoked import MOST_STAMPS, Revoked
from greenq.worker.trouble import Trouble

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TICK = 0.1  # seconds between two looks whether there is something to write


class CatchingUp:
    """Reads the log of revokes on each new connection of the control plane, and writes what no sender has written.

    For brokers that keep a log (`stores.keeps_revoked`). All of it belongs to the service thread. The log is a way to
    be told, so it is obeyed as a command is: only if the node's profile allows that, and only if it is signed where
    commands have to be.
    """

    def __init__(self, worker: Worker, registry: Registry, opened_by: Callable[[NodeMailbox], None]) -> None:
        """`opened_by` opens the mailbox of a new connection.

        Raises:
            ConfigError: for settings about who may ask that contradict each other.
        """
        self._worker = worker
        self._conf, self._url = worker.app.conf, worker.app.broker.url
        self._open_mailbox = opened_by
        permissions = Permissions.of(self._conf, registry)

        def allows(command: str, arguments: Mapping[str, Any]) -> bool:
            try:
                permissions.check(registry.get(command), worker.panel, arguments)
            except CommandRefused:
                return False
            return True

        self._ids = allows("revoke", {"task_id": ""})
        self._stamps = allows("revoke_by_stamped_headers", {"headers": {}})
        # What was heard and is to be written; of a flood the newest, as everywhere. Any fiber appends, one takes.
        self._heard_ids: deque[str] = deque(maxlen=self._conf.worker_revokes_max)
        self._heard_stamps: deque[tuple[str, str]] = deque(maxlen=MOST_STAMPS)

    def open(self, mailbox: NodeMailbox) -> None:
        """Open the node's mailbox on a new connection, and then read the log: what is revoked between is heard.

        Raises:
            BrokerUnreachable, BrokerPaused: as the mailbox does, or the log cannot be read now.
        """
        self._open_mailbox(mailbox)
        if not (self._ids or self._stamps):
            return
        log = RevokeLog(self._url, self._conf)
        try:
            told = log.read(ids=self._ids, stamps=self._stamps)
        except (BrokerUnreachable, BrokerPaused):
            raise
        except BrokerError as error:
            # It will not be otherwise the next time, and commands are worth hearing all the same.
            logger.warning("What was revoked while this worker was away cannot be read from the broker: %s", error)
            return
        finally:
            log.close()
        self._take(told)

    def _take(self, told: Logged) -> None:
        if told.rejected:
            self._worker.panel.hearing.rejected.update(told.rejected)
            counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(told.rejected.items()))
            logger.warning("Entries of the broker's log of revokes were passed over (%s).", counts)
        ids, stamps = self._worker.panel.revokes.catch_up(told.ids, told.stamps)
        if ids or stamps:
            logger.info("%d ids and %d stamps are revoked according to the broker.", ids, stamps)

    def obeyed(self, frame: ControlFrame) -> None:
        """Note a command that was carried out here; if its sender has not kept it in the broker, this worker will."""
        revoked = to_be_logged(frame)
        self._heard_ids.extend(revoked.ids)
        self._heard_stamps.extend(revoked.stamps)

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Service thread: write what was heard, until `stopped`."""
        log, trouble, wait = RevokeLog(self._url, self._conf), Trouble(logger, "log of revokes"), 0.0
        sleep = self._worker.runtime.sleep
        while not stopped():
            sleep(_TICK)
            wait -= _TICK
            if wait <= 0:
                wait = self._write(log, trouble)
        self._write(log, trouble)
        log.close()

    def _write(self, log: RevokeLog, trouble: Trouble) -> float:
        """Write what was heard, if anything; returns how long to wait before the next try, 0 after a success."""
        ids, stamps = _taken(self._heard_ids), _taken(self._heard_stamps)
        if not ids and not stamps:
            return 0.0
        try:
            log.append(Revoked(ids, stamps))
        except BrokerError as error:
            _put_back(self._heard_ids, ids)
            _put_back(self._heard_stamps, stamps)
            return trouble.happened(error)
        trouble.over()
        return 0.0


def _taken(line: deque[T]) -> list[T]:
    return [line.popleft() for _ in range(len(line))]


def _put_back(line: deque[T], taken: list[T]) -> None:
    room = (line.maxlen or 0) - len(line)
    line.extendleft(taken[: -room - 1 : -1])
