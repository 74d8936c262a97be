"""The fiber that reads: asks the broker for as much as there is room for, and lets it in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from greenq.broker.base import Consumer
from greenq.exceptions import BrokerError, MessageError
from greenq.log import printable
from greenq.model import Malformed, Rejected, Request, Settle, Settlement
from greenq.pools.base import Pool
from greenq.runtime.base import Runtime
from greenq.wire.messages import complete_v1
from greenq.wire.serializers import Accept
from greenq.worker.credit import Credit
from greenq.worker.ledger import Ledger
from greenq.worker.lineup import Lineup
from greenq.worker.outbox import ENOUGH, Outbox
from greenq.worker.sizing import Sizing
from greenq.worker.trouble import Trouble

logger = logging.getLogger(__name__)

WAIT = 1.0  # seconds a fetch waits for the first message
HOLD_BACK = 2.0  # seconds; longer than neighbours are waited for
PATIENCE = 1.0  # seconds that a message waits here behind tasks which turned out long


class Intake:
    """Owns the consumer's fetching side and its reconnecting; never waits for a slot."""

    def __init__(
        self,
        consumer: Consumer,
        lineup: Lineup,
        ledger: Ledger,
        outbox: Outbox,
        pool: Pool,
        runtime: Runtime,
        accept: Accept,
        reject: Callable[[Rejected], None],
        known: Callable[[Request], bool],
        sizing: Sizing,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """`reject` notes a message that cannot be decoded; `known` says whether a request's task exists.

        `may_begin` is asked after each connecting, for up to `HOLD_BACK` seconds, before anything is fetched.
        """
        self._consumer = consumer
        self._lineup = lineup
        self._ledger = ledger
        self._outbox = outbox
        self._pool = pool
        self._runtime = runtime
        self._accept = accept
        self._reject = reject
        self._known = known
        self._sizing = sizing
        self._may_begin = may_begin
        self._credit = Credit(lambda: ledger.finished, sizing.most_ahead)
        self._trouble = Trouble(logger, "broker")
        self._starved = False  # waits for a slot rather than for a message
        self._stopping = False
        self._ended = runtime.event()
        self._ready = runtime.event()
        self.connected = False
        self.last_fetch = 0.0

    def start(self) -> None:
        """Start the fiber."""
        self._runtime.spawn(self._serve, name="intake")

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until the broker was reached for the first time."""
        return self._ready.wait(timeout)

    def stop(self, timeout: float) -> bool:
        """Fetch nothing more; True once the fiber has ended."""
        self._stopping = True
        self._consumer.interrupt()
        return self._ended.wait(timeout)

    def room(self) -> None:
        """A slot is free, or there are more: ask for more, if the fiber waits for that."""
        # Woken for each slot, the fiber would mostly find too little room to ask. Where it is a thread it looks
        # itself, since the credit is its own.
        if self._starved and (not self._runtime.green or self._wanted()):
            self._starved = False
            self._consumer.interrupt()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                if self._connect():
                    self._read()
        finally:
            self._ended.set()

    def _connect(self) -> bool:
        try:
            self._consumer.start()
        except BrokerError as error:
            self._pause(self._trouble.happened(error))
            return False
        self._trouble.over()
        lost = self._lineup.forget_lost(self._consumer.epoch)
        if lost:
            logger.info("%d requests that waited here went back to the broker with their connection.", lost)
        self._hold_back()
        self.connected = True
        self._ready.set()
        return True

    def _hold_back(self) -> None:
        until = time.monotonic() + HOLD_BACK
        while not self._stopping and not self._may_begin() and time.monotonic() < until:
            self._runtime.sleep(0.005)

    def _pause(self, seconds: float) -> None:
        """Wait, but look every tenth of a second whether to stop."""
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._runtime.sleep(min(0.1, left))

    def _read(self) -> None:
        """Fetch until stopped or the broker is lost."""
        consumer = self._consumer
        while not self._stopping:
            # The flag first: a slot that frees between the look and the wait must end the wait.
            self._starved = True
            self._return_surplus()
            wanted = self._wanted()
            self._starved = not wanted
            try:
                batch = consumer.fetch(wanted, WAIT)
            except BrokerError as error:
                self.connected = False
                self._pause(self._trouble.happened(error))
                return
            self._trouble.over()
            self.last_fetch = time.monotonic()
            if batch:
                # No pause here: the next claim is on the wire while the slots run this one.
                self._let_in(batch)
                self._sizing.look()

    def _return_surplus(self) -> None:
        """Short tasks had more wait here than long ones should: what has waited goes back, for whoever is free."""
        if not self._consumer.by_number or not self._ledger.ready:
            return
        keep = self._credit.look_ahead() + self._sizing.appetite()
        surplus = self._lineup.surplus(keep, time.monotonic() - PATIENCE)
        for request in surplus:
            self._outbox.put((request, Settlement(request.tag, request.queue, Settle.REQUEUE)))
        if surplus:
            logger.info("%d messages that waited behind long tasks went back to the broker.", len(surplus))

    def _wanted(self) -> int:
        """How many to ask for now; 0 while there is no room, or too little to be worth a round trip."""
        look_ahead = self._credit.look_ahead()
        wanted = self._pool.free() + self._sizing.appetite() + look_ahead - len(self._ledger.ready)
        if len(self._outbox) > ENOUGH or not self._credit.worth_asking(wanted, look_ahead):
            return 0
        return wanted

    def _let_in(self, batch: list[Request | Rejected]) -> None:
        received = time.monotonic()
        for item in batch:
            if isinstance(item, Rejected):
                self._refuse(item)
                continue
            item.received = received
            if item.protocol == 1 and not self._complete(item):
                continue
            if item.redelivered and self._adopt(item):
                continue
            if self._stopping:
                self._outbox.put((item, Settlement(item.tag, item.queue, Settle.REQUEUE)))
            elif self._known(item):
                self._lineup.admit(item)

    def _complete(self, request: Request) -> bool:
        try:
            complete_v1(request, self._accept)
        except MessageError as error:
            malformed = Malformed(error.reason, error.detail, request.id, request.name, request.reply_to)
            raw = request.raw or b""
            self._refuse(Rejected(request.tag, request.epoch, request.queue, raw, malformed))
            return False
        return True

    def _adopt(self, request: Request) -> bool:
        """The broker gave us again what still runs here: go on with it under the new delivery.

        What has ended here, and whose ack was lost, is acknowledged now instead of being run twice.
        """
        if self._ledger.unacknowledged.get(request.id) == request.retries:
            self._outbox.put(request)
            logger.info("Task %s[%s] came again after it ended here.", request.name, request.id)
            return True
        running = self._ledger.running_with(request.id)
        if running is None or running.acked:
            return False
        self._ledger.redelivered_while_running += 1
        running.tag, running.epoch = request.tag, request.epoch
        logger.info("Task %s[%s] came again while it runs here; its run goes on.", running.name, running.id)
        return True

    def _refuse(self, rejected: Rejected) -> None:
        self._ledger.rejected += 1
        error = rejected.error
        logger.error(
            "A message on queue %s is refused (%s: %s), %d bytes: %s",
            rejected.queue,
            error.reason,
            printable(error.detail),
            len(rejected.raw),
            printable(repr(rejected.raw[:80])),
            extra={"event": "message.refused"},
        )
        self._reject(rejected)
        settlement = Settlement(rejected.tag, rejected.queue, Settle.DEAD, reason=error.reason)
        self._outbox.put((rejected, settlement))

