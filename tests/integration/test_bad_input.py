"""Rubbish on the queue: refused once with a reason, kept on the dead queue, and the worker goes on."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

import pytest
import redis

from tests.integration.conftest import Stage
from tests.support.processes import wait_for


def body(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


GOOD_BODY = body([[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])


def envelope(headers: Any = None, properties: Any = None, **parts: Any) -> bytes:
    """A good message for `add`, with parts of it replaced."""
    good_headers = {"lang": "py", "task": "tests.support.worker_tasks.add", "id": "bad-one"}
    good_properties = {
        "correlation_id": "bad-one",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "tag",
    }
    whole = {
        "body": GOOD_BODY,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": good_headers | headers if isinstance(headers, dict) else headers or good_headers,
        "properties": good_properties | properties if isinstance(properties, dict) else good_properties,
    }
    return json.dumps(whole | {key.replace("_", "-"): value for key, value in parts.items()}).encode()


BOMB = base64.b64encode(zlib.compress(b"[" + b" " * (200 << 20) + b"]")).decode()

FRAMES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"rubbish", "envelope"),
    "a number": (b"5", "envelope"),
    "a list": (b"[1, 2]", "envelope"),
    "invalid UTF-8": (b'{"body": "\xff\xfe"}', "envelope"),
    "deep nesting": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "envelope"),
    "a huge integer": (b'{"body": ' + b"9" * 5000 + b"}", "envelope"),
    "headers are a list": (envelope(headers=[1]), "envelope|bad_header"),
    "no id": (envelope({"id": None}), "no_id"),
    "an id that is a list": (envelope({"id": ["x"]}), "bad_header"),
    "a task that is a list": (envelope({"task": ["x"]}), "bad_header"),
    "a timelimit that is text": (envelope({"timelimit": "soon"}), "bad_header"),
    "an eta that is no time": (envelope({"eta": "tomorrow"}), "bad_header"),
    "an unknown content type": (envelope(content_type="application/x-evil"), "content_type"),
    "pickle": (envelope(content_type="application/x-python-serialize"), "content_type"),
    "a body that is no base64": (envelope(body="%%%"), "body_encoding"),
    "a body that is no JSON": (envelope(body=base64.b64encode(b"{{{").decode()), "body_decode"),
    "a body that is a number": (envelope(body=body(5)), "body_shape"),
    "a body of two": (envelope(body=body([[], {}])), "body_shape"),
    "args that are an object": (envelope(body=body([{}, {}, {}])), "body_shape"),
    "an unknown compression": (envelope({"compression": "application/x-nothing"}), "compression"),
    "a bomb": (envelope({"compression": "application/x-gzip"}, body=BOMB), "compression"),
    "deep arguments": (
        envelope(body=base64.b64encode(b"[" * 100_000 + b"]" * 100_000).decode()),
        "body_decode|body_shape",
    ),
}


@pytest.mark.parametrize("what", FRAMES)
def test_rubbish_is_refused_once_with_a_reason(redis_stage: Stage, what: str, request: pytest.FixtureRequest) -> None:
    raw, reason = FRAMES[what]
    node = redis_stage.worker(concurrency=4)
    client = redis.Redis.from_url(redis_stage.url)
    client.lpush("celery", raw)
    assert redis_stage.send("add", 1, 1).get(timeout=15) == 2
    wait_for(lambda: client.llen("celery.dead") == 1, 10, "the dead queue")
    wait_for(lambda: client.hlen("unacked") == 0, 10, "the settlement")
    errors = [line for line in node.output().splitlines() if "ERROR" in line]
    assert len(errors) == 1 and re.search(reason, errors[0]), errors
    assert "Traceback" not in node.output()
    assert node.running
    client.close()


def test_a_refused_message_with_an_id_has_a_failure_stored(redis_stage: Stage) -> None:
    redis_stage.worker()
    client = redis.Redis.from_url(redis_stage.url)
    client.lpush("celery", envelope({"timelimit": "soon", "id": "told"}))
    client.lpush("celery", envelope({"id": "told-too"}, body=body(5)))
    for task_id, why in (("told", "bad_header"), ("told-too", "body_shape")):
        found = redis_stage.app.AsyncResult(task_id)
        wait_for(lambda: found.state == "FAILURE", 10, "a stored failure")  # noqa: B023
        assert found.result.args[0] == why
    client.close()


def test_a_bad_signature_is_a_failure_of_its_task(redis_stage: Stage) -> None:
    redis_stage.worker()
    sent = redis_stage.app.send_task("tests.support.worker_tasks.add", (1, 2, 3), {})
    with pytest.raises(TypeError, match="positional argument"):
        sent.get(timeout=10)


def test_control_characters_forge_no_log_line(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    redis_stage.app.send_task("evil\n[2026] ERROR forged", (), {})
    redis_stage.send("add", 1, 1).get(timeout=10)
    node.wait_output("unknown to this app")
    assert not any(line.startswith("[2026] ERROR forged") for line in node.output().splitlines())
