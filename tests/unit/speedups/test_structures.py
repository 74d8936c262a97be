"""Token bucket, revoked set and timer heap, each against a model that is easy to believe."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenq._speedups import RevokedSet, Timer, TimerHeap, TokenBucket

UUIDS = [str(UUID(int=n << 100 | n)) for n in range(12)]
NAMES = [UUIDS[0].upper(), UUIDS[1].replace("-", ""), "", "job 7", "x" * 300, "naïve \ud800", UUIDS[2] + "\n"]


class ModelSet:
    """What RevokedSet promises, on an OrderedDict."""

    def __init__(self, maxlen: int, ttl: float) -> None:
        self.maxlen, self.ttl, self.stamps = maxlen, ttl, OrderedDict[str, float]()

    def add(self, task_id: str, now: float) -> None:
        self.stamps.pop(task_id, None)
        if len(self.stamps) == self.maxlen:
            self.stamps.popitem(last=False)
        self.stamps[task_id] = now

    def discard(self, task_id: str) -> None:
        self.stamps.pop(task_id, None)

    def contains(self, task_id: str, now: float) -> bool:
        return task_id in self.stamps and now - self.stamps[task_id] < self.ttl

    def purge(self, now: float) -> None:
        while self.stamps and now - next(iter(self.stamps.values())) >= self.ttl:
            self.stamps.popitem(last=False)


steps = st.tuples(
    st.sampled_from(["add", "add", "add", "discard", "purge", "wait"]),
    st.sampled_from(UUIDS + NAMES),
    st.floats(0, 7),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), st.lists(steps, max_size=80))
def test_the_revoked_set_does_what_an_ordered_dict_would(
    maxlen: int, taken: list[tuple[str, str, float]]
) -> None:
    compiled, model, now = RevokedSet(maxlen, 10.0), ModelSet(maxlen, 10.0), 100.0
    for what, task_id, seconds in taken:
        if what == "add":
            compiled.add(task_id, now)
            model.add(task_id, now)
        elif what == "discard":
            compiled.discard(task_id)
            model.discard(task_id)
        elif what == "purge":
            compiled.purge(now)
            model.purge(now)
        else:
            now += seconds
        assert compiled.ids() == list(model.stamps)
        assert len(compiled) == len(model.stamps)
        assert [compiled.contains(each, now) for each in UUIDS + NAMES] == [
            model.contains(each, now) for each in UUIDS + NAMES
        ]


def test_a_full_table_of_random_ids_loses_and_invents_none() -> None:
    revoked = RevokedSet(1000)
    added = [str(uuid4()) for _ in range(5000)]
    revoked.update(added, 1.0)
    assert revoked.ids() == added[-1000:]
    assert all(revoked.contains(each, 2.0) for each in added[-1000:])
    assert not any(revoked.contains(each, 2.0) for each in added[:4000])


def test_an_update_with_something_else_than_text_changes_nothing() -> None:
    revoked = RevokedSet()
    with pytest.raises(TypeError, match="task id"):
        revoked.update(["a", 5], 1.0)  # type: ignore[list-item]
    assert len(revoked) == 0


@pytest.mark.parametrize("wrong", [{"maxlen": 0}, {"maxlen": -1}, {"ttl": 0.0}, {"ttl": float("nan")}])
def test_a_set_that_could_hold_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RevokedSet(**wrong)
    with pytest.raises(ValueError, match="now"):
        RevokedSet().add("x", float("nan"))


def test_threads_that_add_and_discard_together_leave_a_whole_set() -> None:
    revoked = RevokedSet(500, 1000.0)
    shared = [str(uuid4()) for _ in range(600)] + [f"job-{n}" for n in range(200)]
    failures: list[BaseException] = []

    def churn(offset: int) -> None:
        try:
            for turn in range(12_000):
                task_id = shared[(turn * 7 + offset) % len(shared)]
                if turn % 3 == offset % 3:
                    revoked.discard(task_id)
                else:
                    revoked.add(task_id, float(turn))
                revoked.contains(shared[turn % len(shared)], float(turn))
                if turn % 500 == 0:
                    assert len(set(revoked.ids())) <= 500
        except BaseException as exc:
            failures.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=churn, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    ids = revoked.ids()
    assert len(ids) == len(set(ids)) == len(revoked) <= 500
    assert all(revoked.contains(each, 0.0) for each in ids)
    assert [each for each in shared if revoked.contains(each, 0.0)] == [
        each for each in shared if each in set(ids)
    ]
    for each in ids:
        revoked.discard(each)
    assert len(revoked) == 0
    assert revoked.ids() == []


MEASURE = """
import random, resource, uuid
from greenq._speedups import RevokedSet
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
revoked = RevokedSet(400_000)
maker = random.Random(7)
def fresh():
    return str(uuid.UUID(int=maker.getrandbits(128)))
