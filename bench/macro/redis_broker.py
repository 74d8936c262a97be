"""What the Redis transport and the Redis results cost: messages a second, client CPU a message, wake-up times.

Run it with `python -m bench.macro.redis_broker`; it starts a private redis-server. Rates depend on the
machine; CPU a message and the ratio to stock kombu in the same run are the figures to compare.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from kombu import Connection, Queue

from greenq.model import Record
from greenq.results.redis import RedisResults
from greenq.transports.redis import open_store
from tests.support.redis_proxy import envelope
from tests.support.services import RedisServer

Row = tuple[str, float, float, float]  # what, messages a second, client CPU and server CPU us a message

MESSAGES = 20_000
STOCK_MESSAGES = 3_000
ROUNDS = 3
BATCHES = (1, 10, 100)
FILL = 1_100  # bytes a message, as Celery's are


class Cost:
    """Wall and CPU time of this process, and CPU time of the server, over a block."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.wall = self.cpu = self.server = 0.0

    def _server_cpu(self) -> float:
        info = self._client.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    @contextmanager
    def measured(self) -> Iterator[None]:
        server = self._server_cpu()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall = time.perf_counter() - wall
        self.cpu = time.process_time() - cpu
        self.server = self._server_cpu() - server

    def row(self, what: str, count: int) -> Row:
        return what, count / self.wall, self.cpu / count * 1e6, self.server / count * 1e6


def show(rows: list[Row]) -> None:
    print(f"{'':44} {'msgs/s':>10} {'client us':>10} {'redis us':>9}   median (range of client us)")
    for name in dict.fromkeys(row[0] for row in rows):
        found = [row for row in rows if row[0] == name]
        rate = statistics.median(row[1] for row in found)
        cpu = statistics.median(row[2] for row in found)
        server = statistics.median(row[3] for row in found)
        spread = f"{min(row[2] for row in found):.1f}-{max(row[2] for row in found):.1f}"
        print(f"{name:44} {rate:10.0f} {cpu:10.2f} {server:9.1f}   ({spread})")


def fill(client: redis.Redis, count: int) -> None:
    client.flushdb()
    body = envelope(1, filler="x" * (FILL - len(envelope(1))))
    for start in range(0, count, 1000):
        client.lpush("q", *[body] * min(1000, count - start))


def consume(url: str, client: redis.Redis, batch: int) -> Row:
    fill(client, MESSAGES)
    store = open_store(url, "bench", {})
    store.length("q")
    cost, done = Cost(client), 0
    with cost.measured():
        while held := store.claim(["q"], batch):
            store.settle([delivery.tag for delivery in held])
            done += len(held)
    store.close()
    assert done == MESSAGES
    return cost.row(f"claim + settle, N={batch}", MESSAGES)


def consume_by_kombu(url: str, client: redis.Redis, transport: str | None, count: int) -> Row:
    fill(client, count)
    cost = Cost(client)
    got: list[int] = []

    def receive(message: Any) -> None:
        message.ack()
        got.append(1)

    with Connection(url, transport=transport) as connection:
        consumer = connection.Consumer([Queue("q")], on_message=receive)
        with consumer, cost.measured():
            while len(got) < count:
                connection.drain_events(timeout=5)
    return cost.row(f"kombu Consumer + ack, {'ours' if transport else 'stock'}", count)


