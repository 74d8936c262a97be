"""Fixtures of every room: private servers, broker URLs, workers that always end.

Nothing here patches: whatever needs gevent or eventlet runs in a child process.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest
import redis

from tests.support.ledger import Ledger
from tests.support.node import CeleryNode, Node, celery_node
from tests.support.services import RabbitServer, RedisServer

N = TypeVar("N", bound=Node)

# No test is timed: a busy machine is not a fault of the code.
hypothesis.settings.register_profile("greenq", deadline=None)
hypothesis.settings.load_profile("greenq")


RUNTIMES = {"gevent": "gevent", "eventlet": "eventlet", "solo": "threads", "prefork": "gevent"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--pool NAME`: the leg of one pool."""
    parser.addoption("--pool", choices=sorted(RUNTIMES), help="run only what is tested for each pool, with this one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a leg what it is about."""
    pool = config.getoption("--pool")
    if pool is None:
        return
    kept = [item for item in items if pool_of(item) in (pool, RUNTIMES[pool])]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pool_of(item: pytest.Item) -> str:
    """The pool or runtime a test is parametrized with; "" if it is not."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return str(params.get("pool") or params.get("runtime") or "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped: green with half of the suite left out is the classic trap."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each room passed."""
    passed = (report.nodeid.split("/") for report in terminalreporter.stats.get("passed", []))
    rooms = Counter(parts[1] if len(parts) > 2 else "others" for parts in passed)
    terminalreporter.write_line("   ".join(f"{room} {count} ok" for room, count in sorted(rooms.items())))
    named = re.compile(r"\[(?:.*-)?(" + "|".join(RUNTIMES) + r")(?:-.*)?\]")
    passed_ids = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    legs = Counter(match.group(1) for nodeid in passed_ids if (match := named.search(nodeid)))
    terminalreporter.write_line("   ".join(f"-P {pool} {count} ok" for pool, count in sorted(legs.items())))
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"skipped, which counts as failed: {report.nodeid}", red=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's private redis-server. A test that kills or restarts a server starts its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's Redis, emptied before the test."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitServer]:
    """The session's private RabbitMQ node. A test that kills or restarts a node starts its own."""
    with RabbitServer() as server:
        yield server


@pytest.fixture(scope="session")
def vhost_names() -> Iterator[str]:
    return (f"test{number}" for number in itertools.count())


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitServer, vhost_names: Iterator[str]) -> Iterator[str]:
    """URL of a fresh virtual host of the session's RabbitMQ, removed after the test."""
    name = next(vhost_names)
    yield rabbitmq_server.add_vhost(name)
    rabbitmq_server.delete_vhost(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a database file that does not exist yet, in the test's directory."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture(params=["redis", "rabbitmq", "sqlite"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty broker of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger in the test's directory; hand it to the worker with `ledger=`."""
    return Ledger(tmp_path / "ledger")


def _factory(make: Callable[..., N], cwd: Path, started: list[Node]) -> Callable[..., N]:
    def start(app: str, **options: object) -> N:
        options.setdefault("cwd", cwd)
        options.setdefault("name", f"worker{len(started)}")
        node = make(app, **options)
        started.append(node)
        node.start()
        node.wait_ready()
        return node

    return start


@pytest.fixture
def started_nodes() -> Iterator[list[Node]]:
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.kill()


@pytest.fixture
def start_node(tmp_path: Path, started_nodes: list[Node]) -> Callable[..., Node]:
    """`start_node("tasks", pool="gevent", concurrency=10, options=[...])`: a ready worker; it always ends."""
    return _factory(Node, tmp_path, started_nodes)


@pytest.fixture
def start_celery_node(tmp_path: Path, started_nodes: list[Node]) -> Callable[..., CeleryNode]:
    """The same for a worker of the installed Celery."""
    return _factory(celery_node, tmp_path, started_nodes)
