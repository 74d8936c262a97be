"""Rate limits in real workers: they hold, starve nobody, and change while tasks wait."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from greenq.pools import table
from tests.integration.conftest import Stage
from tests.support.asked import Asked
from tests.support.node import Node
from tests.support.processes import wait_for

POOLS = sorted(table.POOLS)
PREFIX = "tests.support.worker_tasks"
LIMITED = f"{PREFIX}.limited"


class RateAsker(Asked):
    """Of rate limits."""

    def limit(self, rate: Any, name: str = LIMITED) -> Any:
        return self("rate_limit", task_name=name, rate_limit=rate)

    def waiting(self) -> int:
        return sum(info["name"] == LIMITED for info in self("reserved"))


def settings(**values: Any) -> dict[str, dict[str, str]]:
    return {"env": {"GREENQ_TEST_SETTINGS": json.dumps(values)}}


def send(stage: Stage, name: str, count: int) -> None:
    stage.app.send_tasks([(f"{PREFIX}.{name}", (str(number),)) for number in range(count)])


def ran(stage: Stage) -> int:
    return sum(stage.ledger.dones().values())


@pytest.mark.parametrize("pool", ["gevent", "prefork"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_500_limited_tasks_hold_up_none_of_100_free_ones(
    pool: str, broker: str, request: pytest.FixtureRequest, make_stage: Any
) -> None:
    stage: Stage = make_stage(request.getfixturevalue(f"{broker}_url"))
    send(stage, "limited", 500)
    free = stage.app.send_tasks([(f"{PREFIX}.add", (number, 0)) for number in range(100)])
    ask = RateAsker(stage.app, stage.worker(pool=pool, concurrency=4))
    began = time.monotonic()
    assert [result.get(timeout=10) for result in free] == list(range(100))
    took = time.monotonic() - began
    assert took < 3, f"the free tasks took {took:.1f} s"
    limited, waiting = ran(stage), ask.waiting()
    assert limited <= 10 * (time.monotonic() - began + 1) + 2
    assert 500 - 10 * (time.monotonic() - began + 1) - 2 <= waiting + limited <= 500 + limited
    assert len(ask("active")) <= 1, "what waits for its rate holds no slot"


@pytest.mark.parametrize("pool", POOLS)
def test_a_new_limit_counts_for_what_waits(stage: Stage, pool: str) -> None:
    ask = RateAsker(stage.app, stage.worker(pool=pool, concurrency=1 if pool == "solo" else 4))
    lasting = {"ok": "new rate limit set successfully"}
    assert ask.limit("2/h") == lasting
    assert f"{LIMITED} [rate_limit=2/h]" in ask("registered")
    send(stage, "limited", 95)
    wait_for(lambda: ran(stage) == 1 and ask.waiting() == 94, 10, lambda: f"{ran(stage)} ran, {ask.waiting()} wait")
    assert ask.limit("100/s") == lasting
    began = time.monotonic()
    wait_for(lambda: ran(stage) >= 60, 5)
    assert time.monotonic() - began > 0.3, "they started all at once"
    assert ask.limit(0) == {"ok": "rate limit disabled successfully"}
    wait_for(lambda: ran(stage) == 95, 2, lambda: f"{ran(stage)} of 95")
    assert set(stage.ledger.dones().values()) == {1}


def test_a_new_limit_counts_for_what_the_broker_holds_too(redis_stage: Stage) -> None:
    ask = RateAsker(redis_stage.app, redis_stage.worker())
    ask.limit("2/h")
    send(redis_stage, "limited", 400)
    wait_for(lambda: ran(redis_stage) == 1 and ask.waiting() == 100, 10)
    wait_for(lambda: redis_stage.app.producer.publisher().length("celery") == 0, 5)
    ask.limit(None)
    wait_for(lambda: ran(redis_stage) == 400, 8, lambda: f"{ran(redis_stage)} of 400")
    assert set(redis_stage.ledger.dones().values()) == {1}


def test_each_change_of_a_limit_lets_no_task_start_for_free(redis_stage: Stage) -> None:
    ask = RateAsker(redis_stage.app, redis_stage.worker())
    ask.limit("1/h")
    redis_stage.send_many("limited", 10)
    wait_for(lambda: ask.waiting() == 9, 10)
    for number in range(1, 20):
        assert ask.limit(f"{number}/h")["ok"]
    assert (ran(redis_stage), ask.waiting()) == (1, 9)


def test_limits_of_settings_hold_and_can_be_switched_off(redis_stage: Stage) -> None:
    node = redis_stage.worker(name="limited", **settings(task_default_rate_limit="1/h"))
    ask = RateAsker(redis_stage.app, node)
    assert f"{PREFIX}.add [rate_limit=1/h]" in ask("registered")
    for number in range(3):
        redis_stage.send("add", number, 0)
    wait_for(lambda: len(ask("reserved")) == 2, 10)
    node.term()
    assert node.wait(10) == 0

    node = redis_stage.worker(name="free", **settings(task_default_rate_limit="1/h", worker_disable_rate_limits=True))
    ask = RateAsker(redis_stage.app, node)
    redis_stage.send_many("limited", 50)
    wait_for(lambda: ran(redis_stage) == 50, 3)
    assert ask.limit("1/h") == {"error": "rate limits are disabled on this node (worker_disable_rate_limits)"}
    assert ask.limit(None) == {"ok": "rate limit disabled successfully"}
    assert redis_stage.send("add", 1, 2).get(timeout=5) == 3


@pytest.mark.parametrize("rate", ["-1/s", -5, "fast", "10/x", "1/s/s", "nan", [1], {"a": 1}, True, "9" * 400])
def test_a_limit_that_makes_no_sense_is_an_error_that_names_it(rate: Any, refusing: RateAsker) -> None:
    reply = refusing.limit(rate)
    assert set(reply) == {"error"}
    assert str(rate)[:50] in reply["error"]
    assert f"{LIMITED} [rate_limit=10/s]" in refusing("registered")


def test_the_limit_of_an_unknown_task_is_an_error(refusing: RateAsker) -> None:
    assert refusing.limit("1/s", name="no.such.task") == {"error": "unknown task"}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One worker for all that is refused."""
    from greenq import GreenQ

    home = tmp_path_factory.mktemp("refusing")
    url = f"sqlite:///{home}/broker.db"
    env = {"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": "disabled://"}
    with Node("tests.support.worker_tasks", cwd=home, env=env) as node:
        app = GreenQ("asks", broker=url)
        yield RateAsker(app, node)
        app.close()


