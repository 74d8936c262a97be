"""Apps of one test: nothing is left of them for the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq import GreenQ
from greenq.model import TaskMessage


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "RESULT_BACKEND", "APP"):
        monkeypatch.delenv(f"GREENQ_{name}", raising=False)
        monkeypatch.delenv(f"CELERY_{name}", raising=False)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[GreenQ]:
    """An app on an embedded broker of its own, that keeps no results."""
    with GreenQ("proj", broker=f"sqlite:///{tmp_path}/broker.db", backend="disabled://") as app:
        yield app


@pytest.fixture
def sent(app: GreenQ) -> Callable[[], list[dict[str, Any]]]:
    """Takes what waits in the app's default queue off the broker, as envelopes."""
    from greenq.broker.stores import open_store

    def take(queue: str = "celery") -> list[dict[str, Any]]:
        store = open_store(app.broker.url, "test", {})
        try:
            found = store.claim([queue], 10_000)
            store.settle([each.tag for each in found])
        finally:
            store.close()
        return [json.loads(each.raw) for each in found]

    return take


def body_of(message: TaskMessage) -> Any:
    """The decoded body of an uncompressed JSON message."""
    return json.loads(message.body)
