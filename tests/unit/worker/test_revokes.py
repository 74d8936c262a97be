"""What a worker keeps of revokes: its own before those it is told of, within its bounds."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest

from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.runtime.threads import ThreadsRuntime
from greenq.wire.control import LogicalClock
from greenq.worker.revokes import Revocations


def make(**settings: Any) -> Revocations:
    return Revocations(Settings({}).copy(**settings), "w@h", LogicalClock(), ThreadsRuntime())


def test_what_a_neighbour_tells_never_takes_the_place_of_what_was_revoked_here() -> None:
    kept = make(worker_revokes_max=1_000)
    own = [str(uuid4()) for _ in range(600)]
    kept.add(own)
    told = [str(uuid4()) for _ in range(60_000)]
    assert kept.learn(told)
    assert kept.in_force() == [*own, *told[-400:]], "the newest of them, as far as there is room"
    assert not kept.learn(told)
    later = str(uuid4())
    kept.add([later])
    assert kept.in_force()[-1] == later
    assert len(kept.in_force()) == 1_000


def test_what_the_broker_has_kept_counts_as_if_it_had_been_heard() -> None:
    kept = make(worker_revokes_max=4, worker_revoke_expires=100)
    assert kept.catch_up([("a", 90), ("b", 80)], [(("n", "1"), 99.9)]) == (2, 1)
    assert not kept.gate.idle
    kept.add(["here"])
    assert kept.catch_up([("b", 80), ("c", 50), ("d", 40)], []) == (2, 0), "b is known"
    assert kept.in_force() == ["b", "here", "c", "d"], "the oldest went"
    assert kept.catch_up([("old", 85), ("new", 1)], []) == (1, 0), "what is older than all that is known has no room"
    assert kept.in_force() == ["here", "c", "d", "new"]
    assert kept.catch_up([(f"id-{number}", 0.5) for number in range(10)], []) == (4, 0)
    assert kept.in_force() == ["id-6", "id-7", "id-8", "id-9"]
    assert kept.catch_up([(f"id-{number}", 0.5) for number in range(10)], [])[1] == 0


def test_what_the_broker_has_kept_expires_when_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make(worker_revoke_expires=100)
    kept.catch_up([("a", 99.0), ("b", 10.0)], [(("n", "1"), 99.0)])
    later = time.monotonic() + 50
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (kept.in_force(), kept.stamps_in_force()) == (["b"], {})


def test_nothing_that_is_no_id_is_learned() -> None:
    kept = make()
    assert not kept.learn([5, None, ["a"], {"a": 1}, "x" * 513])
    assert kept.learn(["a", "\ud800", "", "x" * 512])
    assert kept.in_force() == ["a", "\ud800", "", "x" * 512]


def test_stamps_are_told_by_header_and_learned_as_far_as_there_is_room() -> None:
    kept = make()
    kept.add_stamps([("tenant", "a"), ("tenant", "b"), ("n", "5")])
    assert kept.stamps_in_force() == {"tenant": ["a", "b"], "n": ["5"]}
    assert not kept.learn([], [("tenant", "a")])
    assert kept.learn([], [("n", str(number)) for number in range(50_000)])
    assert len(kept.stamps) == kept.stamps.maxlen
    assert kept.stamps_in_force()["tenant"] == ["a", "b"]


@pytest.mark.parametrize("settings", [{"worker_revokes_max": 0}, {"worker_revoke_expires": 0}])
def test_bounds_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="worker_revokes_max .* at least 1"):
        make(**settings)
