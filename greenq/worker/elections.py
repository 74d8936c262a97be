"""Elections: of all nodes that are asked to, one does something (wire.md 8.5, decision 0015)."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.app.signature import as_signature
from greenq.broker.elections import ElectionLink, hears
from greenq.control.allowance import Allowance
from greenq.control.permissions import is_off
from greenq.exceptions import BadArgument, BrokerError, CommandRefused
from greenq.log import printable
from greenq.wire.control import CLOCK_MAX, BadFrame
from greenq.wire.elections import (
    ACK,
    ELECT,
    ELECT_KEY,
    MOST_CHARACTERS,
    Candidate,
    ack_fields,
    elect_fields,
    name_of,
    read_ack,
    read_elect,
)
from greenq.worker.ballots import Ballots, Decision
from greenq.worker.trouble import Trouble

if TYPE_CHECKING:
    from greenq.worker.worker import Worker

logger = logging.getLogger(__name__)

_IDLE = 0.2  # seconds a read may wait; bounds how late a stop is noticed
_REST = 0.02  # seconds between two looks at an allowance that is spent


class Elections:
    """A fiber of the service thread that hears what nodes say, and the command that makes this node stand.

    What this node says goes out with its other events, at once. The ballots belong to the service thread; with the
    solo pool its fibers are threads, so there is a lock. The action is done on the main hub, where the app sends.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._url: str = worker.app.broker.url
        self._name = name_of(worker.hostname, os.getpid())
        self._ballots = Ballots(self._name)
        self._lock = worker.runtime.lock()
        self._trouble = Trouble(logger, "elections")
        self._topics: Mapping[str, Callable[[Any], object]] = {"task": self._send_task}
        self._held = self._won = 0
        self._dropped: Counter[str] = Counter()
        self.connected = False  # read from any thread
        self.off = self._why_off()

    def _why_off(self) -> str:
        """Why this node takes no part, and what to do about it; "" if it does."""
        if self._worker.options.without_gossip:
            return "this node was started with --without-gossip: start it without that option"
        if is_off(self._worker.app.conf):
            return "this node obeys no remote commands"
        if not hears(self._url):
            return "elections are held over Redis, RabbitMQ and SQLite only: send the action as a task instead"
        return ""

    def hold(self, election: str, topic: str, action: Any) -> None:
        """See control.panel.Electing. Fibers of the service thread."""
        if self.off:
            raise CommandRefused(f"election {election[:100]!r} is not held here: {self.off}")
        self._check(election, topic, action)
        if not self.connected:
            raise CommandRefused(
                f"election {election[:100]!r}: this node does not hear the others now, its connection for that is "
                "being opened: ask again in a moment"
            )
        with self._lock:
            fresh = self._ballots.stand(election, topic, action, time.monotonic())
        if fresh:
            self._held += 1
            self._say(ELECT, elect_fields(election, topic, action))
        else:
            logger.info("Election %s is being held, or was a moment ago.", _shown(election))

    def _check(self, election: str, topic: str, action: Any) -> None:
        """Refuse what this node could not do if it won: another one may be able to, and is elected then."""
        if not 0 < len(election) <= MOST_CHARACTERS:
            raise BadArgument(f"election: an id has 1 to {MOST_CHARACTERS} characters, not {len(election)}")
        why = ""
        if topic not in self._topics:
            why = f"there is no topic {topic[:100]!r} here; there is: {', '.join(self._topics)}"
        else:
            try:
                as_signature(action)
            except (TypeError, ValueError, NotImplementedError) as exc:
                why = f"the action of the topic {topic!r} has to be the signature of a task: {exc}"[:500]
        if why:
            # In the log as well: elections are asked for without waiting for an answer.
            logger.error("Election %s: %s", _shown(election), printable(why))
            raise BadArgument(f"election: {why}")

    def info(self) -> dict[str, Any]:
        """See control.panel.Electing."""
        return {
            "connected": self.connected,
            "held": self._held,
            "won": self._won,
            "remembered": len(self._ballots),
            "dropped": dict(self._dropped),
        }

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Service thread: hear and decide until `stopped`."""
        while not stopped():
            try:
                self._session(stopped)
            except BrokerError as error:
                pause = self._trouble.happened(error)
            except Exception:
                logger.exception("Elections are heard again after an error.")
                pause = 1.0
            else:
                return
            self._rest(pause, stopped)

    def _rest(self, pause: float, stopped: Callable[[], bool]) -> None:
        until = time.monotonic() + pause
        while not stopped() and (left := until - time.monotonic()) > 0:
            self._worker.runtime.sleep(min(left, _IDLE))

    def _session(self, stopped: Callable[[], bool]) -> None:
        link = ElectionLink(self._url, self._worker.app.conf, self._worker.hostname)
        # Elections are few: whoever makes many of them may not slow tasks, whether some run now or not.
        allowance = Allowance(lambda: True)
        try:
            link.open()
            self._trouble.over()
            self.connected = True
            while not stopped():
                if allowance.spent(link.behind):
                    self._worker.runtime.sleep(_REST)
                    continue
                began = time.thread_time()
                self._turn(link)
                allowance.spend(time.thread_time() - began)
        finally:
            self.connected = False
            link.close()
            if not stopped():
                self._abandon()

    def _turn(self, link: ElectionLink) -> None:
        heard = link.look()
        if not any(heard):
            # Only now: who has not read all that has come in does not know who stands, or who has decided already.
            self._decide()
            with self._lock:
                patience = self._ballots.wait(time.monotonic(), _IDLE)
            heard = link.wait(patience)
        for key, event in heard.events:
            self._hear(key, event)
        for fault in heard.bad:
            self._drop(fault)

    def _hear(self, key: str, event: object) -> None:
        try:
            if key == ELECT_KEY:
                elect = read_elect(event)
                self._see(elect.candidate.clock)
                with self._lock:
                    late = self._ballots.heard(elect, time.monotonic())
                    leader = self._ballots.answer(elect.id)
                if late:
                    self._say(ACK, ack_fields(elect.id, leader))
            else:
                ack = read_ack(event)
                self._see(ack.clock)
                with self._lock:
                    self._ballots.acknowledged(ack)
        except BadFrame as fault:
            self._drop(fault)

    def _see(self, clock: int) -> None:
        """Whoever stands after this has a higher clock than who stood before. A senseless one may not use it up."""
        if clock <= CLOCK_MAX // 2:
            self._worker.clock.adjust(clock)

    def _decide(self) -> None:
        with self._lock:
            decisions = self._ballots.due(time.monotonic())
        for decision in decisions:
            # One for all candidates: Celery's nodes count acknowledgements, and wait for as many as there are nodes.
            # Not before this moment, so that they hear of as many candidates as they can before they decide.
            self._say(ACK, ack_fields(decision.id, decision.leader if decision.stood else None))
            self._log(decision)
            if decision.won:
                self._won += 1
                act = partial(self._act, decision)
                self._worker.runtime.call_soon(partial(self._worker.runtime.spawn, act, name="election"))

    def _log(self, decision: Decision) -> None:
        if decision.won:
            logger.info("Election %s: this node leads.", _shown(decision.id))
        elif decision.leader is not None:
            # Whoever invents elections may not flood the log.
            level = logging.INFO if decision.stood else logging.DEBUG
            logger.log(level, "Election %s: %s leads.", _shown(decision.id), _named(decision.leader))
        elif decision.stood:
            logger.warning("Election %s: nobody leads, this node did not hear itself.", _shown(decision.id))

    def _abandon(self) -> None:
        """The connection is gone, and with it what others said: who cannot hear cannot know that it leads."""
        with self._lock:
            given_up = self._ballots.abandon()
        if given_up:
            names = ", ".join(map(_shown, given_up))
            logger.warning("The connection was lost, so these elections are left to others: %s", names)

    def _act(self, decision: Decision) -> None:
        """Main hub, in a fiber of its own."""
        try:
            self._topics[decision.topic](decision.action)
        except Exception:
            logger.exception("Election %s: the action could not be done.", _shown(decision.id))

    def _send_task(self, action: Mapping[str, Any]) -> None:
        app, signature = self._worker.app, as_signature(action)
        # Not by `apply_async`: nobody waits here for the result.
        outgoing = app.producer.build(signature.task, signature.args, signature.kwargs, signature.options)
        app.producer.publish([outgoing.message])
        logger.info("Task %s[%s] was sent by an election.", signature.task, outgoing.task_id)

    def _say(self, kind: str, fields: dict[str, Any]) -> None:
        self._worker.events.note(kind, fields)
        self._worker.announcer.wake()

    def _drop(self, fault: BadFrame) -> None:
        self._dropped[fault.kind] += 1
        # Once a kind: whoever floods the exchange may not flood the log as well.
        level = logging.WARNING if self._dropped[fault.kind] == 1 else logging.DEBUG
        logger.log(level, "An event of an election was dropped (%s)", printable(str(fault)[:300]))


def _shown(election: str) -> str:
    return printable(election[:100])


def _named(candidate: Candidate) -> str:
    return printable(candidate.name[:200])
