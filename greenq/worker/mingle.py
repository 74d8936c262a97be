"""Learning from the neighbours what is revoked: before the first message is fetched, and after each reconnect."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenq.broker.mailbox import NodeMailbox, ReplyMailbox
from greenq.broker.stores import scheme_of
from greenq.control.permissions import is_off
from greenq.exceptions import BrokerError
from greenq.wire.control import command_body, read_clock, with_reply

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

logger = logging.getLogger(__name__)

MOST_SECONDS = 1.0  # that neighbours are waited for, as in Celery
# Where broadcasts are heard by all, and a worker learns whether anybody is there. Celery mingles over these too, but
# for the last, which it does not know.
_SCHEMES = frozenset({"amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "unix", "sqlite"})
_NOBODY = "mingle@"  # no node's name: a command that everybody receives and nobody obeys


class Mingle:
    """Says `hello` to all workers and takes over their revoked ids and stamps and their clock (wire.md 8.5).

    The mailbox is open before the question goes out, so that no revoke falls between. `fresh` says that what the
    neighbours know is known here; everything but that flag belongs to the service thread.
    """

    def __init__(self, worker: Worker) -> None:
        conf, url = worker.app.conf, worker.app.broker.url
        self._worker = worker
        self._conf = conf
        self._url = url
        # A node that listens to nobody hears of no revoke, and has nothing to ask for.
        self.fresh = scheme_of(url) not in _SCHEMES or is_off(conf)
        self._meets = not self.fresh
        # RabbitMQ tells of a broadcast only whether it went to nobody, and a node that listens is somebody.
        self._counts_nobody = "amqp" in scheme_of(url)
        self._sessions = 0

    def open(self, mailbox: NodeMailbox) -> None:
        """Open the node's mailbox on a new connection, and ask the neighbours beside it.

        Raises:
            BrokerUnreachable: as the mailbox does.
        """
        if not self._meets:
            mailbox.open()
            return
        self.fresh = False
        self._sessions += 1
        asking = ReplyMailbox(self._url, self._conf, self._worker.clock)
        try:
            if self._counts_nobody:
                self.fresh = asking.send(command_body("ping", {}, destination=[_NOBODY]), 0) == 0
            mailbox.open()
        except BaseException:
            asking.close()
            raise
        # Also when nobody was there: of two workers that start at one moment, the later one to listen is heard.
        self._worker.runtime.spawn(self._ask, asking, self._sessions, name="mingle")

    def _ask(self, asking: ReplyMailbox, session: int) -> None:
        try:
            found = self._replies(asking)
        except BrokerError as error:
            # The listener's own connection is most likely gone as well, and the next one asks again.
            logger.info("mingle: %s", error)
            return
        finally:
            asking.close()
        for node, reply in found.items():
            self._take(node, reply)
        if session == self._sessions:
            self.fresh = True
            logger.info("mingle: in step with %d other node%s", len(found), "" if len(found) == 1 else "s")

    def _replies(self, asking: ReplyMailbox) -> dict[str, Any]:
        """What others said, by node; waits for as many as there are, at most `MOST_SECONDS`."""
        worker, ticket = self._worker, str(uuid.uuid4())
        arguments: dict[str, Any] = {"from_node": worker.hostname, "revoked": worker.revocations.in_force()}
        if stamps := worker.revocations.stamps_in_force():
            arguments["stamps"] = stamps
        body = with_reply(command_body("hello", arguments), ticket, asking.key, self._conf.control_exchange)
        asking.listen()
        reached = asking.send(body, MOST_SECONDS)
        found: dict[str, Any] = {}
        deadline = time.monotonic() + MOST_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            # This node's own mailbox was reached too.
            if worker.service.stopped() or (reached is not None and len(found) >= reached - 1):
                break
            for reply in asking.receive(ticket, min(left, 0.2)):
                found.update((node, data) for node, data in reply.items() if node != worker.hostname)
        return found

    def _take(self, node: str, reply: Any) -> None:
        """Take over one reply, of which nothing is trusted but its shape."""
        if not isinstance(reply, Mapping) or "error" in reply:
            logger.info("mingle: %s does not say what is revoked: %.200r", node, reply)
            return
        self._worker.clock.adjust(read_clock(reply.get("clock")))
        revoked, stamps = reply.get("revoked"), reply.get("stamps")
        # Before Celery 5.7 an object {id: [stamp, id]}, whose keys are the ids.
        ids = list(revoked) if isinstance(revoked, (list, dict)) else []
        known = stamps if isinstance(stamps, dict) else {}
        self._worker.panel.revokes.learn(ids, {name: texts(values) for name, values in known.items()})


def texts(values: Any) -> list[str]:
    """Those of a list's values that are text."""
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
