"""A fleet on each broker, shared by the tests of one module: they tell their tasks apart by id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis import Redis

from tests.interop.fleet import Fleet
from tests.support.services import RabbitServer, RedisServer

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="module")
def make_fleet(
    request: pytest.FixtureRequest,
    rabbitmq_server: RabbitServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeFleet]:
    """`make_fleet("redis", **settings)`: a fleet with a database or virtual host of its own.

    The server is the session's: handles of Celery's unsubscribe when they are collected, which may be later.
    """
    with ExitStack() as stack:
        made: list[Fleet] = []

        def make(kind: str, **settings: Any) -> Fleet:
            number = len(made)
            directory = tmp_path_factory.mktemp(f"{kind}{number}")
            if kind == "redis":
                url = backend = f"redis://127.0.0.1:{redis_server.port}/{1 + number % 15}"
                with Redis.from_url(url) as client:
                    client.flushdb()
            else:
                name = f"{request.module.__name__.rsplit('.', 1)[-1]}{number}"
                url, backend = rabbitmq_server.add_vhost(name), "rpc://"
                stack.callback(rabbitmq_server.delete_vhost, name)
            made.append(stack.enter_context(Fleet(url, backend, directory, **settings)))
            return made[-1]

        yield make


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def empty_fleet(make_fleet: MakeFleet, broker_kind: str) -> Fleet:
    """A broker of each kind, and nobody on it."""
    return make_fleet(broker_kind)


@pytest.fixture
def own_nodes(empty_fleet: Fleet) -> Iterator[Fleet]:
    """The same, for a test that starts workers itself and leaves none to the next."""
    yield empty_fleet
    while empty_fleet.nodes:
        empty_fleet.nodes.pop().kill()
