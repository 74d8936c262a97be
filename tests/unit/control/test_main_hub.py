"""A verb posted from the service thread to the main hub."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from greenq.control import Accepted, MainHub
from tests.support.processes import wait_for


class Hub:
    """A main hub that turns when the test says so."""

    def __init__(self) -> None:
        self.posted: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.turning = True

    def call_soon(self, fn: Callable[..., object], *args: object) -> None:
        self.posted.append((fn, args))
        if self.turning:
            self.turn()

    def turn(self) -> None:
        while self.posted:
            fn, args = self.posted.pop(0)
            fn(*args)

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)


def hub_of(runtime: Any, patience: float = 0.05) -> MainHub:
    return MainHub(runtime, lambda: "proj.loop[id-1]", patience)


def test_the_value_comes_back() -> None:
    assert hub_of(Hub()).post(lambda a, b: a + b, 1, 2) == 3


def test_what_the_verb_raises_comes_back() -> None:
    def verb() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        hub_of(Hub()).post(verb)


def test_a_blocked_hub_is_answered_for_and_the_verb_runs_later(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    done: list[int] = []
    hub.turning = False
    with pytest.raises(Accepted) as caught:
        hub_of(hub).post(done.append, 1)
    assert caught.value.blocker == "proj.loop[id-1]"
    assert done == []
    hub.turn()
    assert done == [1]
    assert not caplog.records


def test_a_verb_that_fails_after_it_was_accepted_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    hub.turning = False
    with pytest.raises(Accepted):
        hub_of(hub).post(lambda: 1 / 0)
    hub.turn()
    assert "accepted failed" in caplog.text


def test_a_verb_that_may_wait_runs_in_a_fiber() -> None:
    class Fibers(Hub):
        def spawn(self, fn: Callable[..., object], *, name: str) -> None:
            spawned.append(name)
            fn()

    spawned: list[str] = []
    assert hub_of(Fibers()).run(lambda a: a + 1, 1) == 2
    assert spawned == ["command"]


def test_an_answer_that_takes_a_while_is_waited_for() -> None:
    hub = Hub()
    hub.turning = False
    poster = threading.Thread(target=lambda: (wait_for(lambda: hub.posted, 5), hub.turn()))
    poster.start()
    assert hub_of(hub, patience=5.0).post(lambda: "late") == "late"
    poster.join()
