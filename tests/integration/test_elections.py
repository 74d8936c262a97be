"""Elections among greenq's workers: of all that are asked, exactly one does it, once."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kombu
import pytest
import redis

from greenq.broker.elections import ElectionLink
from greenq.config import Settings
from greenq.exceptions import BrokerUnreachable
from tests.integration.conftest import Stage
from tests.support.asked import Asked
from tests.support.node import Node
from tests.support.processes import wait_for
from tests.support.services import RedisServer

NAP = "tests.support.worker_tasks.nap"
DECIDED = r"Election {}: .* leads\."


def action(what: str) -> dict[str, Any]:
    """The signature of a task that writes into the ledger."""
    return {
        "task": NAP, "args": [what, 0], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False
    }  # fmt: skip


def hold(stage: Stage, election: str, nodes: Sequence[Node]) -> None:
    """Have these nodes hold an election, and see that each is willing."""
    ask = {"id": election, "topic": "task", "action": action(election)}
    # Nobody is named: it is a broadcast.
    replies = stage.app.control.broadcast("election", ask, reply=True, timeout=10, limit=len(nodes))
    assert sorted(replies or [], key=str) == [{name: None} for name in sorted(node.name for node in nodes)]


def leaders(nodes: Sequence[Node], election: str) -> list[str]:
    """Which of the nodes say that they lead."""
    return [node.name for node in nodes if f"Election {election}: this node leads." in node.output()]


def wait_decided(nodes: Sequence[Node], *elections: str) -> None:
    """Wait until every node has said who leads, in every election."""
    for election in elections:
        for node in nodes:
            node.wait_output(DECIDED.format(election), 20)


def check_once(stage: Stage, nodes: Sequence[Node], *elections: str) -> None:
    """Each election has one leader, and its action has been done once."""
    wait_decided(nodes, *elections)
    for election in elections:
        assert len(leaders(nodes, election)) == 1, f"{election}: {leaders(nodes, election)}"
    wait_for(lambda: set(elections) <= set(stage.ledger.dones()), 20, lambda: str(stage.ledger.check(elections)))
    assert {each: stage.ledger.starts()[each] for each in elections} == dict.fromkeys(elections, 1)


def forgotten(stage: Stage, nodes: Sequence[Node]) -> bool:
    """Do the nodes remember no election any more?"""
    asked = [Asked(stage.app, node)("stats")["elections"]["remembered"] for node in nodes]
    return asked == [0] * len(nodes)


@pytest.mark.parametrize("count", [1, 3])
def test_of_all_nodes_one_does_it_once(stage: Stage, count: int) -> None:
    nodes = [stage.worker() for _ in range(count)]
    hold(stage, "first", nodes)
    check_once(stage, nodes, "first")
    several = [f"e{number}" for number in range(8)]
    for election in several:
        hold(stage, election, nodes)
    check_once(stage, nodes, *several)
    assert all(node.running and "Traceback" not in node.output() for node in nodes)


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "prefork", "solo"])
def test_every_pool_can_win(redis_stage: Stage, pool: str) -> None:
    node = redis_stage.worker(pool=pool, concurrency=1)
    hold(redis_stage, "alone", [node])
    check_once(redis_stage, [node], "alone")
    told = Asked(redis_stage.app, node)("stats")["elections"]
    assert (told["held"], told["won"]) == (1, 1)
    assert redis_stage.ledger.starts()["alone"] == 1


def test_an_id_is_one_election_until_it_is_forgotten(stage: Stage) -> None:
    nodes = [stage.worker() for _ in range(2)]
    hold(stage, "again", nodes)
    hold(stage, "again", nodes)
    check_once(stage, nodes, "again")
    hold(stage, "again", nodes)
    wait_for(lambda: forgotten(stage, nodes), 30, "the election to be forgotten")
    assert stage.ledger.starts()["again"] == 1
    hold(stage, "again", nodes)
    wait_for(lambda: stage.ledger.dones()["again"] == 2, 20, "the next election of that name")
    wait_for(lambda: forgotten(stage, nodes), 30, "that one to be forgotten too")
    assert stage.ledger.starts()["again"] == 2


@pytest.mark.parametrize("away", ["a moment", "for long"])
def test_a_node_that_stood_still_does_not_do_it_again(stage: Stage, away: str) -> None:
    nodes = [stage.worker() for _ in range(3)]
    late, others = nodes[0], nodes[1:]
    late.signal(signal.SIGSTOP)
    try:
        stage.app.control.election("once", "task", action("once"))
        wait_decided(others, "once")
        if away == "for long":
            wait_for(lambda: forgotten(stage, others), 30, "the others to forget it")
    finally:
        late.signal(signal.SIGCONT)
    late.wait_output("Election once: .* leads|Election once is being held, or was a moment ago", 20)
    check_once(stage, others, "once")
    wait_for(lambda: forgotten(stage, nodes), 30, "everybody to forget it")
    assert len(leaders(nodes, "once")) == 1
    assert stage.ledger.starts()["once"] == 1


def test_a_node_whose_tasks_compute_takes_part(redis_stage: Stage) -> None:
    """The service thread holds the election; what it decides waits for the main hub."""
    busy, idle = redis_stage.worker(options=["-Q", "busy"]), redis_stage.worker()
    redis_stage.send("compute", "spins", 3, queue="busy")
    wait_for(lambda: redis_stage.ledger.starts()["spins"], 10, "the task that computes")
    hold(redis_stage, "e", [busy, idle])
    wait_decided([busy, idle], "e")
    assert redis_stage.ledger.dones()["spins"] == 0, "it was to be decided meanwhile"
    check_once(redis_stage, [busy, idle], "e")


ELECT: dict[str, Any] = {
    "type": "worker-elect", "hostname": "evil@h", "pid": 1, "clock": 0, "id": "x", "topic": "task", "action": None,
    "cver": 1,
}  # fmt: skip
ACK: dict[str, Any] = {"id": "e", "hostname": "evil@h", "clock": 1, "sw_ident": "greenq"}
RUBBISH: list[Any] = [
    *(None, 5, "text", [], [ELECT], {}, {"id": "x"}, {"id": 5, "hostname": []}, {"type": "worker-elect"}),
    *({**ELECT, "clock": clock} for clock in (None, "1", -1, 2**80, 1.5, True)),
    *({**ELECT, "id": election} for election in (None, 5, "", "x" * 1000, {"a": 1})),
    *({**ELECT, "hostname": 5}, {**ELECT, "pid": None}, {**ELECT, "padding": "x" * 2**21}),
    *({**ACK, "leader": 5}, {**ACK, "leader": []}, {**ACK, "leader": "me"}),
]


def publish(url: str, key: str, body: Any, **options: Any) -> None:
    """Send to the exchange of events, as a node does."""
    with kombu.Connection(url) as connection:
        kind = "fanout" if url.startswith("redis") else "topic"
        exchange = kombu.Exchange("celeryev", type=kind, durable=True)
        producer = kombu.Producer(connection, exchange=exchange)
        producer.publish(body, routing_key=key, delivery_mode=1, retry=True, **options)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_rubbish_is_dropped_and_counted_and_the_next_election_is_held(
    broker: str, request: pytest.FixtureRequest, make_stage: Callable[[str], Stage]
) -> None:
    url = request.getfixturevalue(f"{broker}_url")
    stage = make_stage(url)
    nodes = [stage.worker() for _ in range(2)]
    for key in ("worker.elect", "worker.elect.ack"):
        for body in RUBBISH:
            publish(url, key, body, serializer="json")
        publish(url, key, b"\xff\x00{", content_type="application/json", content_encoding="utf-8")
        publish(url, key, b"cos\nsystem\n(S'true'\ntR.", content_type="application/x-python-serialize",
                content_encoding="binary")  # fmt: skip
        publish(url, key, "{}", content_type="nobody/knows", content_encoding="utf-8")
    if broker == "redis":
        with redis.Redis.from_url(url) as client:
            for raw in (b"", b"\xff", b"{}", b"[]", b'{"properties": 5}', b'{"body": 1, "headers": []}'):
                client.publish("/0.celeryev/worker.elect", raw)
    asked = Asked(stage.app, nodes[0])

    def dropped() -> int:
        return sum(asked("stats")["elections"]["dropped"].values())

    wait_for(lambda: dropped() > len(RUBBISH), 20, lambda: f"{dropped()} were dropped")
    hold(stage, "good", nodes)
    check_once(stage, nodes, "good")
    found = asked("stats")["elections"]["dropped"]
    assert {"not_an_object", "event", "too_large", "undecodable"} <= set(found), found
    assert all(node.running and "Traceback" not in node.output() for node in nodes)


def test_many_elections_of_strangers_take_bounded_room(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    with kombu.Connection(redis_stage.url) as connection:
        producer = kombu.Producer(connection, exchange=kombu.Exchange("celeryev", type="fanout", durable=True))
        for number in range(1500):
            producer.publish({**ELECT, "id": f"x{number}"}, routing_key="worker.elect")
    asked = Asked(redis_stage.app, node)
    wait_for(lambda: asked("stats")["elections"]["remembered"], 10, "some to be remembered")
    assert asked("stats")["elections"]["remembered"] <= 1000
    hold(redis_stage, "mine", [node])
    check_once(redis_stage, [node], "mine")
    wait_for(lambda: forgotten(redis_stage, [node]), 40, "all to be forgotten")


@pytest.mark.parametrize(
    ("topic", "given", "why"),
    [
        ("nonsense", action("never"), "no topic 'nonsense' here; there is: task"),
        ("task", None, "has to be the signature of a task"),
        ("task", {"args": [1]}, "has to be the signature of a task"),
        ("task", {**action("never"), "subtask_type": "chain"}, "has to be the signature of a task"),
    ],
)
def test_a_node_does_not_stand_for_what_it_cannot_do(redis_stage: Stage, topic: str, given: Any, why: str) -> None:
    node = redis_stage.worker()
    reply = Asked(redis_stage.app, node)("election", id="bad", topic=topic, action=given)
    assert why in reply["error"]
    assert re.search(rf"ERROR.* Election bad: .*{re.escape(why)}", node.output())
    assert Asked(redis_stage.app, node)("stats")["elections"]["held"] == 0
    hold(redis_stage, "good", [node])
    check_once(redis_stage, [node], "good")


def test_an_action_that_cannot_be_sent_is_logged_and_the_node_lives_on(redis_stage: Stage) -> None:
    node = redis_stage.worker()
    wrong = {**action("never"), "options": {"no_such": 1}}
    assert Asked(redis_stage.app, node)("election", id="wrong", topic="task", action=wrong) is None
    node.wait_output("Election wrong: the action could not be done", 20)
    hold(redis_stage, "good", [node])
    check_once(redis_stage, [node], "good")


def test_without_gossip_a_node_says_so_and_leaves_it_to_others(redis_stage: Stage) -> None:
    deaf, node = redis_stage.worker(options=["--without-gossip"]), redis_stage.worker()
    ask = {"id": "e", "topic": "task", "action": action("e")}
    replies = redis_stage.app.control.broadcast("election", ask, reply=True, timeout=10, limit=2) or []
    found = {name: reply for each in replies for name, reply in each.items()}
    assert found[node.name] is None
    assert "started with --without-gossip" in found[deaf.name]["error"]
    check_once(redis_stage, [node], "e")
    assert Asked(redis_stage.app, deaf)("stats")["elections"]["connected"] is False


def test_after_the_broker_was_away_elections_are_held_again(make_stage: Callable[[str], Stage]) -> None:
    with RedisServer() as server:
        stage = make_stage(server.url)
        nodes = [stage.worker() for _ in range(2)]
        hold(stage, "before", nodes)
        check_once(stage, nodes, "before")
        server.restart()
        asked = [Asked(stage.app, node) for node in nodes]

        def well() -> bool:
            try:
                pings = stage.app.control.ping(timeout=1, limit=2) or []
            except BrokerUnreachable:  # the client's own connection
                return False
            return len(pings) == 2 and all(each("stats")["elections"]["connected"] for each in asked)

        wait_for(well, 30, "both nodes to hear again")
        hold(stage, "after", nodes)
        check_once(stage, nodes, "after")


@pytest.fixture
def link(request: pytest.FixtureRequest) -> Iterator[tuple[str, ElectionLink]]:
    """An open link on the broker that the test names."""
    url = request.getfixturevalue(f"{request.param}_url")
    made = ElectionLink(url, Settings({}), "w@h")
    made.open()
    yield url, made
    made.close()


@pytest.mark.parametrize("link", ["redis", "rabbitmq", "sqlite"], indirect=True)
def test_nothing_but_elections_is_heard(link: tuple[str, ElectionLink]) -> None:
    url, ear = link
    keys = ("worker.heartbeat", "task.multi", "task.received", "worker.elected", "worker.elect", "worker.elect.ack")
    url_of_kombu = url if not url.startswith("sqlite") else None
    for key in keys:
        if url_of_kombu is not None:
            publish(url, key, {"key": key})
        else:
            with kombu.Connection(url, transport="greenq.transports.sqlite:Transport") as connection:
                exchange = kombu.Exchange("celeryev", type="topic", durable=True)
                kombu.Producer(connection, exchange=exchange).publish({"key": key}, routing_key=key)
    heard: list[tuple[str, Any]] = []

    def both() -> bool:
        events, bad = ear.wait(0.2)
        assert not bad
        heard.extend(events)
        return len(heard) >= 2

    wait_for(both, 10, "both events")
    assert heard == [(key, {"key": key}) for key in keys[-2:]]


def test_on_redis_the_rest_does_not_even_leave_the_server(redis_url: str) -> None:
    ear = ElectionLink(redis_url, Settings({}), "w@h")
    ear.open()
    with redis.Redis.from_url(redis_url) as client:
        wait_for(lambda: client.publish("/0.celeryev/worker.elect", "") == 1, 5, "the subscription")
        assert client.publish("/0.celeryev/worker.elect.ack", "") == 1
        assert [client.publish(f"/0.celeryev/{key}", "") for key in ("worker.heartbeat", "task.multi")] == [0, 0]
    ear.close()
