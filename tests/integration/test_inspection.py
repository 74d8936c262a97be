"""What a node shows of itself when something around it is broken."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.conftest import Stage
from tests.support.processes import wait_for
from tests.support.services import RedisServer


def test_what_has_ended_and_cannot_be_settled_is_ready(
    redis_url: str, make_stage: Callable[[str], Stage]
) -> None:
    stage = make_stage(redis_url)
    with RedisServer() as results:
        node = stage.worker(env={"GREENQ_RESULT_BACKEND": results.url})
        asking = stage.app.control.inspect(node.name, timeout=5)
        slow = stage.send("nap", "slow", 0.5)
        wait_for(lambda: "slow" in stage.ledger.running(), 10, "the task")
        results.kill()
        wait_for(lambda: not stage.ledger.running(), 10, "its end")

        def found() -> dict[str, list[str]]:
            reply = asking.query_task(slow.id)
            assert reply is not None
            return {task_id: value[:1] for task_id, value in reply[node.name].items()}

        wait_for(lambda: found() == {slow.id: ["ready"]}, 10, lambda: f"the task as ready: {found()}")
        stats = asking.stats()
        assert stats is not None
        messages = stats[node.name]["messages"]
        assert (messages["outbox"], messages["unsettled"], messages["running"]) == (1, 1, 0)
        results.restart()
        wait_for(lambda: found() == {}, 15, "the task to be settled")
