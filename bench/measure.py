"""One run: a worker empties a full queue, and what that cost.

The queue is filled first. On Redis the worker is started, proved to consume with one message, and then the
full list is renamed to its queue: the start of the clock. On RabbitMQ the worker is started on the full
queue, and the clock starts when the queue is first seen to shrink. Both end when the broker holds no
message any more, waiting or unacknowledged. The tasks themselves report nothing, so nothing is measured but
running them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import psutil
from redis import Redis

from bench.load import QUEUE, UNACKED, fill_rabbitmq, fill_redis
from bench.workers import ROOT, MeasuredProcess, Worker, cpu_seconds, machine_cpu
from tests.support.processes import wait_for
from tests.support.services import RabbitServer, RedisServer

_LIMIT = 300.0  # seconds until a run is given up


@dataclass(frozen=True)
class Run:
    """What one run showed."""

    tasks_per_second: float
    cpu_us: float  # CPU microseconds of the worker's whole process tree, per task
    broker_us: float  # CPU microseconds of the broker, per task
    wall: float  # seconds
    rss: float  # MB of the worker's process tree at the end
    foreign: float  # share of one core used meanwhile by anything but worker, broker and bench
    parent_us: float  # what of `cpu_us` is the worker's own process,
    children_us: float  # and what the processes below it are


@dataclass
class Servers:
    """The private servers of one bench, each started when first asked for, and a directory for logs."""

    directory: Path
    _redis: RedisServer | None = None
    _rabbit: RabbitServer | None = None
    samples: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def redis(self) -> RedisServer:
        if self._redis is None:
            self._redis = RedisServer().start()
        return self._redis

    @property
    def rabbit(self) -> RabbitServer:
        if self._rabbit is None:
            self._rabbit = RabbitServer().start()
        return self._rabbit

    def client(self) -> Redis:
        """A connection to the private Redis."""
        return Redis.from_url(self.redis.url)

    def redis_env(self, *, stored: bool = False) -> dict[str, str]:
        """The environment that tells the bench's tasks where broker and results are."""
        return {"BROKER": self.redis.url} | ({"BACKEND": self.redis.url} if stored else {})

    def sample(self, task: str, *, stored: bool = False) -> list[bytes]:
        """Messages of `task` ("noop", "wait") as Celery's producer leaves them in Redis.

        Whether the result is to be stored stands in the message, so there are two kinds.
        """
        key = f"{task} {stored}"
        if key not in self.samples:
            with self.client() as client:
                client.flushall()
                run_client("celery", f"sample_{task}", 200, self.redis_env(stored=stored))
                sent: Any = client.lrange(QUEUE, 0, -1)
                client.flushall()
            self.samples[key] = sent
        return self.samples[key]

    def stop(self) -> None:
        """End the servers by pid."""
        for server in (self._redis, self._rabbit):
            if server is not None:
                server.stop()


@contextmanager
def private_servers() -> Iterator[Servers]:
    """Servers for one bench, ended on the way out."""
    with tempfile.TemporaryDirectory(prefix="gq-bench-") as directory:
        servers = Servers(Path(directory))
        try:
            yield servers
        finally:
            servers.stop()


def run_client(library: str, what: str, count: int, env: dict[str, str]) -> Any:
    """Run bench/compare/client.py in a process of its own and return what it measured."""
    argv = [sys.executable, "-m", "bench.compare.client", library, what, str(count)]
    done = subprocess.run(argv, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[2:])} failed:\n{done.stderr}")
    return json.loads(done.stdout)


@contextmanager
def worker_running(servers: Servers, library: str, **options: Any) -> Iterator[Worker]:
    """A worker that is ended by SIGKILL afterwards; its log is in the message of any failure."""
    output = Path(tempfile.mkstemp(dir=servers.directory, suffix=f"-{library}.log")[1])
    worker = Worker(library, output=output, **options)
    worker.start()
    try:
        yield worker
    except Exception as exc:
        raise RuntimeError(f"{' '.join(worker.argv[2:])}: {exc}\n{worker.output()[-3000:]}") from exc
    finally:
        worker.kill()


