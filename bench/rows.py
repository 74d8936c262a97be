"""The rows of the bench: what is run for each, and the goal it is held against."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.control_rows import CONTROL_ROWS
from bench.load import QUEUE, UNACKED, fill_redis
from bench.measure import Run, Servers, drain_rabbitmq, drain_redis, run_client, worker_running
from bench.plan import Plan, both, each
from bench.pool_rows import POOL_ROWS
from bench.report import Row
from bench.workers import ROOT, Worker
from tests.support.processes import wait_for

# Celery's other pools; prefork as its own default has it, one child per core.
_OTHER_POOLS = (("solo", 1), ("threads", 500), ("prefork", 2))


def _throughput(name: str, ours: list[Run], theirs: list[Run], times: float | None) -> Iterator[Row]:
    yield Row(
        name,
        "tasks/s",
        each(ours, "tasks_per_second"),
        each(theirs, "tasks_per_second"),
        ratio_at_least=times,
    )
    yield Row(f"{name}, worker", "CPU us/task", each(ours, "cpu_us"), each(theirs, "cpu_us"), more_is_better=False)


def redis_noop(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on Redis, results ignored, beside Celery's gevent pool and beside its best."""
    counts = {"greenq": plan.noops, "celery": plan.celery_noops}
    ours, theirs = both(plan, lambda library: drain_redis(servers, library, "noop", counts[library]))
    name = f"{plan.noops:,} no-ops, Redis"
    rate, cpu = _throughput(name, ours, theirs, 30)
    cpu.at_most = 25
    yield rate
    yield cpu
    yield Row(
        f"{name}, broker",
        "CPU us/task",
        each(ours, "broker_us"),
        each(theirs, "broker_us"),
        more_is_better=False,
    )
    best, best_pool = each(theirs, "tasks_per_second"), "gevent"
    for pool, concurrency in _OTHER_POOLS:
        rates = [
            drain_redis(
                servers, "celery", "noop", plan.celery_noops, pool=pool, concurrency=concurrency
            ).tasks_per_second
            for _ in range(plan.runs)
        ]
        print(f"    celery {pool}: {statistics.median(rates):,.0f} tasks/s")
        if statistics.median(rates) > statistics.median(best):
            best, best_pool = rates, pool
    yield Row(name, "tasks/s", rate.greenq, best, f"celery's best: {best_pool}", ratio_at_least=20)


