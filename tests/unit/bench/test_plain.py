"""The plain structures that the compiled ones are timed against give the same answers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.micro.plain import PlainBucket, PlainHeap, PlainSet
from greenq._speedups import RevokedSet, TimerHeap, TokenBucket

STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "cancel", "pop"]), st.integers(0, 30)), max_size=100)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_both_heaps_pop_the_same_in_the_same_order(steps: list[tuple[str, int]]) -> None:
    compiled, plain = TimerHeap(), PlainHeap()
    timers = []
    for number, (what, value) in enumerate(steps):
        if what == "add":
            timers.append((compiled.add(value, number), plain.add(value, number)))
        elif what == "cancel" and timers:
            for timer in timers.pop(value % len(timers)):
                timer.cancel()
        elif what == "pop":
            expected = [timer.payload for timer in compiled.pop_due(value)]
            assert [timer.payload for timer in plain.pop_due(value)] == expected
            timers = [pair for pair in timers if pair[0].when > value]
        assert plain.next_due() == compiled.next_due()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=50))
def test_both_buckets_let_the_same_tasks_go(steps: list[tuple[int, int]]) -> None:
    compiled, plain, now = TokenBucket(0.5, 4.0), PlainBucket(0.5, 4.0), 0.0
    for tenths, tokens in steps:
        now += tenths / 8
        assert plain.can_consume(now, tokens) == compiled.can_consume(now, tokens)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 4)), max_size=60))
def test_both_sets_remember_the_same_ids(steps: list[tuple[str, int]]) -> None:
    compiled, plain, now = RevokedSet(5, 10.0), PlainSet(5, 10.0), 1.0
    for task_id, seconds in steps:
        now += seconds
        compiled.add(task_id, now)
        plain.add(task_id, now)
        for each in "abcdefgh":
            assert plain.contains(each, now + 5) == compiled.contains(each, now + 5)
