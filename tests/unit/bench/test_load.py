"""The bench fills queues with copies of real messages that differ in their ids only."""

from __future__ import annotations

import json

from bench.load import copies
from bench.report import Row, table


def _message(task_id: str, tag: str, argument: int) -> bytes:
    headers = {"lang": "py", "task": "bench.noop", "id": task_id, "root_id": task_id}
    properties = {"correlation_id": task_id, "delivery_tag": tag, "delivery_info": {"routing_key": "celery"}}
    return json.dumps({"body": f"{argument}", "headers": headers, "properties": properties}).encode()


def test_copies_have_ids_of_their_own_and_nothing_else_changed() -> None:
    sample = [_message("id-a", "tag-a", 1), _message("id-b", "tag-b", 2)]
    found = [json.loads(raw) for raw in copies(sample, 5)]
    assert [message["body"] for message in found] == ["1", "2", "1", "2", "1"]
    assert len({message["headers"]["id"] for message in found}) == 5
    assert len({message["properties"]["delivery_tag"] for message in found}) == 5
    for message in found:
        task_id = message["headers"]["id"]
        assert message["headers"]["root_id"] == message["properties"]["correlation_id"] == task_id
        assert message["headers"]["task"] == "bench.noop"


def test_a_goal_is_held_against_the_median() -> None:
    row = Row("no-ops", "tasks/s", [30.0, 10.0, 20.0], [1.0, 0.5, 2.0], ratio_at_least=20)
    assert row.ratio == 20
    assert row.met is True
    assert Row("cpu", "us", [30.0, 20.0, 26.0], at_most=25).met is False
    assert Row("cpu", "us", [10.0], [40.0], more_is_better=False, ratio_at_least=4).met is True
    assert Row("other", "us", [10.0]).met is None
    assert "MISSED" in table([Row("cpu", "us", [30.0], at_most=25)])