def test_a_limit_of_less_than_once_in_a_lifetime_stops_no_timer(redis_stage: Stage) -> None:
    ask = RateAsker(redis_stage.app, redis_stage.worker())
    assert ask.limit("1e-300/h")["ok"]
    redis_stage.send_many("limited", 3)
    wait_for(lambda: ask.waiting() == 2, 10)
    began = time.monotonic()
    redis_stage.send("nap", "later", 0, countdown=0.5).get(timeout=10)
    assert time.monotonic() - began < 3
    ask.limit(None)
    wait_for(lambda: ran(redis_stage) == 4, 5)


def test_what_expires_while_it_waits_never_runs(redis_stage: Stage) -> None:
    ask = RateAsker(redis_stage.app, redis_stage.worker())
    ask.limit("1/h")
    redis_stage.send("limited", "first")
    wait_for(lambda: ran(redis_stage) == 1, 10)
    redis_stage.send("limited", "late", expires=0.5)
    wait_for(lambda: ask.waiting() == 1, 5)
    time.sleep(0.5)  # the expiry itself is what is waited for
    ask.limit(None)
    wait_for(lambda: ask.waiting() == 0, 5)
    redis_stage.send("nap", "after", 0).get(timeout=10)
    assert redis_stage.ledger.dones()["late"] == 0
