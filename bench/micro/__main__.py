"""Print one line a function: microseconds here, microseconds there, and how many times faster.

`python -m bench.micro` takes a quarter of a minute. Both sides alternate, and each keeps its best of seven:
the neighbours on a small machine can only make a loop slower.
"""

from __future__ import annotations

import heapq
import json
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import count, cycle
from typing import Any
from uuid import uuid4

from celery.utils.collections import LimitedSet
from kombu.transport.virtual import Message
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads
from kombu.utils.limits import TokenBucket as KombuBucket

from greenq._speedups import RevokedSet, TimerHeap, TokenBucket, decode_envelope, plain_json
from greenq.wire.body import decode_body
from greenq.wire.messages import build_task_message, to_envelope
from greenq.wire.results import decode_meta, encode_success
from greenq.wire.serializers import Accept
from tests.unit.speedups import oracle

ROUNDS = 7
SECONDS = 0.05  # a round, about
NOW = datetime(2026, 11, 22, 6, 0, tzinfo=timezone.utc)


def compare(name: str, here: Callable[[], object], there: Callable[[], object], against: str) -> None:
    """Time both and print the line."""
    best = {here: float("inf"), there: float("inf")}
    loops = {side: _loops(side) for side in best}
    for _ in range(ROUNDS):
        for side, turns in loops.items():
            began = time.perf_counter()
            for _ in range(turns):
                side()
            best[side] = min(best[side], (time.perf_counter() - began) / turns * 1e6)
    print(f"{name:34} {best[here]:8.2f} us  {best[there]:8.2f} us  {best[there] / best[here]:5.1f}x  {against}")


def _loops(side: Callable[[], object]) -> int:
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        side()
        done += 1
    return max(done, 10)


def message(task_id: str) -> Any:
    """A task message as `.delay(1, 2)` builds it."""
    return build_task_message(
        name="proj.tasks.add",
        args=(1, 2),
        kwargs={},
        task_id=task_id,
        origin="gen1234@host.example",
        routing_key="celery",
        reply_to=task_id,
        now=NOW,
    )


def messages() -> None:
    """A task's way in and out."""
    task_id = str(uuid4())
    made = message(task_id)
    raw = to_envelope(made, task_id)
    request, accept = decode_envelope(raw, "celery", "t"), Accept.of(["json"])
    print(f"envelope of {len(raw)} bytes")
    compare(
        "decode_envelope",
        lambda: decode_envelope(raw, "celery", "t"),
        lambda: oracle.decode(raw),
        "plain Python",
    )
    compare(
        "decode_envelope + decode_body",
        lambda: decode_body(decode_envelope(raw, "celery", "t"), accept),
        lambda: Message(kombu_loads(raw), channel=_Channel(), accept={"application/json"}).decode(),
        "kombu's Message",
    )
    compare(
        "decode_body",
        lambda: decode_body(request, accept),
        lambda: kombu_loads(made.body),
        "kombu, JSON only",
    )
    compare(
        "build_task_message",
        lambda: message(task_id),
        lambda: kombu_dumps(((1, 2), {}, {})),
        "kombu, body only",
    )
    tree = json.loads(raw)
    compare("to_envelope", lambda: to_envelope(made, task_id), lambda: kombu_dumps(tree), "kombu, JSON only")
    compare("plain_json", lambda: plain_json(tree), lambda: kombu_dumps(tree), "kombu")
    stored = encode_success(task_id, 3, date_done=NOW)
    compare(
        "encode_success",
        lambda: encode_success(task_id, 3, date_done=NOW),
        lambda: kombu_dumps({"status": "SUCCESS", "result": 3, "date_done": NOW.isoformat(), "task_id": task_id}),
        "kombu, JSON only",
    )
    compare("decode_meta", lambda: decode_meta(stored, accept), lambda: kombu_loads(stored), "kombu, JSON only")


class _Channel:
    """All that kombu's Message needs to undo base64."""

    @staticmethod
    def decode_body(body: str, _encoding: str) -> bytes:
        return b64decode(body)


def structures() -> None:
    """What the gates ask of each task."""
    clock = count()
    bucket, theirs = TokenBucket(1e9, 10), KombuBucket(1e9, 10)
    compare("TokenBucket.can_consume", lambda: bucket.can_consume(next(clock)), theirs.can_consume, "kombu")

    ids = [str(uuid4()) for _ in range(50_000)]
    revoked, limited, ordered = (
        RevokedSet(),
        LimitedSet(maxlen=50_000, expires=10_800),
        OrderedDict[str, float](),
    )
    revoked.update(ids, 1.0)
    for task_id in ids:
        limited.add(task_id)
        ordered[task_id] = 1.0
    turn, missing = cycle(ids), cycle([str(uuid4()) for _ in range(1000)])
    empty = RevokedSet()
    compare(
        "RevokedSet, hit",
        lambda: revoked.contains(next(turn), 2.0),
        lambda: next(turn) in limited,
        "LimitedSet",
    )
    compare(
        "RevokedSet, miss",
        lambda: revoked.contains(next(missing), 2.0),
        lambda: next(missing) in ordered,
        "dict",
    )
    compare("RevokedSet, empty", lambda: empty.contains("x", 2.0), lambda: next(missing) in ordered, "dict")
    compare(
        "RevokedSet.add when full",
        lambda: revoked.add(str(uuid4()), 3.0),
        lambda: limited.add(str(uuid4())),
        "LimitedSet, uuid4 included",
    )
    print(f"RevokedSet: {revoked.__sizeof__() / 50_000:.1f} bytes an id at 50,000")

    heap, plain = TimerHeap(), list[tuple[float, int, None]]()
    moment = count()

    def add_and_cancel() -> None:
        heap.add(next(moment) + 1e9, None).cancel()

    def push_and_pop() -> None:
        heapq.heappush(plain, (next(moment) + 1e9, 0, None))
        heapq.heappop(plain)

    compare("TimerHeap add + cancel", add_and_cancel, push_and_pop, "heapq push + pop, one entry")


if __name__ == "__main__":
    messages()
    structures()
