"""Who leads, who is told, and what is forgotten."""

from __future__ import annotations

import itertools

import pytest
from kombu.clocks import LamportClock

from greenq.exceptions import CommandRefused
from greenq.wire.control import BadFrame
from greenq.wire.elections import Ack, Candidate, Elect
from greenq.worker import ballots
from greenq.worker.ballots import MEMORY, WINDOW, Ballots, Standing, leader_of

ME = "me@h.1"
ACTION = {"task": "proj.add"}


def elect(name: str, clock: int, election: str = "e", *, ours: bool = True) -> Elect:
    return Elect(election, name.rpartition(".")[0], Candidate(clock, name), ours)


def ack(name: str, leader: Candidate | None = None, election: str = "e") -> Ack:
    return Ack(election, name.rpartition(".")[0], 0, leader)


def standing(name: str, clock: int, acks_before: int = 0, *, ours: bool = True) -> Standing:
    return Standing(Candidate(clock, name), ours, acks_before)


def stood(clock: int = 5, election: str = "e", now: float = 0.0) -> Ballots:
    """Ballots of a node that stands and has heard itself."""
    found = Ballots(ME)
    assert found.stand(election, "task", ACTION, now)
    assert not found.heard(elect(ME, clock, election), now)
    return found


@pytest.mark.parametrize("clocks", list(itertools.product((1, 2, 3), repeat=3)))
def test_the_order_is_celerys(clocks: tuple[int, int, int]) -> None:
    entries = sorted(zip(clocks, ("b@h.1", "a@h.10", "a@h.9"), strict=True))
    stands = [standing(name, clock) for clock, name in entries]
    assert leader_of(stands, 3) == LamportClock().sort_heap(entries)


def test_nobody_leads_where_nobody_stands() -> None:
    assert leader_of([], 3) is None


def test_a_node_of_celerys_that_had_heard_of_all_of_us_gives_way() -> None:
    stands = [standing("g@h.1", 3), standing("c@h.1", 9, ours=False)]
    assert leader_of(stands, 2) == (3, "g@h.1")


def test_a_node_of_celerys_that_has_decided_without_us_leads() -> None:
    # It waited for as many acknowledgements as there are others, which came before we spoke.
    stands = [standing("c@h.1", 9, 0, ours=False), standing("g@h.1", 3, 1)]
    assert leader_of(stands, 2) == (9, "c@h.1")
    assert leader_of(stands, 3) == (3, "g@h.1"), "with one more node it was still waiting"


def test_one_node_wins_after_the_window_and_once() -> None:
    found = stood()
    assert found.due(WINDOW - 0.01) == []
    (decision,) = found.due(WINDOW)
    assert (decision.won, decision.leader, decision.topic, decision.action) == (True, (5, ME), "task", ACTION)
    assert found.due(WINDOW) == []


@pytest.mark.parametrize(("clock", "won"), [(4, False), (5, False), (6, True)])
def test_the_smaller_clock_wins_and_of_equal_ones_the_smaller_name(clock: int, won: bool) -> None:
    found = stood(5)
    found.heard(elect("another@h.1", clock), 0.5)
    (decision,) = found.due(WINDOW)
    assert decision.won is won


def test_who_did_not_stand_never_wins_and_names_nobody() -> None:
    found = Ballots(ME)
    found.heard(elect(ME, 1), 0.0)
    (decision,) = found.due(WINDOW)
    assert (decision.stood, decision.won) == (False, False)
    assert found.answer("e") is None


def test_who_does_not_hear_itself_does_not_win() -> None:
    found = Ballots(ME)
    found.stand("e", "task", ACTION, 0.0)
    (decision,) = found.due(WINDOW)
    assert (decision.leader, decision.won) == (None, False)


def test_the_first_to_decide_decides_for_all_that_have_not() -> None:
    found = stood(5)
    found.acknowledged(ack("fast@h.1", Candidate(9, "fast@h.1")))
    (decision,) = found.due(WINDOW)
    assert (decision.leader, decision.won) == ((9, "fast@h.1"), False)


