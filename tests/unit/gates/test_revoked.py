"""The gate of revoked ids and stamps."""

from __future__ import annotations

import time

from greenq._speedups import RevokedSet
from greenq.gates.revoked import RevokedGate, RevokedStamps
from greenq.model import VerdictKind
from tests.support.panel import make_request


def test_an_id_or_a_stamp_that_is_revoked_is_dropped_and_nothing_else() -> None:
    ids, stamps = RevokedSet(10, 60), RevokedStamps(10, 60)
    gate = RevokedGate(ids, stamps)
    assert gate.idle
    gate.idle = False  # as whoever adds does
    plain = make_request("plain")
    carried = {"tenant": ["a", "b"], "n": 5, "x": "y"}
    stamped = make_request("stamped", stamped_headers=["tenant", "n"], stamps=carried)
    assert gate(plain, 0.0) is None
    assert gate(stamped, 0.0) is None
    now = time.monotonic()
    for header, value in (("tenant", "c"), ("x", "y"), ("tenants", "a")):  # "x" is no stamped header
        stamps.add(header, value, now)
    assert gate(stamped, 0.0) is None
    stamps.add("n", "5", now)
    verdict = gate(stamped, 0.0)
    assert verdict is not None
    assert (verdict.kind, verdict.reason) == (VerdictKind.DROP, "revoked")
    assert gate(plain, 0.0) is None
    ids.add("plain", now)
    assert gate(plain, 0.0) is not None


def test_headers_that_are_not_what_they_should_be_carry_no_stamps() -> None:
    stamps = RevokedStamps()
    stamps.add("tenant", "a", 0.0)
    for headers in (
        {"stamped_headers": ["tenant"]},
        {"stamped_headers": ["tenant", 5, None], "stamps": ["tenant"]},
        {"stamped_headers": ["tenant"], "stamps": {"tenant": {"a": 1}}},
        {"stamped_headers": [], "stamps": {"tenant": "a"}},
    ):
        request = make_request("odd", **headers)
        assert not stamps.carried_by(request, 1.0), headers
    assert not make_request("none").stamped
    assert make_request("some", stamped_headers=["tenant"], stamps={"tenant": "a"}).stamped


def test_stamps_are_bounded_and_expire_oldest_first() -> None:
    stamps = RevokedStamps(3, ttl=10.0)
    for number in range(5):
        stamps.add("n", str(number), float(number))
    assert [value for (_, value), _ in stamps.items()] == ["2", "3", "4"]
    stamps.add("n", "2", 5.0)
    stamps.add("n", "5", 6.0)
    assert [value for (_, value), _ in stamps.items()] == ["4", "2", "5"]
    assert stamps.contains("n", "4", 13.9)
    assert not stamps.contains("n", "4", 14.0)
    stamps.purge(14.0)
    assert [value for (_, value), _ in stamps.items()] == ["2", "5"]