for _ in range(100): fresh()
before = resident()
for _ in range(400_000): revoked.add(fresh(), 1.0)
first = resident()
for _ in range(400_000): revoked.add(fresh(), 2.0)
print((first - before) / 400_000, (resident() - first) / 400_000, revoked.__sizeof__() / 400_000)
"""


def test_an_id_takes_forty_bytes_and_eviction_takes_no_more() -> None:
    out = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=60
    )
    resident, grown, declared = map(float, out.stdout.split())
    assert 30 < declared <= 40
    assert resident <= 42
    assert grown < 1


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.1, 50),
    st.floats(1, 20),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5), st.booleans()), max_size=40),
)
def test_a_bucket_gives_what_time_has_filled_in(rate: float, capacity: float, taken: list[Any]) -> None:
    bucket, level, now = TokenBucket(rate, capacity), capacity, 1000.0
    bucket.can_consume(now, capacity + 1)
    for passed, tokens, ask in taken:
        now += passed
        level = min(capacity, level + passed * rate)
        if abs(level - tokens) < 1e-6:
            continue  # either answer is right at the edge
        if ask:
            expected = (
                0.0 if level >= tokens else (tokens - level) / rate if tokens <= capacity else float("inf")
            )
            assert bucket.expected_time(now, tokens) == pytest.approx(expected, abs=1e-6)
        else:
            assert bucket.can_consume(now, tokens) is (level >= tokens)
            level -= tokens if level >= tokens else 0


def test_a_clock_that_runs_backwards_takes_nothing_away() -> None:
    bucket = TokenBucket(1.0, 2.0)
    assert bucket.can_consume(100.0, 2.0)
    assert not bucket.can_consume(50.0)
    assert bucket.expected_time(100.5) == pytest.approx(0.5)


def test_a_new_rate_counts_from_now_on() -> None:
    bucket = TokenBucket(1.0)
    assert bucket.can_consume(0.0)
    bucket.rate = 10.0
    assert bucket.expected_time(0.0) == pytest.approx(0.1)
    bucket.rate = 0.0
    assert bucket.expected_time(0.0) == float("inf")


@pytest.mark.parametrize(
    ("rate", "capacity"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (float("inf"), 1.0)]
)
def test_a_bucket_that_makes_no_sense_is_refused(rate: float, capacity: float) -> None:
    with pytest.raises(ValueError, match="bucket"):
        TokenBucket(rate, capacity)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "cancel", "pop"]), st.integers(0, 30), st.integers(0, 400)
        ),
        max_size=250,
    )
)
def test_the_heap_pops_what_is_due_in_order_and_nothing_cancelled(taken: list[tuple[str, int, int]]) -> None:
    heap = TimerHeap()
    model: list[Timer] = []
    for what, when, which in taken:
        if what == "add":
            model.append(heap.add(float(when), object()))
        elif what == "cancel" and model:
            model.pop(which % len(model)).cancel()
        elif what == "pop":
            due = sorted((timer for timer in model if timer.when <= when), key=lambda timer: timer.when)
            assert heap.pop_due(float(when)) == due
            model = [timer for timer in model if timer.when > when]
        assert len(heap) == len(model)
        assert heap.next_due() == min((timer.when for timer in model), default=None)
        assert {id(timer) for timer in heap.live()} == {id(timer) for timer in model}


def test_cancelling_most_of_a_heap_gives_the_memory_back() -> None:
    heap = TimerHeap()
    timers = [heap.add(float(n % 97), n) for n in range(10_000)]
    for timer in timers[:9_900]:
        timer.cancel()
    gc.collect()
    assert len(heap) == 100
    (inner,) = gc.get_referents(heap)
    assert len(inner) < 400
    assert [timer.payload for timer in heap.pop_due(1e9)] == sorted(
        range(9_900, 10_000), key=lambda n: (n % 97, n)
    )


class _Gate:
    pass


def test_a_cancelled_timer_lets_go_of_its_payload_at_once() -> None:
    heap, gate = TimerHeap(), _Gate()
    timer, seen = heap.add(5.0, gate), weakref.ref(gate)
    del gate
    timer.cancel()
    assert seen() is None
    assert timer.cancelled
    assert timer.payload is None
    assert heap.next_due() is None


def test_cancelling_twice_or_after_the_fact_counts_once() -> None:
    heap = TimerHeap()
    first, second = heap.add(1.0, "a"), heap.add(2.0, "b")
    assert heap.pop_due(1.0) == [first]
    first.cancel()
    second.cancel()
    second.cancel()
    assert len(heap) == 0
    third = heap.add(3.0, "c")
    assert heap.pop_due(9.0) == [third]


def test_a_payload_whose_finalizer_uses_the_heap_does_no_harm() -> None:
    heap = TimerHeap()

    class Late:
        def __del__(self) -> None:
            heap.add(0.5, "from a finalizer")
            heap.pop_due(0.0)

    timers = [heap.add(float(n), Late()) for n in range(100)]
    for timer in timers:
        timer.cancel()
    assert len(heap) == 100
    assert {timer.payload for timer in heap.pop_due(1.0)} == {"from a finalizer"}


def test_equal_deadlines_keep_their_order_and_no_deadline_may_be_nothing() -> None:
    heap = TimerHeap()
    for n in range(50):
        heap.add(1.0, n)
    assert [timer.payload for timer in heap.pop_due(1.0)] == list(range(50))
    with pytest.raises(ValueError, match="deadline"):
        heap.add(float("nan"), None)