def results(url: str, client: redis.Redis) -> Iterator[Row]:
    payload = b'{"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "task_id": "%d"}'
    records = [Record(f"{n}", "SUCCESS", payload % n, "", 86400.0) for n in range(MESSAGES)]
    ours = RedisResults(url)
    ours.read(["warm"])
    for size in (100, 10, 1):
        client.flushdb()
        cost = Cost(client)
        part = records[: MESSAGES if size > 1 else MESSAGES // 4]
        with cost.measured():
            for start in range(0, len(part), size):
                ours.store(part[start : start + size])
        yield cost.row(f"results: our script, {size} a call", len(part))
    ours.close()
    client.flushdb()
    cost = Cost(client)
    wire = RedisResults(url)._wire  # noqa: SLF001  the same raw connection, without the check for SUCCESS
    with cost.measured():
        for start in range(0, MESSAGES, 100):
            commands: list[list[str | bytes | int]] = []
            for record in records[start : start + 100]:
                key = f"celery-task-meta-{record.task_id}"
                commands += [["SETEX", key, 86400, record.payload], ["PUBLISH", key, record.payload]]
            wire.pipeline(commands)
    yield cost.row("results: pipelined SETEX + PUBLISH, 100 a call", MESSAGES)
    wire.close()


def blocked(url: str, client: redis.Redis) -> None:
    """How long one script keeps Redis from everybody else."""
    fill(client, MESSAGES)
    store = open_store(url, "bench", {})
    for batch in (100, 10):
        store.claim(["q"], batch)
        client.config_resetstat()
        for _ in range(50):
            store.claim(["q"], batch)
        micros = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
        print(f"one claim of {batch} blocks Redis for {micros:.0f} us")
    store.close()


def latencies(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    p50, p99 = ordered[len(ordered) // 2] * 1e6, ordered[len(ordered) * 99 // 100] * 1e6
    print(f"{name:60} p50 {p50:6.0f} us   p99 {p99:6.0f} us   max {ordered[-1] * 1e6:6.0f} us")


def wake_ups(url: str, name: str, count: int = 300) -> None:
    """From before the LPUSH in another thread to the message in hand, on an idle consumer."""
    store, found = open_store(url, "bench", {}), []
    with redis.Redis.from_url(url) as client:
        sent: list[float] = []
        go = threading.Event()

        def send() -> None:
            for _ in range(count):
                go.wait()
                go.clear()
                time.sleep(0.005)
                sent.append(time.perf_counter())
                client.lpush("q", b"{}")

        thread = threading.Thread(target=send)
        thread.start()
        for _ in range(count):
            go.set()
            while not (held := store.claim(["q"], 1)):
                store.wait(["q"], 5)
            found.append(time.perf_counter())
            store.settle([held[0].tag])
        thread.join()
    store.close()
    latencies(f"idle wake-up, publish to claimed, {name}", [b - a for a, b in zip(sent, found, strict=True)])


def result_waits(url: str, name: str, count: int = 300) -> None:
    """From before the store in another thread to the payload in the waiter's hand."""
    ours, sender = RedisResults(url), RedisResults(url)
    times: list[float] = []
    for number in range(count):
        sent: list[float] = []

        def send(number: int = number, sent: list[float] = sent) -> None:
            time.sleep(0.005)
            sent.append(time.perf_counter())
            sender.store([Record(f"{name}{number}", "SUCCESS", b'{"status": "SUCCESS"}', "", 60.0)])

        thread = threading.Thread(target=send)
        thread.start()
        ours.wait(f"{name}{number}", lambda payload: True, 5)
        times.append(time.perf_counter() - sent[0])
        thread.join()
    ours.close()
    sender.close()
    latencies(f"result, store to waiter, {name}", times)


GREEN: dict[str, Callable[[], str]] = {
    "threads": lambda: "",
    "gevent": lambda: "from gevent import monkey; monkey.patch_all(); ",
    "eventlet": lambda: "import eventlet; eventlet.monkey_patch(); ",
}


def in_a_child(url: str, library: str) -> None:
    code = f"{GREEN[library]()}from bench.macro import redis_broker as b; "
    code += f"b.wake_ups({url!r}, {library!r}); b.result_waits({url!r}, {library!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def main() -> None:
    with RedisServer() as server, redis.Redis(port=server.port) as client:
        rows: list[Row] = []
        for _ in range(ROUNDS):
            rows += [consume(server.url, client, batch) for batch in BATCHES]
            ours = "greenq.transports.redis:Transport"
            rows.append(consume_by_kombu(server.url, client, ours, MESSAGES))
            rows.append(consume_by_kombu(server.url, client, None, STOCK_MESSAGES))
            rows += results(server.url, client)
        show(rows)
        blocked(server.url, client)
        client.flushdb()
        sys.stdout.flush()
        for library in GREEN:
            in_a_child(server.url, library)


if __name__ == "__main__":
    main()
