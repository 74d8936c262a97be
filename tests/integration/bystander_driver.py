"""Thousands of expiring tasks among busy bystanders, in a process of its own: `bystander_driver.py POOL COUNT`.

The real pool, executor and limits; no broker. Every task has limits of its own, different from all others, so that
whoever is struck can tell whether it was meant. Prints what happened as JSON.
"""

from __future__ import annotations

import sys

from greenq.runtime.patching import patch

patch(sys.argv[1])

import _thread  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import random  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402

from greenq import GreenQ  # noqa: E402
from greenq._speedups import decode_parts  # noqa: E402
from greenq.exceptions import HardTimeLimit, SoftTimeLimitExceeded  # noqa: E402
from greenq.execution.executor import Executor  # noqa: E402
from greenq.execution.limits import Limits  # noqa: E402
from greenq.model import Outcome, Request  # noqa: E402
from greenq.pools import table  # noqa: E402
from greenq.pools.base import PoolOptions  # noqa: E402
from greenq.wire.serializers import Accept  # noqa: E402

POOL, COUNT = sys.argv[1], int(sys.argv[2])
SIZE = 1 if POOL == "solo" else 25
BYSTANDERS = 0 if POOL == "solo" else 5  # tasks; each with a thread (a greenlet, where patched) of its own
THREADS = 2
WAITS, COMPUTES = ((0.001, 0.006) if POOL == "solo" else (0.002, 0.050)), (0.001, 0.006)  # seconds; ranges of limits
LOOK = 0.001  # seconds between two looks of the service thread, and two nudges

app = GreenQ("bystanders", broker_url="memory://", task_ignore_result=True)
dice = random.Random(5)
wrong: list[str] = []
struck: Counter[str] = Counter()
turns: Counter[str] = Counter()
over = threading.Event()


def compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(20))


def stand_by(name: str) -> None:
    """Busy, and never the one that is meant."""
    try:
        while not over.is_set():
            compute(0.0005)
            turns[name] += 1
            time.sleep(0.0002)
    except BaseException as error:
        wrong.append(f"bystander {name}: {error!r}")
        raise


@app.task(name="bystander")
def bystander(name: str) -> None:
    beside = threading.Thread(target=stand_by, args=(f"thread of {name}",))
    beside.start()
    stand_by(name)
    beside.join()


@app.task(name="victim", bind=True)
def victim(self, how: str, seconds: float) -> None:  # type: ignore[no-untyped-def]
    mine = self.request.message
    if how == "leaves a thread":
        # Not by `threading`: struck in its `start`, that leaves the new thread half registered.
        _thread.start_new_thread(stand_by_shortly, (mine.id,))
    while True:
        try:
            _spend(how, seconds)
        except SoftTimeLimitExceeded as error:
            struck["soft"] += 1
            if error.args != (mine.soft_limit,):
                wrong.append(f"{mine.id}: {error!r}, its own is {mine.soft_limit}")
            if how == "swallows":
                continue
            return
        except HardTimeLimit as error:
            struck["hard"] += 1
            if error.args != (mine.hard_limit,):
                wrong.append(f"{mine.id}: {error!r}, its own is {mine.hard_limit}")
            raise
        if how != "swallows":
            return


def stand_by_shortly(name: str) -> None:
    try:
        for _ in range(20):
            compute(0.0001)
            time.sleep(0.001)
    except BaseException as error:
        wrong.append(f"left by {name}: {error!r}")


def _spend(how: str, seconds: float) -> None:
    if how == "sleeps":
        time.sleep(seconds)
    elif how == "in pieces":
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            time.sleep(0.0005)
            compute(0.0005)
    else:
        compute(min(seconds, 0.1))  # struck much later than its limit, it has ended by itself


def requests() -> Iterator[Request]:
    for number in range(BYSTANDERS):
        yield request(f"bystander{number}", "bystander", (f"b{number}",), None, None)
    for number in range(COUNT):
        kind = dice.choice(["soft", "hard", "both"])
        how = dice.choice(["sleeps", "sleeps", "sleeps", "computes", "in pieces", "near", "leaves a thread"])
        if kind == "both" and number % 4 == 0:
            how = "swallows"
        own = dice.uniform(*(WAITS if how in ("sleeps", "in pieces") else COMPUTES)) + number * 1e-9
        soft = own if kind != "hard" else None
        hard = own * 1.5 if kind == "both" else own if kind == "hard" else None
        # "near": it ends by itself at about the time at which it is struck.
        seconds = own + dice.uniform(-0.001, 0.008) if how == "near" else 60.0
        yield request(str(number), "victim", (how, seconds), hard, soft)


def request(
    task_id: str, name: str, args: tuple[object, ...], hard: float | None, soft: float | None
) -> Request:
    headers = {"task": name, "id": task_id, "timelimit": [hard, soft]}
    body = json.dumps([args, {}, {}])
    return decode_parts(headers, {}, "application/json", "utf-8", body, "celery", task_id)


class Run:
    """Feeds the pool until every victim has ended, then lets the bystanders go."""

    def __init__(self) -> None:
        made = table.load(POOL)
        self.runtime = made.make_runtime()
        self.runtime.attach()
        self.pool = made.make_pool(PoolOptions(SIZE), self.runtime)
        self.limits = Limits(app.conf)
        self.executor = Executor(
            app.finalize(), "w@h", Accept.of(("json",)), self.limits, keep_results=False, store=print
        )
        self.outcomes: dict[str, list[str]] = {}
        self.threads = [threading.Thread(target=stand_by, args=(f"t{n}",)) for n in range(THREADS)]

    def serve(self) -> None:
        sys.setswitchinterval(0.001)
        self.pool.start(self.executor.run, self.done)
        service = self.runtime.isolated(self.service, name="service")
        self.runtime.spawn(self.feed, name="feed")
        self.pool.serve()
        service.join(5.0)

    def service(self) -> None:
        """The worker's service thread, at a quicker pace."""

        def sleep(seconds: float) -> None:
            self.runtime.sleep(min(seconds, LOOK))

        self.limits.serve(
            self.pool.kill, self.pool.nudge, sleep, lambda: over.is_set() and not self.pool_busy()
        )

    def pool_busy(self) -> bool:
        return bool(self.pool.free() < self.pool.size)

    def done(self, request: Request, outcome: Outcome) -> None:
        self.limits.end(request)
        words = f"{outcome.state} {outcome.result_text.split('(')[0]}"
        self.outcomes.setdefault(request.id, []).append(words.strip())

    def feed(self) -> None:
        for thread in self.threads:
            thread.start()
        for each in requests():
            while not self.pool.free():
                self.runtime.sleep(0.001)
            self.outcomes[each.id] = []
            self.pool.submit(each)
        while sum(map(len, self.outcomes.values())) < COUNT:
            self.runtime.sleep(0.01)
        over.set()
        self.pool.drain(10.0)
        for thread in self.threads:
            thread.join()
        self.pool.stop()


if __name__ == "__main__":
    logging.disable()  # two lines a task
    began = time.monotonic()
    run = Run()
    run.serve()
    print(
        json.dumps(
            {
                "wrong": wrong,
                "struck": dict(struck),
                "outcomes": Counter(words for said in run.outcomes.values() for words in said),
                "not once": {i: said for i, said in run.outcomes.items() if len(said) != 1},
                "turns": turns,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
