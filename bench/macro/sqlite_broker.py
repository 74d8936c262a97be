"""Rates of the embedded SQLite broker at kombu level, and at the store's own, with separate processes.

usage: python bench/macro/sqlite_broker.py [--messages 20000] [--rounds 3]

One message a `Producer.publish`, 330 bytes of arguments; `Consumer` with a callback that calls
`message.ack()`, prefetch 500. Each figure is the median and the range over the rounds; the processes of one
round start together and report their own time, without start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu

from greenq.transports.base import Post
from greenq.transports.sqlite import open_store, register

BODY = [["x" * 320], {"n": 1}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
HEADERS = {"lang": "py", "task": "proj.add", "id": "0f9a1c0e-0000-4000-8000-000000000000", "retries": 0}
ENVELOPE = json.dumps({"body": "x" * 440, "headers": HEADERS, "properties": {}, "content-type": "application/json"})


def publish(url: str, number: int) -> dict[str, float]:
    register()
    with kombu.Connection(url) as connection:
        queue = kombu.Queue("bench", kombu.Exchange("bench"), routing_key="bench")
        queue(connection.default_channel).declare()
        producer = connection.Producer()
        return _timed(
            number,
            lambda: [
                producer.publish(BODY, exchange="", routing_key="bench", headers=dict(HEADERS)) for _ in range(number)
            ],
        )


def consume(url: str, number: int) -> dict[str, float]:
    register()
    seen = 0

    def on_message(body: Any, message: Any) -> None:
        nonlocal seen
        seen += 1
        message.ack()

    with kombu.Connection(url) as connection:
        queue = kombu.Queue("bench", kombu.Exchange("bench"), routing_key="bench")
        with connection.Consumer([queue], callbacks=[on_message], prefetch_count=500):
            connection.drain_events(timeout=60)  # the first message starts the clock

            def drain() -> None:
                while seen < number:
                    connection.drain_events(timeout=60)
                connection.default_channel.connection.flush()

            return _timed(number - 1, drain)


def store_publish(url: str, number: int) -> dict[str, float]:
    store, post = open_store(url, f"bench-{os.getpid()}"), [Post("bench", ENVELOPE.encode())]

    def work() -> None:
        for _ in range(number):
            store.post(post)

    return _timed(number, work)


def store_consume(url: str, number: int) -> dict[str, float]:
    store = open_store(url, f"bench-{os.getpid()}")

    def drain() -> None:
        taken = 0
        while taken < number:
            tags = [delivery.tag for delivery in store.claim(["bench"], 100)]
            if tags:
                store.settle(tags)
                taken += len(tags)
            else:
                store.wait(["bench"], 1.0)

    return _timed(number, drain)


def wake(url: str, number: int) -> dict[str, float]:
    """Milliseconds from before a post to the claim in a waiting consumer, which runs in a child."""
    store = open_store(url, f"bench-{os.getpid()}")
    child = subprocess.Popen(
        [sys.executable, __file__, "--role", "echo", url, str(number)], stdout=subprocess.DEVNULL
    )
    taken: list[float] = []
    while len(taken) < number:
        begun = time.perf_counter()
        store.post([Post("there", b"{}")])
        while not (claimed := store.claim(["back"], 1)):
            store.wait(["back"], 1.0)
        taken.append((time.perf_counter() - begun) * 1000 / 2)  # there and back
        store.settle([claimed[0].tag])
        time.sleep(0.005)
    child.wait(30)
    taken = sorted(taken[10:])  # without the child's start
    return {"p50": taken[len(taken) // 2], "p99": taken[int(len(taken) * 0.99)], "max": taken[-1]}


def echo(url: str, number: int) -> dict[str, float]:
    store = open_store(url, f"bench-{os.getpid()}")
    for _ in range(number):
        while not (claimed := store.claim(["there"], 1)):
            store.wait(["there"], 1.0)
        store.post([Post("back", b"{}")])
        store.settle([claimed[0].tag])
    return {}


ROLES: dict[str, Callable[[str, int], dict[str, float]]] = {
    "publish": publish,
    "consume": consume,
    "store_publish": store_publish,
    "store_consume": store_consume,
    "wake": wake,
    "echo": echo,
}


def _timed(number: int, work: Callable[[], object]) -> dict[str, float]:
    cpu, begun = time.process_time(), time.perf_counter()
    work()
    elapsed = time.perf_counter() - begun
    return {"rate": number / elapsed, "cpu_us": (time.process_time() - cpu) / number * 1e6}


def run_together(roles: list[str], url: str, number: int) -> list[dict[str, float]]:
    children = [
        subprocess.Popen([sys.executable, __file__, "--role", role, url, str(number)], stdout=subprocess.PIPE)
        for role in roles
    ]
    results = []
    for child in children:
        output, _ = child.communicate(timeout=300)
        if child.returncode:
            raise SystemExit(f"a process of the bench failed with {child.returncode}")
        results.append(json.loads(output))
    return results


def line(name: str, rows: list[dict[str, float]]) -> None:
    rates = [row["rate"] for row in rows]
    cpu = [row["cpu_us"] for row in rows]
    print(
        f"{name:<44}{statistics.median(rates):>9,.0f}/s  [{min(rates):,.0f} .. {max(rates):,.0f}]"
        f"  {statistics.median(cpu):.1f} us CPU a message"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", nargs=3, metavar=("ROLE", "URL", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, url, number = options.role
        print(json.dumps(ROLES[role](url, int(number))))
        return
    table: dict[str, list[dict[str, float]]] = {}
    wakes = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'broker.db'}"
            for prefix, level in (("", "kombu: "), ("store_", "store: ")):
                for roles, label in (
                    (["publish"], "published, alone"),
                    (["consume"], "consumed and acknowledged, preloaded"),
                    (["consume", "publish"], ""),
                ):
                    rows = run_together([prefix + role for role in roles], url, options.messages)
                    for row, both in zip(
                        rows, ("consumed while published", "published while consumed"), strict=False
                    ):
                        table.setdefault(level + (label or both), []).append(row)
            wakes += run_together(["wake"], url, 300)
    for name, results in table.items():
        line(name, results)
    for figure in ("p50", "p99", "max"):
        values = [row[figure] for row in wakes]
        print(f"{'wake-up of a waiting consumer, ' + figure:<44}{statistics.median(values):>9.2f} ms")


if __name__ == "__main__":
    main()