class Meter:
    """Reads the kernel's clocks for worker, broker and machine, at the start and at the end."""

    def __init__(self, worker: MeasuredProcess, broker: int) -> None:
        self._worker = worker
        self._broker = psutil.Process(broker)
        self._self = psutil.Process()
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, float, float, float]:
        clock = time.perf_counter()
        parent, children = self._worker.cpu_apart()
        return clock, parent, children, cpu_seconds(self._broker), cpu_seconds(self._self), machine_cpu()

    def finish(self, count: int) -> Run:
        """What `count` tasks took and cost since the start."""
        rss = self._worker.rss()
        wall, parent, children, broker, own, machine = (
            after - before for before, after in zip(self._before, self._read(), strict=True)
        )
        worker = parent + children
        return Run(
            tasks_per_second=count / wall,
            cpu_us=worker / count * 1e6,
            broker_us=broker / count * 1e6,
            wall=wall,
            rss=rss,
            foreign=(machine - worker - broker - own) / wall,
            parent_us=parent / count * 1e6,
            children_us=children / count * 1e6,
        )


def drain_redis(
    servers: Servers,
    library: str,
    task: str,
    count: int,
    *,
    pool: str = "gevent",
    concurrency: int = 500,
    stored: bool = False,
    arguments: tuple[str, ...] = (),
    warm: int = 1,
) -> Run:
    """Measure one worker on `count` messages in Redis, after `warm` others."""
    sample = servers.sample(task, stored=stored)
    env = servers.redis_env(stored=stored)
    with servers.client() as client:
        client.flushall()
        with worker_running(
            servers, library, pool=pool, concurrency=concurrency, env=env, arguments=arguments
        ) as worker:
            fill_redis(client, sample, warm, QUEUE)
            _until_empty(client, worker, 30)
            fill_redis(client, sample, count)
            meter = Meter(worker, servers.redis.pid)
            client.rename("stock", QUEUE)
            _until_empty(client, worker, _LIMIT)
            return meter.finish(count)


def _until_empty(client: Redis, worker: Worker, timeout: float) -> None:
    def empty() -> bool:
        assert worker.running, "the worker ended"
        # Asked every 10 ms, which is some 30 us of the broker's time.
        with client.pipeline(transaction=True) as pipe:
            pipe.llen(QUEUE)
            pipe.hlen(UNACKED)
            return not any(pipe.execute())

    wait_for(empty, timeout, "the queue to be empty")


def drain_rabbitmq(servers: Servers, library: str, task: str, count: int) -> Run:
    """Measure one gevent worker at -c 500 on `count` messages in a fresh virtual host of RabbitMQ."""
    sample = servers.sample(task)
    vhost = f"bench{time.monotonic_ns()}"
    url = servers.rabbit.add_vhost(vhost)
    try:
        fill_rabbitmq(url, sample, count)
        with kombu.Connection(url) as connection:
            channel: Any = connection.channel()
            with worker_running(servers, library, env={"BROKER": url}) as worker:
                wait_for(lambda: _ready(channel) < count, 30, "the queue to shrink")
                meter = Meter(worker, servers.rabbit.pid)
                wait_for(lambda: _ready(channel) == 0, _LIMIT, "the queue to be empty")
                wait_for(lambda: _unsettled(servers.rabbit, vhost) == 0, _LIMIT, "the last acknowledgement")
                return meter.finish(count)
    finally:
        servers.rabbit.delete_vhost(vhost)


def _ready(channel: Any) -> int:
    return int(channel.queue_declare(QUEUE, passive=True).message_count)


def _unsettled(server: RabbitServer, vhost: str) -> int:
    value = server.evaluate(
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{QUEUE}">>)), '
        "[{messages, N}] = rabbit_amqqueue:info(Q, [messages]), N."
    )
    return int(value.strip("{}ok, \n"))
