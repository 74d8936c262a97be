"""Workers of the tasks that misbehave, and servers that a test may kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq import GreenQ
from tests.support.ledger import Ledger
from tests.support.node import Node


class Scene:
    """One broker, one ledger, one client app, and workers of `tests.chaos.hostile_tasks` on demand."""

    MODULE = "tests.chaos.hostile_tasks"

    def __init__(
        self, url: str, backend: str, ledger: Ledger, start: Callable[..., Node], started: list[Node], cwd: Path
    ) -> None:
        self.url = url
        self.backend = backend
        self.ledger = ledger
        self._start = start
        self._started = started
        self._cwd = cwd
        self.app = GreenQ("hostile_tasks", broker=url, backend=backend)

    def worker(self, **options: Any) -> Node:
        """A ready worker."""
        return self._start(self.MODULE, **self._options(options))

    def started_worker(self, **options: Any) -> Node:
        """A worker that was started, ready or not."""
        node = Node(self.MODULE, cwd=self._cwd, **self._options(options))
        self._started.append(node)
        node.start()
        return node

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        env = {"GREENQ_BROKER_URL": self.url, "GREENQ_RESULT_BACKEND": self.backend}
        return {"ledger": self.ledger, **options, "env": env | options.get("env", {})}

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task by its short name; returns its AsyncResult."""
        return self.app.send_task(f"{self.MODULE}.{name}", args, {}, **options)

    def send_naps(self, count: int, seconds: float, start: int = 0) -> list[str]:
        """Publish naps; returns their numbers as the ledger has them."""
        names = [str(number) for number in range(start, start + count)]
        for name in names:
            self.send("nap", name, seconds)
        return names

    def length(self) -> int:
        """Messages that wait on the queue."""
        return self.app.producer.publisher().length("celery")


@pytest.fixture
def make_scene(
    ledger: Ledger, start_node: Callable[..., Node], started_nodes: list[Node], tmp_path: Path
) -> Iterator[Callable[..., Scene]]:
    """Make a scene for a broker URL; results go to Redis where the broker is Redis, else to SQLite."""
    made: list[Scene] = []

    def make(url: str, backend: str | None = None) -> Scene:
        default = url if url.startswith("redis") else f"sqlite:///{tmp_path}/results.db"
        made.append(Scene(url, default if backend is None else backend, ledger, start_node, started_nodes, tmp_path))
        return made[-1]

    yield make
    for scene in made:
        scene.app.close()


@pytest.fixture
def scene(broker_url: str, make_scene: Callable[..., Scene]) -> Scene:
    """A scene on each broker in turn."""
    return make_scene(broker_url)


@pytest.fixture
def redis_scene(redis_url: str, make_scene: Callable[..., Scene]) -> Scene:
    """A scene on Redis, for what does not depend on the broker."""
    return make_scene(redis_url)
