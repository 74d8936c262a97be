"""The log of revokes (greenq/transports/base.py), over every broker that keeps one; and the entries in it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from greenq.broker.revoked_log import RevokeLog
from greenq.config import Settings
from greenq.exceptions import BrokerError, ConfigError
from greenq.transports.sqlite.revoked import SPARE
from greenq.wire.revoked import MOST_BYTES, Revoked, Seal
from tests.support.processes import wait_for

NEW, OLD = {"new": "a secret of many characters"}, {"old": "another secret of many more"}
Open = Callable[..., RevokeLog]


@pytest.fixture(params=["redis", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def log(url: str) -> Iterator[Open]:
    """Open the log with these settings; closed at the end."""
    made: list[RevokeLog] = []

    def make(**settings: Any) -> RevokeLog:
        made.append(RevokeLog(url, Settings({}).copy(**settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.close()


def ids(log: RevokeLog) -> list[str]:
    return [task_id for task_id, _ in log.read().ids]


def rejected(log: RevokeLog) -> dict[str, int]:
    return dict(log.read().rejected)


def put(url: str, kind: str, entry: bytes, age: float = 0.0) -> None:
    """Write an entry as somebody may who has the right to write to the broker."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        with connection:
            values = (f"celery.{kind}", entry, time.time() - age)
            connection.execute("INSERT OR REPLACE INTO revoked (log, entry, at) VALUES (?, ?, ?)", values)
        connection.close()
    else:
        with Redis.from_url(url) as client:
            client.zadd(f"greenq.revoked.celery.{kind}", {entry: time.time() - age})


