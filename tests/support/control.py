"""A listener over a panel without a worker, in a thread of the test, and clients that ask it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

from greenq.config import Settings
from greenq.control import Registry, default_registry
from greenq.control.client import Control
from greenq.control.listener import Listener
from greenq.runtime.threads import ThreadsRuntime
from tests.support.panel import FakePanel
from tests.support.processes import wait_for


@dataclass
class Ear:
    """One listener and what it was made of."""

    listener: Listener
    panel: FakePanel
    url: str
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self.listener.run, args=(self.stopping.is_set,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self.thread is not None:
            self.thread.join(10)
            assert not self.thread.is_alive(), "the listener does not stop"

    @property
    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


@contextmanager
def listening(
    url: str,
    hostname: str = "w@h",
    *,
    registry: Registry | None = None,
    settings: Settings | None = None,
    wait: bool = True,
) -> Iterator[Ear]:
    """A listener at work, ended on the way out."""
    conf = settings or Settings({})
    panel = FakePanel(hostname, conf)
    runtime = ThreadsRuntime()
    runtime.attach()
    listener = Listener(conf, url, hostname, registry or default_registry(), panel, runtime)
    ear = Ear(listener, panel, url)
    ear.start()
    try:
        if wait:
            wait_for(lambda: listener.connected, 10, f"the listener of {hostname} on {url}")
        yield ear
    finally:
        ear.stop()


def client_of(url: str, settings: Settings | None = None) -> Control:
    """greenq's client for that broker; use it as a context manager."""
    app = SimpleNamespace(conf=settings or Settings({}), broker=SimpleNamespace(url=url))
    return Control(app)
