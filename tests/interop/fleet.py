"""One broker with clients and workers of both kinds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery
from typing_extensions import Self

from greenq import GreenQ
from tests.support.ledger import Ledger
from tests.support.node import CeleryNode, Node, celery_node


class Fleet:
    """Clients `green` and `stock` (and `elder`, of protocol 1), workers on demand, one ledger for all of them.

    `settings` hold for both clients and are handed to both kinds of workers. As a context manager it ends
    whatever it started.
    """

    def __init__(self, url: str, backend: str, directory: Path, **settings: Any) -> None:
        self.url = url
        self.backend = backend
        self.directory = directory
        self.settings = settings
        self.ledger = Ledger(directory / "ledger")
        self.green = GreenQ("shop", broker=url, backend=backend, **settings)
        self.stock = self._client(settings)
        # A client of its own: Celery looks at task_protocol once.
        self.elder = self._client({**settings, "task_protocol": 1})
        self.nodes: list[Node] = []

    def _client(self, settings: dict[str, Any]) -> Celery:
        app = Celery("shop", broker=self.url, backend=self.backend, set_as_current=False)
        app.conf.update(settings)
        return app

    def green_node(self, name: str = "green", **options: Any) -> Node:
        """A ready worker of greenq."""
        env = {"GREENQ_BROKER_URL": self.url, "GREENQ_RESULT_BACKEND": self.backend}
        node: Node = self._start(Node, "tests.interop.green_app", name, env, options)
        return node

    def stock_node(self, name: str = "stock", **options: Any) -> CeleryNode:
        """A ready worker of Celery."""
        env = {"SHOP_BROKER": self.url, "SHOP_BACKEND": self.backend}
        node: CeleryNode = self._start(celery_node, "tests.interop.stock_app", name, env, options)
        return node

    def _start(self, make: Any, app: str, name: str, env: dict[str, str], options: dict[str, Any]) -> Any:
        settings = {**self.settings, **options.pop("settings", {})}
        env = {**env, "SHOP_SETTINGS": json.dumps(settings)}
        node = make(app, name=name, cwd=self.directory, ledger=self.ledger, env=env, **options)
        self.nodes.append(node)
        node.start()
        return node.wait_ready(40)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task of the shop as Celery's client does."""
        return self.stock.send_task(f"shop.{name}", args, **options)

    def post(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task of the shop as greenq's client does."""
        return self.green.send_task(f"shop.{name}", args, **options)

    def line(self, program: str, *words: str) -> list[str]:
        """The command line of either program against this broker, for subprocess.run."""
        app = {"celery": "stock_app", "greenq": "green_app"}[program]
        return [sys.executable, "-m", program, "-A", f"tests.interop.{app}", *words]

    def env(self) -> dict[str, str]:
        """The environment for `line`."""
        root = str(Path(__file__).resolve().parents[2])
        return os.environ | {
            "PYTHONPATH": root, "SHOP_BROKER": self.url, "SHOP_BACKEND": self.backend,
            "GREENQ_BROKER_URL": self.url, "GREENQ_RESULT_BACKEND": self.backend,
            "SHOP_SETTINGS": json.dumps(self.settings), Ledger.VARIABLE: str(self.ledger.path), "NO_COLOR": "1",
        }  # fmt: skip

    def output(self) -> str:
        """What every worker wrote, for a failing test's message."""
        return "\n".join(f"--- {node.name}\n{node.output()}" for node in self.nodes)

    def close(self) -> None:
        """End every worker and let go of the connections."""
        for node in self.nodes:
            node.kill()
        self.green.close()
        self.stock.close()
        self.elder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