def redis_stored(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on Redis, each result stored."""
    counts = {"greenq": plan.noops, "celery": plan.celery_noops // 2}
    ours, theirs = both(plan, lambda library: drain_redis(servers, library, "noop", counts[library], stored=True))
    yield from _throughput(f"{plan.noops:,} no-ops, Redis, results stored", ours, theirs, 30)


def rabbitmq_noop(servers: Servers, plan: Plan) -> Iterator[Row]:
    """No-ops on RabbitMQ, results ignored."""
    counts = {"greenq": plan.amqp_noops, "celery": plan.celery_noops}
    ours, theirs = both(plan, lambda library: drain_rabbitmq(servers, library, "noop", counts[library]))
    yield from _throughput(f"{plan.amqp_noops:,} no-ops, RabbitMQ", ours, theirs, None)


def _waits(servers: Servers, plan: Plan, concurrency: int, at_most: float) -> Iterator[Row]:
    counts = {"greenq": plan.waits, "celery": plan.celery_waits}
    ours, theirs = both(
        plan,
        lambda library: drain_redis(servers, library, "wait", counts[library], concurrency=concurrency),
    )
    # The ideal: every slot always waiting. Wall over ideal is comparable for different counts.
    ideal = {library: max(count * 0.1 / concurrency, 0.1) for library, count in counts.items()}
    yield Row(
        f"{plan.waits:,} x 100 ms at -c {concurrency}",
        "wall / ideal",
        [run.wall / ideal["greenq"] for run in ours],
        [run.wall / ideal["celery"] for run in theirs],
        more_is_better=False,
        at_most=at_most,
    )


def waits_500(servers: Servers, plan: Plan) -> Iterator[Row]:
    """Tasks that wait 100 ms, 500 at a time."""
    return _waits(servers, plan, 500, 1.05)


def waits_5000(servers: Servers, plan: Plan) -> Iterator[Row]:
    """Tasks that wait 100 ms, 5,000 at a time."""
    return _waits(servers, plan, 5000, 3.0)


def memory(servers: Servers, plan: Plan) -> Iterator[Row]:
    """Resident memory with 500 tasks waiting."""
    found: dict[str, list[float]] = {"greenq": [], "celery": []}
    env = servers.redis_env()
    sample = servers.sample("sleep")
    for library in plan.alternating():
        with servers.client() as client:
            client.flushall()
            with worker_running(servers, library, env=env) as worker:
                fill_redis(client, sample, 500, QUEUE)
                wait_for(lambda: client.llen(QUEUE) == 0, 60, "500 tasks to be taken")
                # Taken is not started: Celery prefetches. CPU standing still means all of them wait.
                _until_idle(worker)
                found[library].append(worker.rss())
            assert library == "celery" or client.hlen(UNACKED) == 500, "greenq holds 500 unacknowledged messages"
    yield Row(
        "500 tasks waiting at -c 500",
        "RSS MB",
        found["greenq"],
        found["celery"],
        more_is_better=False,
        at_most=60,
    )


def _until_idle(worker: Worker) -> None:
    deadline = time.monotonic() + 15
    before = -1.0
    while time.monotonic() < deadline:
        used = worker.cpu()
        if used - before < 0.02:
            return
        before = used
        time.sleep(0.5)
    raise AssertionError("the worker does not come to rest")


def ready(servers: Servers, plan: Plan) -> Iterator[Row]:
    """From starting the process to its ready line, for an app of one module."""
    found: dict[str, list[float]] = {"greenq": [], "celery": []}
    with servers.client() as client:
        client.flushall()
    for library in plan.alternating():
        began = time.perf_counter()
        with worker_running(servers, library, env=servers.redis_env(), loglevel="INFO") as worker:
            wait_for(lambda: "ready." in worker.output() or not worker.running, 30, "the ready line")
            assert worker.running, "the worker ended"
            found[library].append(time.perf_counter() - began)
    yield Row("start to ready", "s", found["greenq"], found["celery"], more_is_better=False, at_most=0.5)


def help_text(_servers: Servers, plan: Plan) -> Iterator[Row]:
    """`greenq --help` beside `celery --help`."""
    found: dict[str, list[float]] = {"greenq": [], "celery": []}
    for library in [*plan.alternating(), *plan.alternating()]:
        began = time.perf_counter()
        program = Path(sys.executable).with_name(library)
        subprocess.run([str(program), "--help"], cwd=ROOT, capture_output=True, check=True)
        found[library].append(time.perf_counter() - began)
    yield Row(
        "greenq --help",
        "s",
        found["greenq"],
        found["celery"],
        "celery --help",
        more_is_better=False,
        at_most=0.15,
    )


def roundtrip(servers: Servers, plan: Plan) -> Iterator[Row]:
    """From sending to holding the result, the worker otherwise idle."""
    found: dict[str, list[float]] = {"greenq": [], "celery": []}
    env = servers.redis_env(stored=True)
    for library in plan.alternating():
        with servers.client() as client:
            client.flushall()
        with worker_running(servers, library, env=env):
            times: list[float] = run_client(library, "roundtrip", 300, env)
            found[library].append(statistics.median(times))
    yield Row("send to result, p50", "ms", found["greenq"], found["celery"], more_is_better=False, ratio_at_least=2)


def producer(servers: Servers, plan: Plan) -> Iterator[Row]:
    """What sending costs: one `.delay`, and a batch of 1,000."""
    single: dict[str, list[dict[str, float]]] = {"greenq": [], "celery": []}
    batches: list[dict[str, float]] = []
    env = servers.redis_env()
    for library in plan.alternating():
        with servers.client() as client:
            client.flushall()
        single[library].append(run_client(library, "delay", 2000, env))
        if library == "greenq":
            batches.append(run_client(library, "batch", 10_000, env))
    yield Row(
        "one .delay",
        "CPU us",
        [run["cpu_us"] for run in single["greenq"]],
        [run["cpu_us"] for run in single["celery"]],
        "celery .delay",
        more_is_better=False,
        ratio_at_least=4,
    )
    yield Row(
        "a batch of 1,000",
        "sent/s",
        [run["per_second"] for run in batches],
        [run["per_second"] for run in single["celery"]],
        "celery .delay",
        ratio_at_least=20,
    )


def sqlite(servers: Servers, plan: Plan) -> Iterator[Row]:
    """The embedded broker below greenq: kombu's producer and consumer, one message at a time."""
    program = str(ROOT / "bench" / "macro" / "sqlite_broker.py")
    rates: dict[str, list[float]] = {"publish": [], "consume": []}
    for number in range(plan.runs):
        url = f"sqlite:///{servers.directory}/{number}.db"
        for role, found in rates.items():
            argv = [sys.executable, program, "--role", role, url, "20000"]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout)["rate"])
    yield Row("SQLite at kombu level, published", "messages/s", rates["publish"], at_least=10_000)
    yield Row("SQLite at kombu level, consumed, acked", "messages/s", rates["consume"], at_least=10_000)


ROWS: dict[str, Callable[[Servers, Plan], Iterator[Row]]] = {
    "redis-noop": redis_noop,
    "redis-stored": redis_stored,
    "rabbitmq-noop": rabbitmq_noop,
    "waits-500": waits_500,
    "waits-5000": waits_5000,
    "memory": memory,
    "ready": ready,
    "help": help_text,
    "roundtrip": roundtrip,
    "producer": producer,
    "sqlite": sqlite,
    **POOL_ROWS,
    **CONTROL_ROWS,
}
