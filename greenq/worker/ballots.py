"""Elections as one node sees them: who stands, who is told to lead, when to decide, what to forget.

Plain data with no clock, broker or thread of its own: `worker.elections` hands in what is heard, and the moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from greenq.exceptions import CommandRefused
from greenq.wire.control import BadFrame
from greenq.wire.elections import Ack, Candidate, Elect

WINDOW = 1.0  # seconds from the first that is heard of an election, or from standing for it, to the decision
MEMORY = 4.0  # seconds after it in which latecomers are told who leads, and the same id is the same election
MOST_ROUNDS = 1_000  # elections remembered, decided ones included
MOST_HEARD = 1_000  # candidates and voters of one election
MOST_STANDING = 64  # elections in which this node may stand at one time


class Standing(NamedTuple):
    """A candidate, and how many acknowledgements had been heard before it was."""

    candidate: Candidate
    ours: bool  # one of greenq's nodes
    acks_before: int


class Decision(NamedTuple):
    """How an election ended here. `leader` is None where nobody was heard to stand."""

    id: str
    leader: Candidate | None
    stood: bool
    won: bool
    topic: str
    action: Mapping[str, Any]


@dataclass(slots=True)
class _Round:
    """One election. `told` is whom the first node that had decided named; `disputed`: another one named another."""

    closes: float
    standing: dict[str, Standing] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    acks: int = 0
    late: int = 0
    stood: bool = False
    topic: str = ""
    action: Mapping[str, Any] = field(default_factory=dict)
    told: Candidate | None = None
    disputed: bool = False
    settled: bool = False
    leader: Candidate | None = None


def leader_of(standing: Collection[Standing], nodes: int) -> Candidate | None:
    """Who leads: the smallest clock, and of equal ones the smallest name; None if nobody stands.

    Celery's nodes do not wait until all have spoken: each decides by whom it has heard of once it has as many
    acknowledgements as there are other nodes. `nodes` is how many took part. If by that rule one of them holds itself
    for the leader, it is: it has acted already.
    """
    needed = max(1, nodes - 1)
    for each in sorted(one for one in standing if not one.ours):
        before = [one.candidate for one in standing if one.acks_before < each.acks_before + needed]
        if min(before) == each.candidate:
            return each.candidate
    return min((one.candidate for one in standing), default=None)


class Ballots:
    """What one node has heard of elections, bounded in number and in time. One caller at a time."""

    def __init__(self, name: str) -> None:
        """`name` is the one this node stands under."""
        self._name = name
        self._rounds: dict[str, _Round] = {}
        self._look = inf  # when the next one is decided or forgotten

    def stand(self, election: str, topic: str, action: Mapping[str, Any], now: float) -> bool:
        """Stand for an election; True if the others are to be told. One that is known already is the same one.

        Raises:
            CommandRefused: this node stands for too many at one time.
        """
        self._forget(now)
        found = self._rounds.get(election)
        if found is not None and (found.stood or found.settled):
            return False
        if sum(one.stood and not one.settled for one in self._rounds.values()) >= MOST_STANDING:
            raise CommandRefused(
                f"election {election[:100]!r}: this node stands for {MOST_STANDING} elections that are not decided "
                "yet, and cannot stand for more: ask again in a second"
            )
        if found is None:
            if len(self._rounds) >= MOST_ROUNDS:
                del self._rounds[next(key for key, one in self._rounds.items() if not one.stood or one.settled)]
            found = self._open(election, now)
        found.stood, found.topic, found.action = True, topic, action
        # What this node says of itself has to come round as well, also when others have begun before.
        found.closes = now + WINDOW
        return True

    def heard(self, elect: Elect, now: float) -> bool:
        """Note that a node stands; True if it is late and has to be answered at once, see `answer`.

        Raises:
            BadFrame: of the kind "full"; there is no room for it.
        """
        self._forget(now)
        found = self._rounds.get(elect.id)
        if found is None:
            if len(self._rounds) >= MOST_ROUNDS:
                raise BadFrame("full", f"{MOST_ROUNDS} elections are remembered")
            found = self._open(elect.id, now)
        if found.settled:
            found.late += 1
            return found.late <= MOST_HEARD and elect.candidate.name != self._name
        known = found.standing.get(elect.candidate.name)
        if known is None and len(found.standing) >= MOST_HEARD:
            raise BadFrame("full", f"{MOST_HEARD} nodes stand")
        if known is None or elect.candidate < known.candidate:
            found.standing[elect.candidate.name] = Standing(elect.candidate, elect.ours, found.acks)
        self._join(found, elect.hostname)
        return False

    def acknowledged(self, ack: Ack) -> None:
        """Note that a node has heard of an election."""
        found = self._rounds.get(ack.id)
        if found is None or found.settled:
            return
        found.acks += 1
        self._join(found, ack.hostname)
        if ack.leader is not None:
            found.disputed = found.disputed or (found.told is not None and found.told != ack.leader)
            found.told = found.told or ack.leader

    def answer(self, election: str) -> Candidate | None:
        """Whom to name in an acknowledgement. Who did not stand never acts, and has no say in who leads."""
        found = self._rounds.get(election)
        return found.leader if found is not None and found.stood else None

    def due(self, now: float) -> list[Decision]:
        """Decide what is to be decided now."""
        if now < self._look:
            return []
        self._forget(now)
        ended = [(key, one) for key, one in self._rounds.items() if not one.settled and one.closes <= now]
        decisions = [self._settle(key, one) for key, one in ended]
        self._look = min((self._next(one) for one in self._rounds.values()), default=inf)
        return decisions

    def wait(self, now: float, most: float) -> float:
        """Seconds until `due` has something to do, at most so many."""
        return max(0.0, min(self._look - now, most))

    def abandon(self) -> list[str]:
        """Stand for nothing any more, since something may not have been heard; returns what this node stood for."""
        given_up = [key for key, one in self._rounds.items() if one.stood and not one.settled]
        for one in self._rounds.values():
            if not one.settled:
                one.settled, one.stood, one.action = True, False, {}
        return given_up

    def __len__(self) -> int:
        return len(self._rounds)

    def _settle(self, election: str, one: _Round) -> Decision:
        one.settled = True
        heard = leader_of(one.standing.values(), len(one.nodes))
        # Another node has decided before: what it held then is in force, whatever has been heard since.
        one.leader = one.told or heard
        mine = one.standing.get(self._name)
        won = one.stood and mine is not None and one.leader == mine.candidate and not one.disputed
        decision = Decision(election, one.leader, one.stood, won, one.topic, one.action)
        one.standing, one.nodes, one.action = {}, set(), {}
        return decision

    def _open(self, election: str, now: float) -> _Round:
        found = self._rounds[election] = _Round(now + WINDOW)
        self._look = min(self._look, found.closes)
        return found

    @staticmethod
    def _join(found: _Round, hostname: str) -> None:
        if len(found.nodes) < MOST_HEARD:
            found.nodes.add(hostname)

    def _forget(self, now: float) -> None:
        if now >= self._look:
            self._rounds = {
                key: one for key, one in self._rounds.items() if not one.settled or now < self._next(one)
            }

    @staticmethod
    def _next(one: _Round) -> float:
        return one.closes + MEMORY if one.settled else one.closes
