"""--autoscale in a real worker: up with the backlog at once, down after a pause, never into a running task."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

from greenq.pools import table
from tests.integration.conftest import Stage
from tests.support.control import client_of
from tests.support.node import Node
from tests.support.processes import wait_for

POOLS = sorted(set(table.POOLS) - {"solo"})
GREEN = [name for name in POOLS if name != "prefork"]
EAGER = {"AUTOSCALE_KEEPALIVE": "1.5"}

RULES = """
from greenq import Autoscaler
from tests.support.worker_tasks import app

class Three(Autoscaler):
    def _maybe_scale(self, req=None):
        if self.qty and self.processes < 3:
            self.scale_up(1)

class Broken(Autoscaler):
    def _maybe_scale(self, req=None):
        raise RuntimeError("no rule")
"""


class Watch:
    """A worker that scales, and what it says of itself."""

    def __init__(self, stage: Stage, node: Node) -> None:
        self.node = node
        self._client = client_of(stage.url)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.__exit__(*exc)

    def stats(self) -> dict[str, Any]:
        """The reply of `inspect stats`."""
        found: dict[str, Any] = self.control("stats")
        return found

    def size(self) -> int:
        """Slots, by what the autoscaler and the pool say, which is the same."""
        stats = self.stats()
        assert stats["autoscaler"]["current"] == stats["pool"]["max-concurrency"]
        return int(stats["autoscaler"]["current"])

    def control(self, name: str, **arguments: Any) -> Any:
        """The reply of one command."""
        replies = self._client.broadcast(name, arguments, self.node.name, reply=True, limit=1, timeout=5)
        return replies[0][self.node.name]  # type: ignore[index]

    def wait_size(self, wanted: Callable[[int], bool], timeout: float = 15) -> None:
        """Wait for a size."""
        wait_for(lambda: wanted(self.size()), timeout, lambda: f"a size, not {self.size()}: {self.node.output()}")


def scaled(stage: Stage, pool: str, bounds: str, **options: Any) -> Watch:
    node = stage.worker(
        pool=pool, concurrency=None, options=[f"--autoscale={bounds}", *options.pop("options", ())], **options
    )
    return Watch(stage, node)


@pytest.mark.alone
@pytest.mark.parametrize("pool", GREEN)
def test_two_slots_become_two_hundred_within_a_second(redis_stage: Stage, pool: str) -> None:
    with scaled(redis_stage, pool, "200,2") as watch:
        assert watch.size() == 2
        assert watch.stats()["prefetch_count"] == 800
        began = time.monotonic()
        sent = redis_stage.send_many("nap", 400, 2.0)
        spent_sending = time.monotonic() - began
        wait_for(lambda: len(redis_stage.ledger.running()) == 200, 10, lambda: f"{watch.stats()}")
        grown = time.monotonic() - began - spent_sending
        assert grown < 1.0
        wait_for(lambda: len(redis_stage.ledger.dones()) == 400, 20)
        assert redis_stage.ledger.check(sent).ok == frozenset(sent)
        assert watch.stats()["autoscaler"] == {"max": 200, "min": 2, "current": 200, "qty": 0}


@pytest.mark.alone
def test_a_backlog_that_was_there_first_is_met_at_once(redis_stage: Stage) -> None:
    redis_stage.send_many("nap", 400, 2.0)
    with scaled(redis_stage, "gevent", "2,200") as watch:
        wait_for(lambda: len(redis_stage.ledger.running()) == 200, 1.0, lambda: f"{watch.stats()}")


@pytest.mark.parametrize("pool", POOLS)
def test_it_grows_to_what_waits_and_shrinks_while_work_trickles_in(redis_stage: Stage, pool: str) -> None:
    with scaled(redis_stage, pool, "8,2", env=EAGER) as watch:
        burst = redis_stage.send_many("nap", 8, 0.5)
        watch.wait_size(lambda size: size == 8)
        began = time.monotonic()
        trickle: list[str] = []
        while watch.size() > 2:
            trickle.append(f"t{len(trickle)}")
            redis_stage.send("nap", trickle[-1], 0.05).get(timeout=10)
            assert time.monotonic() - began < 20, watch.node.output()
        assert time.monotonic() - began > 1.0
        published = [*burst, *trickle]
        wait_for(lambda: redis_stage.ledger.check(published).ok == frozenset(published), 10)
        assert not redis_stage.ledger.check(published).restarted
        watch.node.wait_output(r"Autoscale: 2 slots, after \d")


@pytest.mark.parametrize("pool", POOLS)
def test_new_bounds_count_at_once_and_interrupt_nothing(redis_stage: Stage, pool: str) -> None:
    with scaled(redis_stage, pool, "6,1") as watch:
        sent = redis_stage.send_many("nap", 6, 3.0)
        wait_for(lambda: len(redis_stage.ledger.running()) == 6, 10)
        assert watch.control("autoscale", max=2, min=1) == {"ok": "autoscale now max=2 min=1"}
        stats = watch.stats()
        assert stats["autoscaler"]["max"] == stats["autoscaler"]["current"] == 2
        assert stats["prefetch_count"] == 8
        assert watch.control("autoscale", max=7, min=4) == {"ok": "autoscale now max=7 min=4"}
        assert watch.stats()["prefetch_count"] == 28
        assert watch.size() >= 4
        assert watch.control("autoscale", min=5) == {"ok": "autoscale now max=7 min=5"}
        wait_for(lambda: len(redis_stage.ledger.dones()) == 6, 10)
        check = redis_stage.ledger.check(sent)
        assert (check.ok, check.restarted) == (frozenset(sent), {})


def test_bounds_that_cannot_be_are_an_error_reply_and_change_nothing(redis_stage: Stage) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"max": 1, "min": 3}, "autoscale needs 1 <= min <= max, not min=3 max=1"),
        ({"max": 0}, "autoscale needs 1 <= min <= max"),
        ({"min": -1}, "autoscale needs 1 <= min <= max"),
        ({"max": 10**6}, "a command may let the pool have 50000 slots at most, not 1000000"),
        ({"max": "x"}, "argument 'max' must be int"),
    ]
    with scaled(redis_stage, "gevent", "6,2") as watch:
        for arguments, why in refused:
            assert why in watch.control("autoscale", **arguments)["error"]
            assert watch.stats()["autoscaler"] == {"max": 6, "min": 2, "current": 2, "qty": 0}
        for name in ("pool_grow", "pool_shrink"):
            assert watch.control(name) == {
                "error": f"{name} is not supported with autoscale. Adjust autoscale range instead."
            }
        assert watch.size() == 2


@pytest.mark.parametrize("broker", ["rabbitmq", "sqlite"])
def test_it_grows_on_other_brokers_too(
    broker: str, request: pytest.FixtureRequest, make_stage: Callable[[str], Stage]
) -> None:
    stage = make_stage(request.getfixturevalue(f"{broker}_url"))
    sent = stage.send_many("nap", 120, 1.0)
    with scaled(stage, "gevent", "60,2") as watch:
        wait_for(lambda: len(stage.ledger.running()) == 60, 5, lambda: f"{watch.stats()}")
        assert watch.control("autoscale", max=30) == {"ok": "autoscale now max=30 min=2"}
        assert watch.control("autoscale", max=60) == {"ok": "autoscale now max=60 min=2"}
        wait_for(lambda: stage.ledger.check(sent).ok == frozenset(sent), 20)
        assert not stage.ledger.check(sent).restarted


def test_a_class_of_the_users_own_decides(redis_stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(RULES + "app.conf.worker_autoscaler = 'rules:Three'\n")
    node = rules_worker(redis_stage)
    with Watch(redis_stage, node) as watch:
        redis_stage.send_many("nap", 9, 1.0)
        watch.wait_size(lambda size: size == 3)
        wait_for(lambda: len(redis_stage.ledger.dones()) == 9, 20)
        assert watch.size() == 3
        assert max(redis_stage.ledger.starts().values()) == 1


def test_a_rule_that_raises_is_said_once_and_the_worker_works_on(redis_stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(RULES + "app.conf.worker_autoscaler = 'rules:Broken'\n")
    node = rules_worker(redis_stage)
    for number in range(5):
        assert redis_stage.send("add", number, 1).get(timeout=10) == number + 1
    with Watch(redis_stage, node) as watch:
        assert watch.size() == 2
    assert node.output().count("The autoscaler failed") == 1
    assert "RuntimeError: no rule" in node.output()


def rules_worker(stage: Stage) -> Node:
    """A worker that scales as the module `rules` beside it says."""
    return stage.worker(concurrency=None, options=["--autoscale=20,2", "-I", "rules"])
