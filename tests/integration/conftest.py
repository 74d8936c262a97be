"""A client and workers for the application in tests.support.worker_tasks, on any broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq import GreenQ
from tests.support.ledger import Ledger
from tests.support.node import Node


class Stage:
    """One broker, one ledger, one client app, and workers on demand."""

    def __init__(self, url: str, backend: str, ledger: Ledger, start: Callable[..., Node]) -> None:
        self.url = url
        self.backend = backend
        self.ledger = ledger
        self._start = start
        self.app = GreenQ("worker_tasks", broker=url, backend=backend)

    def worker(self, **options: Any) -> Node:
        """A ready worker."""
        env = {"GREENQ_BROKER_URL": self.url, "GREENQ_RESULT_BACKEND": self.backend}
        return self._start(
            "tests.support.worker_tasks", ledger=self.ledger, env=env | options.pop("env", {}), **options
        )

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task by its short name; returns its AsyncResult."""
        return self.app.send_task(f"tests.support.worker_tasks.{name}", args, {}, **options)

    def send_many(self, name: str, count: int, *args: Any, **options: Any) -> list[str]:
        """Publish `count` tasks whose first argument is their number; returns the numbers as the ledger has them."""
        for number in range(count):
            self.send(name, str(number), *args, **options)
        return [str(number) for number in range(count)]


@pytest.fixture
def make_stage(
    ledger: Ledger, start_node: Callable[..., Node], tmp_path: Path
) -> Iterator[Callable[[str], Stage]]:
    """Make a stage for a broker URL; results go to Redis where the broker is Redis, else to SQLite."""
    made: list[Stage] = []

    def make(url: str) -> Stage:
        backend = url if url.startswith("redis") else f"sqlite:///{tmp_path}/results.db"
        made.append(Stage(url, backend, ledger, start_node))
        return made[-1]

    yield make
    for stage in made:
        stage.app.close()


@pytest.fixture
def stage(broker_url: str, make_stage: Callable[[str], Stage]) -> Stage:
    """A stage on each broker in turn."""
    return make_stage(broker_url)


@pytest.fixture
def redis_stage(redis_url: str, make_stage: Callable[[str], Stage]) -> Stage:
    """A stage on Redis, for what does not depend on the broker."""
    return make_stage(redis_url)