def test_who_is_named_by_some_only_does_nothing() -> None:
    found = stood(5)
    found.acknowledged(ack("one@h.1", Candidate(5, ME)))
    found.acknowledged(ack("two@h.1", Candidate(9, "two@h.1")))
    (decision,) = found.due(WINDOW)
    assert not decision.won


def test_a_latecomer_is_told_who_leads() -> None:
    found = stood(5)
    found.due(WINDOW)
    assert found.heard(elect("late@h.1", 1), WINDOW + 1)
    assert found.answer("e") == (5, ME)
    assert found.due(WINDOW + 2) == []


def test_an_id_is_one_election_until_it_is_forgotten() -> None:
    found = stood(now=0.0)
    assert not found.stand("e", "task", ACTION, 0.5)
    found.due(WINDOW)
    assert not found.stand("e", "task", ACTION, WINDOW + MEMORY - 0.1)
    assert found.stand("e", "task", ACTION, WINDOW + MEMORY)
    found.heard(elect(ME, 8), WINDOW + MEMORY)
    (decision,) = found.due(2 * WINDOW + MEMORY)
    assert decision.won


def test_who_stands_after_others_waits_until_it_has_been_heard() -> None:
    found = Ballots(ME)
    found.heard(elect("a@h.1", 7), 0.0)
    found.stand("e", "task", ACTION, 0.9)
    assert found.due(WINDOW) == []
    found.heard(elect(ME, 3), 1.1)
    (decision,) = found.due(0.9 + WINDOW)
    assert decision.won


def test_a_command_that_comes_when_all_is_decided_changes_nothing() -> None:
    found = Ballots(ME)
    found.heard(elect("a@h.1", 7), 0.0)
    found.due(WINDOW)
    assert not found.stand("e", "task", ACTION, WINDOW + 0.1)


def test_what_is_abandoned_is_not_won_and_not_begun_again() -> None:
    found = stood()
    found.stand("f", "task", ACTION, 0.0)
    assert found.abandon() == ["e", "f"]
    assert found.abandon() == []
    assert found.due(WINDOW) == []
    assert not found.stand("e", "task", ACTION, WINDOW)
    assert found.answer("e") is None


def test_nothing_is_remembered_for_ever() -> None:
    found = Ballots(ME)
    for number in range(100):
        found.heard(elect("a@h.1", 7, f"e{number}"), 0.0)
    assert len(found) == 100
    assert len(found.due(WINDOW)) == 100
    found.due(WINDOW + MEMORY)
    assert len(found) == 0
    assert found.wait(0.0, 0.2) == 0.2


def test_there_is_a_bound_to_elections_of_others_and_room_for_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballots, "MOST_ROUNDS", 10)
    found = Ballots(ME)
    for number in range(10):
        found.heard(elect("a@h.1", 7, f"e{number}"), 0.0)
    with pytest.raises(BadFrame, match="full"):
        found.heard(elect("a@h.1", 7, "one more"), 0.0)
    assert found.stand("mine", "task", ACTION, 0.0)
    assert len(found) == 10


def test_there_is_a_bound_to_candidates_and_to_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballots, "MOST_HEARD", 10)
    found = stood()
    for number in range(9):
        found.heard(elect(f"a{number}@h.1", 7), 0.0)
    with pytest.raises(BadFrame, match="full"):
        found.heard(elect("b@h.1", 7), 0.0)
    found.heard(elect("a1@h.1", 2), 0.0)  # who is known may say another thing
    found.due(WINDOW)
    assert sum(found.heard(elect(f"c{number}@h.1", 1), WINDOW) for number in range(20)) == 10


def test_there_is_a_bound_to_what_one_node_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballots, "MOST_STANDING", 3)
    found = Ballots(ME)
    for number in range(3):
        found.stand(f"e{number}", "task", ACTION, 0.0)
    with pytest.raises(CommandRefused, match="3 elections"):
        found.stand("one more", "task", ACTION, 0.0)
    found.due(WINDOW)
    assert found.stand("one more", "task", ACTION, WINDOW)