def count(url: str, kind: str) -> int:
    """Entries that stand in the broker, read by nobody."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        found = connection.execute("SELECT count(*) FROM revoked WHERE log = ?", (f"celery.{kind}",)).fetchone()
        connection.close()
        return int(found[0])
    with Redis.from_url(url) as client:
        return int(client.zcard(f"greenq.revoked.celery.{kind}"))


def test_what_one_writes_all_may_read_as_often_as_they_like(log: Open) -> None:
    one, other = log(), log()
    assert (ids(one), one.read().stamps) == ([], [])
    one.append(Revoked(["a", "\ud800\x00ü"], [("tenant", "x"), ("ü", "")]))
    other.append(Revoked(["b"]))
    for reader in (one, other, one):
        told = reader.read()
        assert [task_id for task_id, _ in told.ids] == ["a", "\ud800\x00ü", "b"], "oldest first"
        assert [pair for pair, _ in told.stamps] == [("tenant", "x"), ("ü", "")]
        assert all(0 <= age < 30 for _, age in [*told.ids, *told.stamps])
    one.append(Revoked(["a"]))
    assert ids(other) == ["\ud800\x00ü", "b", "a"], "what is revoked again is the newest"
    one.append(Revoked())
    assert (other.read(ids=False).ids, other.read(stamps=False).stamps) == ([], [])


def test_it_is_bounded_and_the_oldest_go_first(log: Open, url: str) -> None:
    bounded = log(worker_revokes_max=1_700)
    sent = [str(uuid4()) for _ in range(2_500)]
    bounded.append(Revoked(sent[:900]))
    bounded.append(Revoked(sent[900:1_800]))
    assert ids(bounded) == sent[100:1_800]
    bounded.append(Revoked(sent))
    assert ids(bounded) == sent[-1_700:], "also of what comes at once"
    spare = SPARE if url.startswith("sqlite") else 0
    assert 1_700 <= count(url, "ids") <= 1_700 + spare
    assert ids(log(worker_revokes_max=3)) == sent[-3:], "who remembers less reads less"
    stamps = [("n", str(number)) for number in range(10_050)]
    bounded.append(Revoked(stamps=stamps))
    assert [pair for pair, _ in bounded.read().stamps] == stamps[-10_000:]
    assert ids(bounded) == sent[-1_700:], "stamps push no ids out"
    for number in range(1_100):
        bounded.append(Revoked([f"one-{number}"]))
    assert count(url, "ids") <= 1_700 + spare
    assert ids(bounded)[-2:] == ["one-1098", "one-1099"]
    assert ids(bounded)[0] == sent[-600]


def test_it_forgets(log: Open, url: str) -> None:
    short, long = log(worker_revoke_expires=1.0), log()
    assert ids(short) == []
    put(url, "ids", b'["forged"]', age=-1e9)
    short.append(Revoked(["a"], [("n", "1")]))
    assert ids(short) == ["a"], "a time of the far future is nobody's"
    ((_, age),) = wait_for(lambda: [each for each in long.read().ids if each[1] > 0.5], 10)
    assert age < 10
    wait_for(lambda: not ids(short) and not short.read().stamps, 10)
    short.append(Revoked(["b"]))
    assert count(url, "ids") == 1
    if url.startswith("redis"):
        with Redis.from_url(url) as client:
            wait_for(lambda: not list(client.scan_iter("*revoked*")), 10)


HOSTILE = [
    b"",
    b"5",
    b"null",
    b"[]",
    b"{}",
    b"not json",
    b"\xff\xfe",
    b"[" * 10_000,
    b"[5]",
    b'["a", "b", "c"]',
    b"[[]]",
    json.dumps(["x" * 513]).encode(),
    b" " * (MOST_BYTES + 1),
]


def test_what_is_no_entry_is_counted_and_hides_nothing(log: Open, url: str) -> None:
    reader = log()
    reader.append(Revoked(["before"], [("n", "1")]))
    for kind in ("ids", "stamps"):
        for entry in HOSTILE:
            put(url, kind, entry)
    put(url, "stamps", b'["only a header"]')
    reader.append(Revoked(["after"]))
    told = reader.read()
    assert [task_id for task_id, _ in told.ids] == ["before", "after"]
    assert [pair for pair, _ in told.stamps] == [("n", "1")]
    assert told.rejected == {"log_shape": 2 * len(HOSTILE) + 1}


def test_with_keys_only_signed_entries_count(log: Open, url: str) -> None:
    both = {**NEW, **OLD}
    log().append(Revoked(["unsigned"], [("n", "unsigned")]))
    log(worker_control_keys=OLD).append(Revoked(["old"]))
    log(worker_control_keys=both).append(Revoked(["new"], [("n", "1")]))
    log(worker_control_keys={"new": OLD["old"]}).append(Revoked(["another secret"]))
    log(worker_control_keys={"strange": NEW["new"]}).append(Revoked(["no such key"]))
    told = log(worker_control_keys=both).read()
    assert ([each for each, _ in told.ids], [each for each, _ in told.stamps]) == (["old", "new"], [("n", "1")])
    assert told.rejected == {"log_unsigned": 2, "log_signature": 2}
    assert set(ids(log())) >= {"unsigned", "old", "new"}, "who wants no signature passes over it"


def test_a_signature_is_for_this_entry_here_and_for_as_long_as_a_revoke(
    log: Open, url: str
) -> None:
    def signed(*values: str, kind: str = "ids", issued: float = 0.0, namespace: str = "celery") -> list[Any]:
        return list(json.loads(Seal(namespace, kind, NEW).write(values, time.time() + issued)))

    reader = log(worker_control_keys=NEW)
    assert ids(reader) == []
    good, other = signed("a"), signed("b")
    put(url, "ids", json.dumps(["b", good[1]]).encode())
    put(url, "ids", json.dumps(["a", [good[1][0] + 1, *good[1][1:]]]).encode())
    put(url, "ids", json.dumps(signed("a", namespace="other")).encode())
    put(url, "ids", json.dumps(["a", signed("a", "a", kind="stamps")[2]]).encode())
    shapes: list[list[Any]] = [[], [1, 2, 3, 4], [1, 2, 3]]
    for wrong in (*shapes, ["1", "new", ""], [True, "new", ""], [1, "new", "\ud800"], [10**400, "new", ""]):
        put(url, "ids", json.dumps(["a", wrong]).encode())
    assert (ids(reader), rejected(reader)) == ([], {"log_signature": 11})
    put(url, "ids", json.dumps(signed("late", issued=-10_801)).encode())
    put(url, "ids", json.dumps(signed("early", issued=120)).encode())
    assert (ids(reader), rejected(reader)) == ([], {"log_signature": 11, "log_time": 2})
    put(url, "ids", json.dumps(signed("replayed", issued=-10_000)).encode())
    put(url, "ids", json.dumps(other).encode())
    found = dict(reader.read().ids)
    assert found["replayed"] >= 10_000, "whoever writes it anew does not make it younger"
    assert 0 <= found["b"] < 60


def test_each_namespace_and_prefix_has_its_own(log: Open, url: str) -> None:
    log(control_exchange="other").append(Revoked(["there"]))
    assert ids(log()) == []
    if url.startswith("redis"):
        prefixed = log(broker_transport_options={"global_keyprefix": "{p}:"})
        prefixed.append(Revoked(["prefixed"]))
        assert ids(log()) == []
        assert ids(prefixed) == ["prefixed"]
        with Redis.from_url(url) as client:
            assert set(client.keys()) == {b"{p}:greenq.revoked.celery.ids", b"greenq.revoked.other.ids"}


def test_a_key_of_another_type_is_a_refusal(redis_url: str) -> None:
    log = RevokeLog(redis_url, Settings({}))
    with Redis.from_url(redis_url) as client:
        client.set("greenq.revoked.celery.ids", "x")
    for call in (log.read, lambda: log.append(Revoked(["a"]))):
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            call()
    log.close()


@pytest.mark.parametrize("settings", [{"worker_revokes_max": 0}, {"worker_revoke_expires": 0}])
def test_bounds_that_make_no_sense_are_refused(redis_url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="worker_revokes_max .* at least 1"):
        RevokeLog(redis_url, Settings({}).copy(**settings))
