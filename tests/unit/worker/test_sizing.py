"""The prefetch count: what a command adds to it, and what the pool's size makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenq.worker.credit import MOST_AHEAD
from greenq.worker.sizing import Sizing


class Scene:
    """A pool of 3 slots, 4 messages a slot."""

    def __init__(self, *, multiplier: int = 4, chosen: bool = False, by_number: bool = True) -> None:
        self.pool = SimpleNamespace(name="gevent", size=3, can=SimpleNamespace(resize=True), resize=self._resize)
        self.consumer = SimpleNamespace(prefetch=3 * multiplier, by_number=by_number)
        self.resized = 0
        parts: Any = (self.pool, self.consumer, None, self._note)
        self.sizing = Sizing(*parts, multiplier=multiplier, chosen=chosen, most=100, autoscaler=None)

    def _resize(self, size: int) -> None:
        self.pool.size = size

    def _note(self) -> None:
        self.resized += 1


def test_a_changed_count_is_the_consumers_and_wakes_who_asks_for_messages() -> None:
    scene = Scene()
    assert scene.sizing.change_prefetch(5) == 17
    assert (scene.consumer.prefetch, scene.sizing.prefetch, scene.resized) == (17, 17, 1)
    assert scene.sizing.change_prefetch(-7) == 10


def test_one_delivery_stays() -> None:
    scene = Scene()
    assert scene.sizing.change_prefetch(-100) == 1
    assert scene.sizing.change_prefetch(2) == 3


def test_no_limit_stays_no_limit() -> None:
    scene = Scene(multiplier=0)
    assert scene.sizing.change_prefetch(5) == 0
    scene.sizing.change(1)
    assert (scene.consumer.prefetch, scene.resized) == (0, 1)


@pytest.mark.parametrize(("by", "after"), [(5, 4 * 4 + 5), (-3, 4 * 4 - 3), (-100, 4 * 4 - 11)])
def test_what_was_added_stays_when_the_pool_is_resized(by: int, after: int) -> None:
    scene = Scene()
    scene.sizing.change_prefetch(by)
    scene.sizing.change(1)
    assert scene.consumer.prefetch == after


def test_a_changed_count_bounds_what_waits_where_nobody_had_chosen_one() -> None:
    scene = Scene()
    assert scene.sizing.most_ahead() == MOST_AHEAD
    scene.sizing.change_prefetch(5)
    assert scene.sizing.most_ahead() == 17 - 3
