"""What nodes say in an election: two events, read with care (wire.md 7.3, 8.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from greenq.wire.control import CLOCK_MAX, BadFrame
from greenq.wire.events import routing_key

ELECT, ACK = "worker-elect", "worker-elect-ack"
ELECT_KEY, ACK_KEY = routing_key(ELECT), routing_key(ACK)
KEYS = frozenset({ELECT_KEY, ACK_KEY})
VERSION = 1  # `cver`, of Celery's events too
MOST_CHARACTERS = 512  # of an id or a node's name; what is remembered has to be bounded
IDENT = "greenq"  # `sw_ident` in the events of greenq's nodes; Celery's have none


class Candidate(NamedTuple):
    """Who stands; the smallest one leads. `name` is the node's, a dot, and its process id."""

    clock: int
    name: str


class Elect(NamedTuple):
    """A node stands for an election. `ours`: it is one of greenq's."""

    id: str
    hostname: str
    candidate: Candidate
    ours: bool


class Ack(NamedTuple):
    """A node has heard of an election. One of greenq's says too whom it holds for the leader, once it knows."""

    id: str
    hostname: str
    clock: int
    leader: Candidate | None


def elect_fields(election: str, topic: str, action: Mapping[str, Any]) -> dict[str, Any]:
    """What a `worker-elect` says."""
    return {"id": election, "topic": topic, "action": dict(action), "cver": VERSION, "sw_ident": IDENT}


def ack_fields(election: str, leader: Candidate | None) -> dict[str, Any]:
    """What a `worker-elect-ack` says; Celery's nodes pass over the leader."""
    told = {"leader": list(leader)} if leader is not None else {}
    return {"id": election, "sw_ident": IDENT, **told}


def name_of(hostname: str, pid: int) -> str:
    """The name a node stands under, by which equal clocks are told apart."""
    return f"{hostname}.{pid}"


def read_elect(event: object) -> Elect:
    """Check a decoded `worker-elect`.

    Raises:
        BadFrame: of the kind "not_an_object" or "event".
    """
    fields = _mapping(event)
    if missing := [key for key in ("topic", "action", "cver") if key not in fields]:
        raise BadFrame("event", f"{ELECT} without {missing[0]}")
    pid = fields.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 <= pid <= CLOCK_MAX:
        raise BadFrame("event", "pid")
    hostname = _text(fields, "hostname")
    candidate = Candidate(_clock(fields.get("clock")), name_of(hostname, pid))
    return Elect(_text(fields, "id"), hostname, candidate, fields.get("sw_ident") == IDENT)


def read_ack(event: object) -> Ack:
    """Check a decoded `worker-elect-ack`.

    Raises:
        BadFrame: of the kind "not_an_object" or "event".
    """
    fields = _mapping(event)
    leader = None
    if fields.get("sw_ident") == IDENT and fields.get("leader") is not None:
        told = fields["leader"]
        if not isinstance(told, list) or len(told) != 2 or not isinstance(told[1], str):
            raise BadFrame("event", "leader")
        leader = Candidate(_clock(told[0]), told[1][: 2 * MOST_CHARACTERS])
    return Ack(_text(fields, "id"), _text(fields, "hostname"), _clock(fields.get("clock")), leader)


def _mapping(event: object) -> Mapping[str, Any]:
    if not isinstance(event, dict):
        raise BadFrame("not_an_object", type(event).__name__)
    return event


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MOST_CHARACTERS:
        raise BadFrame("event", key)
    return value


def _clock(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= CLOCK_MAX:
        raise BadFrame("event", "clock")
    return value
