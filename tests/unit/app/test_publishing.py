"""Messages: what options become on the wire, whose child a message is, and how many go in one trip."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from greenq import GreenQ, group
from greenq._speedups import decode_parts
from greenq.app.publishing import message_from_signature, new_id
from greenq.context import TaskContext, current
from greenq.exceptions import ConfigError
from greenq.model import TaskMessage
from tests.unit.app.conftest import body_of

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def add(x: int, y: int = 0) -> int:
    return x + y


def running(**headers: Any) -> TaskContext:
    fields = {"task": "parent", "id": "parent-id", "root_id": "root-id", "priority": None, **headers}
    properties = {"priority": 7, "delivery_info": {"exchange": "", "routing_key": "q"}}
    return TaskContext(decode_parts(fields, properties, "application/json", "utf-8", b"", "q", ""), (), {}, {})


def since_now(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime.now(timezone.utc)).total_seconds()


def test_a_plain_call_is_a_protocol_2_message_in_celerys_queue(app: GreenQ, sent: Any) -> None:
    result = app.task(name="proj.add")(add).delay(1, y=2)
    (envelope,) = sent()
    headers = envelope["headers"]
    assert UUID.fullmatch(result.id)
    assert headers["task"] == "proj.add"
    assert headers["id"] == headers["root_id"] == envelope["properties"]["correlation_id"] == result.id
    assert headers["parent_id"] is headers["eta"] is headers["expires"] is headers["group"] is None
    assert headers["timelimit"] == [None, None]
    assert headers["origin"] == f"gen{os.getpid()}@{socket.gethostname()}"
    assert headers["ignore_result"] is False
    assert json.loads(base64.b64decode(envelope["body"])) == [[1], {"y": 2}, EMBED]
    assert envelope["properties"]["delivery_info"] == {"exchange": "", "routing_key": "celery"}
    assert envelope["properties"]["delivery_mode"] == 2
    assert envelope["properties"]["reply_to"]


def test_options_of_a_call_stand_in_the_message(app: GreenQ) -> None:
    message = app.build_message(
        "any.task",
        (1,),
        task_id="my-id",
        priority=3,
        headers={"tenant": "a"},
        shadow="shown",
        time_limit=10,
        soft_time_limit=5,
        ignore_result=True,
        group_id="g",
        group_index=2,
        root_id="r",
        parent_id="p",
        reply_to="me",
        delivery_mode="transient",
        retries=4,
    )
    headers = message.headers
    assert headers["id"] == "my-id"
    assert headers["tenant"] == "a"
    assert headers["shadow"] == "shown"
    assert headers["timelimit"] == [10, 5]
    assert headers["ignore_result"] is True
    assert (headers["group"], headers["group_index"]) == ("g", 2)
    assert (headers["root_id"], headers["parent_id"], headers["retries"]) == ("r", "p", 4)
    assert message.properties["priority"] == 3
    assert message.properties["reply_to"] == "me"
    assert message.properties["delivery_mode"] == 1


def test_a_task_nobody_here_knows_leaves_ignore_result_open(app: GreenQ) -> None:
    assert app.build_message("any.task").headers["ignore_result"] is None


def test_options_of_the_task_stand_in_the_message_and_give_way_to_the_call(app: GreenQ) -> None:
    app.task(name="t", queue="own", priority=2, expires=60, time_limit=9, ignore_result=True)(add)
    message = app.build_message("t", (1,))
    assert message.routing_key == "own"
    assert message.properties["priority"] == 2
    assert message.properties["expiration"] == "60000"
    assert 59 < since_now(message.headers["expires"]) <= 60
    assert message.headers["timelimit"] == [9, None]
    assert message.headers["ignore_result"] is True
    message = app.build_message("t", (1,), queue="other", priority=0, expires=5, time_limit=1, ignore_result=False)
    assert message.routing_key == "other"
    assert message.properties["priority"] == 0
    assert 4 < since_now(message.headers["expires"]) <= 5
    assert message.headers["timelimit"] == [1, None]
    assert message.headers["ignore_result"] is False


def test_limits_of_the_settings_are_the_workers_and_do_not_travel(app: GreenQ) -> None:
    app.conf.update(task_time_limit=30, task_soft_time_limit=20)
    app.task(name="t")(add)
    assert app.build_message("t", (1,)).headers["timelimit"] == [None, None]


def test_serializer_and_compression_come_from_call_task_and_settings(app: GreenQ) -> None:
    app.task(name="t")(add)
    app.conf.update(task_serializer="pickle", task_compression="gzip")
    message = app.build_message("t", (1,))
    assert message.content_type == "application/x-python-serialize"
    assert message.headers["compression"] == "application/x-gzip"
    message = app.build_message("t", (1,), serializer="json")
    assert message.content_type == "application/json"


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"countdown": 10}, 9, 10),
        ({"countdown": 0.5}, -0.5, 0.5),
        ({"eta": lambda now: now + timedelta(hours=1)}, 3500, 3600),
        ({"eta": lambda now: now.astimezone(timezone(timedelta(hours=9))) + timedelta(hours=1)}, 3500, 3600),
        ({"eta": lambda now: now.replace(tzinfo=None) + timedelta(hours=1)}, 3500, 3600),
        ({"eta": lambda now: (now + timedelta(hours=1)).isoformat()}, 3500, 3600),
    ],
)
def test_countdown_and_eta_are_moments_with_an_offset(
    app: GreenQ, options: dict[str, Any], low: float, high: float
) -> None:
    # Made here and not where the cases stand: those are read when the run is collected, minutes before.
    now = datetime.now(timezone.utc)
    options = {key: value(now) if callable(value) else value for key, value in options.items()}
    eta = app.build_message("t", **options).headers["eta"]
    assert low < since_now(eta) <= high


def test_a_naive_time_is_in_the_apps_zone(app: GreenQ) -> None:
    app.conf.timezone = "Asia/Tokyo"
    message = app.build_message("t", eta=datetime(2030, 1, 1, 9, 0))  # noqa: DTZ001  (naive on purpose)
    assert datetime.fromisoformat(message.headers["eta"]).astimezone(timezone.utc).hour == 0
    app.conf.timezone = "Mars/Olympus"
    with pytest.raises(ConfigError, match="timezone = 'Mars/Olympus'"):
        app.finalize()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"queu": "q"}, TypeError, "sending t: there is no option 'queu': did you mean queue?"),
        ({"eta": 10}, TypeError, "sending t: eta takes a datetime; for seconds from now use countdown"),
        ({"expires": "soon"}, TypeError, "sending t: expires 'soon' is not an ISO date and time"),
        ({"countdown": [1]}, TypeError, "countdown takes a number of seconds"),
        ({"time_limit": 1, "soft_time_limit": 2}, ConfigError, "soft_time_limit 2 is above time_limit 1"),
        ({"serializer": "jsn"}, ConfigError, "jsn"),
        ({"link": 3}, TypeError, "expected a signature"),
        ({"routing_key": "nowhere"}, ConfigError, "leads to no known queue"),
    ],
)
def test_a_wrong_option_of_a_call_is_refused(
    app: GreenQ, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        app.build_message("t", **options)


def test_links_travel_as_the_dicts_of_their_signatures(app: GreenQ) -> None:
    task = app.task(name="t")(add)
    callback = task.s(1).set(queue="q")
    callback.link(task.si(2))
    message = app.build_message("t", (1,), link=callback, link_error=[{"task": "other", "args": [9]}])
    embed = body_of(message)[2]
    plain: dict[str, Any] = {"kwargs": {}, "subtask_type": None}
    second = {"task": "t", "args": [2], "options": {}, "immutable": True, **plain}
    assert embed["callbacks"] == [
        {"task": "t", "args": [1], "options": {"queue": "q", "link": [second]}, "immutable": False, **plain}
    ]
    assert embed["errbacks"] == [{"task": "other", "args": [9], "options": {}, "immutable": False, **plain}]


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack", "json"])
def test_links_are_plain_dicts_whatever_the_serializer(app: GreenQ, serializer: str) -> None:
    if serializer == "msgpack":  # its library is in no extra of the tests
        with pytest.raises(ConfigError, match="which is not installed"):
            app.build_message("t", link=app.signature("x"), serializer=serializer)
        return
    message = app.build_message("t", link=app.signature("x"), serializer=serializer)
    assert b"greenq" not in message.body


def test_a_task_sent_by_a_task_is_its_child(app: GreenQ, sent: Any) -> None:
    task = app.task(name="t")(add)
    context = running()
    token = current.set(context)
    try:
        child = task.delay(1)
        other = task.apply_async((1,), add_to_parent=False)
    finally:
        current.reset(token)
    first, second = sent()
    assert (first["headers"]["root_id"], first["headers"]["parent_id"]) == ("root-id", "parent-id")
    assert (second["headers"]["root_id"], second["headers"]["parent_id"]) == ("root-id", "parent-id")
    assert context.children == [child.id]
    assert other.id not in context.children


def test_a_task_called_as_a_function_by_a_task_sends_as_that_task(app: GreenQ) -> None:
    @app.task(name="inner")
    def inner() -> TaskMessage:
        return app.build_message("t")

    token = current.set(running())
    try:
        message = inner()
    finally:
        current.reset(token)
    assert message.headers["parent_id"] == "parent-id"


def test_a_parents_priority_is_inherited_if_the_settings_say_so(app: GreenQ) -> None:
    app.task(name="t")(add)
    token = current.set(running())
    try:
        assert app.build_message("t").properties["priority"] == 0
        app.conf.task_inherit_parent_priority = True
        assert app.build_message("t").properties["priority"] == 7
        assert app.build_message("t", priority=1).properties["priority"] == 1
    finally:
        current.reset(token)


def test_a_callbacks_message_is_a_child_with_the_result_in_front(app: GreenQ) -> None:
    context = running()
    signature = {"task": "t", "args": [2], "kwargs": {}, "options": {"queue": "q"}, "immutable": False}
    message = message_from_signature(app, signature, ("result",), context=context)
    assert body_of(message)[0] == ["result", 2]
    assert message.routing_key == "q"
    assert (message.headers["root_id"], message.headers["parent_id"]) == ("root-id", "parent-id")
    assert context.children == [message.headers["id"]]
    message = message_from_signature(
        app, {**signature, "immutable": True, "options": {"task_id": "fixed"}}, ("result",), context=context
    )
    assert body_of(message)[0] == [2]
    assert message.headers["id"] == "fixed"


def test_a_chains_rest_goes_along_and_stamps_of_celery_are_kept(app: GreenQ) -> None:
    rest = [{"task": "last", "args": [], "kwargs": {}, "options": {}}]
    options = {"stamped_headers": ["a"], "stamps": {"a": "b"}, "made_up": 1}
    message = message_from_signature(app, {"task": "t", "options": options}, (1,), context=running(), chain=rest)
    assert body_of(message)[2]["chain"] == rest
    assert message.headers["stamped_headers"] == ["a"]
    assert message.headers["stamps"] == {"a": "b"}


def test_composed_signatures_are_refused_clearly(app: GreenQ) -> None:
    chord = {"task": "celery.chord", "subtask_type": "chord", "args": [], "kwargs": {}, "options": {}}
    for send in (
        lambda: message_from_signature(app, chord, (), context=running()),
        lambda: app.build_message("t", link=chord),
        lambda: app.send_tasks([chord]),
        lambda: app.signature("t") | app.signature("t"),
        lambda: app.build_message("t", link=group(app.signature("t"))),
    ):
        with pytest.raises(NotImplementedError, match="not part of this version"):
            send()


class Trips:
    """A publisher that keeps what each call brings."""

    def __init__(self) -> None:
        self.calls: list[list[TaskMessage]] = []

    def publish(self, messages: Sequence[TaskMessage]) -> None:
        self.calls.append(list(messages))

    def length(self, queue: str) -> int:
        return 0

    def purge(self, queue: str) -> int:
        return 0

    def close(self) -> None: ...


@pytest.fixture
def trips(app: GreenQ) -> Trips:
    trips = Trips()
    app.producer._default = trips
    return trips


def test_a_batch_goes_in_one_trip_in_order(app: GreenQ, trips: Trips) -> None:
    task = app.task(name="t")(add)
    results = app.send_tasks((task, (i,)) for i in range(1000))
    (messages,) = trips.calls
    assert [body_of(message)[0] for message in messages] == [[i] for i in range(1000)]
    assert [result.id for result in results] == [message.headers["id"] for message in messages]
    assert len({result.id for result in results}) == 1000
    assert app.send_tasks([]) == []
    assert len(trips.calls) == 1


def test_a_batch_takes_signatures_tuples_and_names(app: GreenQ, trips: Trips) -> None:
    task = app.task(name="t")(add)
    app.send_tasks(
        [
            task.s(1),
            (task, (1,), {"y": 2}),
            ("other", (), {}, {"queue": "q"}),
            ("bare",),
            {"task": "from.dict", "args": [5]},
        ]
    )
    (messages,) = trips.calls
    assert [message.headers["task"] for message in messages] == ["t", "t", "other", "bare", "from.dict"]
    assert [message.routing_key for message in messages] == ["celery", "celery", "q", "celery", "celery"]
    assert body_of(messages[1])[:2] == [[1], {"y": 2}]
    mistakes: list[Any] = ["t", 3, (), (task, (), {}, {}, 1), (3,)]
    for wrong in mistakes:
        with pytest.raises(TypeError, match="expected a"):
            app.send_tasks([wrong])


def test_one_wrong_call_of_a_batch_sends_nothing(app: GreenQ, trips: Trips) -> None:
    with pytest.raises(TypeError, match="no option"):
        app.send_tasks([("a",), ("b", (), {}, {"queu": 1})])
    assert trips.calls == []


def test_a_group_is_one_trip_with_one_group_id(app: GreenQ, trips: Trips) -> None:
    task = app.task(name="t")(add)
    result = group(task.s(i) for i in range(3)).apply_async((9,), queue="q")
    (messages,) = trips.calls
    assert [body_of(message)[0] for message in messages] == [[9, 0], [9, 1], [9, 2]]
    assert {message.headers["group"] for message in messages} == {result.id}
    assert [message.headers["group_index"] for message in messages] == [0, 1, 2]
    assert {message.routing_key for message in messages} == {"q"}
    assert [each.id for each in result] == [message.headers["id"] for message in messages]
    with pytest.raises(TypeError, match="a group takes no link="):
        group(task.s(1)).apply_async(link=task.s(1))


def test_retries_of_a_call_differ_from_those_of_the_settings(app: GreenQ) -> None:
    usual = app.producer.publisher()
    assert app.producer.publisher(retry=True) is usual
    never = app.producer.publisher(retry=False)
    patient = app.producer.publisher(policy={"max_retries": 9})
    assert len({id(each) for each in (usual, never, patient)}) == 3
    assert app.producer.publisher(retry=False, policy={"max_retries": 9}) is never
    assert app.producer.publisher(policy={"max_retries": 9}) is patient


def test_plans_of_names_from_outside_are_not_kept(app: GreenQ) -> None:
    app.task(name="t")(add)
    for i in range(10):
        app.build_message(f"outside.{i}")
    app.build_message("t", (1,))
    assert set(app.producer._plans) == {"t"}


def test_ids_are_random_uuids_of_version_4() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    for each in ids:
        parsed = uuid.UUID(each)
        assert (str(parsed), parsed.version, parsed.variant) == (each, 4, uuid.RFC_4122)
