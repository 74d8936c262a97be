"""What the gates and the clocks ask of each task: bucket, revoked set, timer heap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, cycle
from typing import Any
from uuid import uuid4

from celery.utils.collections import LimitedSet
from kombu.utils.limits import TokenBucket as KombuBucket

from bench.micro.clock import compare
from bench.micro.plain import PlainBucket, PlainHeap, PlainSet
from greenq._speedups import RevokedSet, TimerHeap, TokenBucket

REVOKED = 50_000
RUNNING = 1_000  # tasks with a soft and a hard limit at once
FAR = 1e9


def buckets() -> None:
    """The rate gate's question."""
    turn, other = count(), count()
    ours, plain, kombus = TokenBucket(1e9, 10), PlainBucket(1e9, 10), KombuBucket(1e9, 10)
    compare(
        "TokenBucket.can_consume",
        lambda: ours.can_consume(next(turn)),
        lambda: plain.can_consume(next(other)),
        "plain Python",
    )
    compare("TokenBucket.can_consume", lambda: ours.can_consume(next(turn)), kombus.can_consume, "kombu")


def revoked() -> None:
    """The revoked gate's question, and what a command adds."""
    ids = [str(uuid4()) for _ in range(REVOKED)]
    ours, plain = RevokedSet(REVOKED, 10_800), PlainSet(REVOKED, 10_800)
    limited = LimitedSet(maxlen=REVOKED, expires=10_800)
    ours.update(ids, 1.0)
    for task_id in ids:
        plain.add(task_id, 1.0)
        limited.add(task_id)
    turn, missing = cycle(ids), cycle([str(uuid4()) for _ in range(1000)])
    hit = lambda: ours.contains(next(turn), 2.0)  # noqa: E731
    compare("RevokedSet, hit", hit, lambda: plain.contains(next(turn), 2.0), "plain Python")
    compare("RevokedSet, hit", hit, lambda: next(turn) in limited, "LimitedSet")
    compare(
        "RevokedSet, miss",
        lambda: ours.contains(next(missing), 2.0),
        lambda: plain.contains(next(missing), 2.0),
        "plain Python",
    )
    none, nothing = RevokedSet(), PlainSet(REVOKED, 10_800)
    compare("RevokedSet, empty", lambda: none.contains("x", 2.0), lambda: nothing.contains("x", 2.0), "plain Python")
    add = lambda: ours.add(str(uuid4()), 3.0)  # noqa: E731
    compare("RevokedSet.add when full", add, lambda: plain.add(str(uuid4()), 3.0), "plain Python, uuid4 included")
    compare("RevokedSet.add when full", add, lambda: limited.add(str(uuid4())), "LimitedSet, uuid4 included")
    print(f"RevokedSet: {ours.__sizeof__() / REVOKED:.1f} bytes an id at {REVOKED:,}")


def heaps() -> None:
    """Deadlines: begun and taken back by each task with limits, and popped when they are due."""
    print(f"timer heaps with {2 * RUNNING:,} live deadlines")
    compare("TimerHeap add + cancel", _task(TimerHeap()), _task(PlainHeap()), "plain Python (heapq)")
    compare("TimerHeap add + pop_due", _due(TimerHeap()), _due(PlainHeap()), "plain Python (heapq)")
    ours, plain = _filled(TimerHeap()), _filled(PlainHeap())
    compare("TimerHeap pop_due, nothing due", lambda: ours.pop_due(0.0), lambda: plain.pop_due(0.0), "plain Python")
    compare("TimerHeap next_due", ours.next_due, plain.next_due, "plain Python")


def _filled(heap: Any) -> Any:
    """The heap with deadlines that nobody will see."""
    for number in range(2 * RUNNING):
        heap.add(FAR + number, None)
    return heap


def _task(heap: Any) -> Callable[[], None]:
    """One task more begins and the oldest ends, soft and hard limit each; the clock goes on by a millisecond.

    Every thousand tasks somebody looks what is due, as the service thread does: the plain heap forgets then what
    was cancelled. Limits of 1 s, so that it has to.
    """
    running: list[tuple[Any, Any]] = []
    clock = count()
    _filled(heap)

    def turn() -> None:
        ticks = next(clock)
        now = ticks / RUNNING
        running.append((heap.add(now + 1.0, ticks), heap.add(now + 1.1, ticks)))
        if len(running) > 1:
            for timer in running.pop(0):
                timer.cancel()
        if not ticks % RUNNING:
            heap.pop_due(now)

    return turn


def _due(heap: Any) -> Callable[[], None]:
    """One deadline among the others comes due."""
    clock = count()
    _filled(heap)

    def turn() -> None:
        now = next(clock)
        heap.add(now, None)
        heap.pop_due(now)

    return turn
