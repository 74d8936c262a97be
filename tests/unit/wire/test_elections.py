"""What is an event of an election and what is not (wire.md 7.3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.wire.control import CLOCK_MAX, BadFrame
from greenq.wire.elections import ACK, ELECT, KEYS, Candidate, ack_fields, elect_fields, read_ack, read_elect
from greenq.wire.events import event

# As Celery 5.7 sends them.
ELECTED: dict[str, Any] = {
    "hostname": "w@h", "utcoffset": 0, "pid": 4711, "clock": 23, "id": "e1", "topic": "task",
    "action": {"task": "proj.add"}, "cver": 1, "timestamp": 1795330158.9, "type": "worker-elect",
}  # fmt: skip
ACKED: dict[str, Any] = {
    "hostname": "w@h", "utcoffset": 0, "pid": 4711, "clock": 24, "id": "e1", "timestamp": 1795330158.9,
    "type": "worker-elect-ack",
}  # fmt: skip


def test_the_keys_are_celerys() -> None:
    assert sorted(KEYS) == ["worker.elect", "worker.elect.ack"]


def test_celerys_events_are_read() -> None:
    assert read_elect(ELECTED) == ("e1", "w@h", Candidate(23, "w@h.4711"), False)
    assert read_ack(ACKED) == ("e1", "w@h", 24, None)


def test_greenqs_events_have_celerys_fields_and_are_known_for_greenqs() -> None:
    made = {**event(ELECT, "w@h", 4711, elect_fields("e1", "task", {"task": "proj.add"})), "clock": 23}
    assert made.keys() >= ELECTED.keys()
    assert read_elect(made) == ("e1", "w@h", Candidate(23, "w@h.4711"), True)
    told = {**event(ACK, "w@h", 4711, ack_fields("e1", Candidate(7, "a@h.1"))), "clock": 24}
    assert told.keys() >= ACKED.keys()
    assert read_ack(told) == ("e1", "w@h", 24, (7, "a@h.1"))
    assert read_ack({**told, **ack_fields("e1", None), "leader": None}).leader is None


@pytest.mark.parametrize("missing", ["hostname", "pid", "clock", "id", "topic", "action", "cver"])
def test_an_elect_without_a_field_is_none(missing: str) -> None:
    with pytest.raises(BadFrame, match=missing):
        read_elect({key: value for key, value in ELECTED.items() if key != missing})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"clock": value} for value in (None, True, -1, 1.5, "23", CLOCK_MAX + 1)),
        *({"pid": value} for value in (None, True, -1, "4711", CLOCK_MAX + 1)),
        *({"id": value} for value in (None, 5, "", "x" * 513, ["e1"])),
        *({"hostname": value} for value in (None, 5, "", "x" * 513)),
    ],
)
def test_an_elect_with_a_wrong_field_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadFrame, match=next(iter(wrong))):
        read_elect({**ELECTED, **wrong})


@pytest.mark.parametrize("leader", [5, "w@h", [], [1], [1, 2], ["1", "w@h"], [True, "w@h"], [1, "w@h", 3], {}])
def test_an_ack_with_a_senseless_leader_is_none(leader: object) -> None:
    with pytest.raises(BadFrame):
        read_ack({**ACKED, "sw_ident": "greenq", "leader": leader})
    assert read_ack({**ACKED, "leader": leader}).leader is None, "only greenq's nodes name one"


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*ELECTED, "leader", "sw_ident"], NESTED)) | NESTED)
def test_anything_is_read_or_refused_as_a_bad_frame(body: Any) -> None:
    for read in (read_elect, read_ack):
        try:
            read(body)
        except BadFrame as fault:
            assert fault.kind in {"not_an_object", "event"}
