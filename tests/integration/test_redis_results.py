"""Results in Redis: Celery reads them and they are read from Celery; many wait on one connection."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from greenq.exceptions import ConfigError, ResultError, ResultTimeout
from greenq.model import Record
from greenq.results.redis import RedisResults
from tests.support.processes import run
from tests.support.services import RedisServer, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def results(redis_url: str) -> Iterator[RedisResults]:
    found = RedisResults(redis_url)
    yield found
    found.close()


def meta(task_id: str, state: str = "SUCCESS", result: Any = None) -> bytes:
    record = {"status": state, "result": result, "traceback": None, "children": [], "task_id": task_id}
    return json.dumps({**record, "date_done": "2026-01-01T00:00:00+00:00"}).encode()


def record(task_id: str, state: str = "SUCCESS", result: Any = None, expires: float | None = None) -> Record:
    return Record(task_id, state, meta(task_id, state, result), "", expires)


def is_ready(payload: bytes) -> bool:
    return json.loads(payload)["status"] in {"SUCCESS", "FAILURE", "REVOKED"}


def after(delay: float, step: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(delay, step)
    timer.start()
    return timer


def test_a_record_is_one_key_of_celerys_that_expires(results: RedisResults, client: redis.Redis) -> None:
    results.store([record("a", expires=100.0), record("b"), record("c", expires=0)])
    assert client.get("celery-task-meta-a") == meta("a")
    assert 90 < client.ttl("celery-task-meta-a") <= 100
    assert client.ttl("celery-task-meta-b") == client.ttl("celery-task-meta-c") == -1
    assert results.read(["b", "none", "a"]) == [meta("b"), None, meta("a")]
    results.forget("a")
    results.forget("a")
    assert results.read(["a"]) == [None]


def test_a_success_is_never_written_over(results: RedisResults, client: redis.Redis) -> None:
    client.set("celery-task-meta-compact", b'{"status":"SUCCESS","result":1}')
    results.store([record("a", "STARTED"), record("a"), record("a", "FAILURE"), record("compact", "FAILURE")])
    assert results.read(["a", "compact"]) == [meta("a"), b'{"status":"SUCCESS","result":1}']


def test_other_states_follow_one_another(results: RedisResults) -> None:
    for state in ("STARTED", "RETRY", "FAILURE", "SUCCESS"):
        results.store([record("a", state)])
        assert results.read(["a"]) == [meta("a", state)]


def test_a_stored_record_is_announced_after_it_is_written(results: RedisResults, client: redis.Redis) -> None:
    with client.pubsub() as heard:
        heard.subscribe("celery-task-meta-a")
        wait_for(lambda: heard.get_message(timeout=1), 5)
        results.store([record("a"), record("a", "FAILURE")])
        message = wait_for(lambda: heard.get_message(timeout=1), 5)
        assert message["data"] == meta("a")
        assert heard.get_message(timeout=0.1) is None, "what is dropped is not announced"


def test_hundreds_of_records_are_written_in_few_round_trips(results: RedisResults, client: redis.Redis) -> None:
    results.read(["warm"])
    before = client.info("commandstats")
    results.store([record(f"t{n}", result=n) for n in range(250)])
    stats = client.info("commandstats")
    runs = [s.get(f"cmdstat_{c}", {"calls": 0})["calls"] for s in (stats, before) for c in ("evalsha", "eval")]
    assert sum(runs[:2]) - sum(runs[2:]) <= 4
    found = results.read([f"t{n}" for n in range(250)])
    assert [json.loads(payload or b"{}")["result"] for payload in found] == list(range(250))


def test_what_is_not_celerys_json_is_asked_about(redis_url: str, client: redis.Redis) -> None:
    def succeeded(payload: bytes) -> bool:
        asked.append(payload)
        return payload.endswith(b"SUCCESS")

    asked: list[bytes] = []
    results = RedisResults(redis_url, options={"succeeded": succeeded})
    client.set("celery-task-meta-won", b"\x00celery-compressed SUCCESS")
    client.set("celery-task-meta-lost", b"\x80pickled FAILURE")
    results.store([record("new"), record("won", "FAILURE"), record("lost")])
    assert sorted(asked) == [b"\x00celery-compressed SUCCESS", b"\x80pickled FAILURE"]
    assert results.read(["new", "won", "lost"]) == [meta("new"), b"\x00celery-compressed SUCCESS", meta("lost")]
    results.close()
    plain = RedisResults(redis_url)
    plain.store([record("won", "FAILURE")])
    assert plain.read(["won"]) == [meta("won", "FAILURE")]
    plain.close()


@pytest.mark.parametrize(("prefix", "key"), [("app", "app_"), ("app:", "app:"), ("a-", "a-"), ("a_", "a_")])
def test_the_prefix_is_put_before_the_key_as_celery_does(
    redis_url: str, client: redis.Redis, prefix: str, key: str
) -> None:
    options = {"global_keyprefix": prefix}
    results = RedisResults(redis_url, options=options)
    results.store([record("a", result=5)])
    assert client.keys("*") == [f"{key}celery-task-meta-a".encode()]
    app = Celery(backend=redis_url, broker=redis_url)
    app.conf.result_backend_transport_options = options
    assert app.AsyncResult("a").get(timeout=5) == 5
    results.close()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's backend, with this redis-py
def test_celery_waits_for_our_result_and_we_for_celerys(redis_url: str, results: RedisResults) -> None:
    app = Celery(backend=redis_url, broker=redis_url)
    timer = after(0.2, lambda: results.store([record("ours", result=[1, 2])]))
    assert app.AsyncResult("ours").get(timeout=10) == [1, 2]
    timer.join()
    timer = after(0.2, lambda: app.backend.store_result("theirs", {"x": 1}, "SUCCESS"))
    assert json.loads(results.wait("theirs", is_ready, 10))["result"] == {"x": 1}
    timer.join()
    results.store([record("theirs", "FAILURE")])
    assert app.AsyncResult("theirs").state == "SUCCESS"


def test_a_result_that_is_there_is_returned_at_once_without_listening(
    results: RedisResults, client: redis.Redis
) -> None:
    results.store([record("a")])
    assert results.wait("a", is_ready, 5) == meta("a")
    assert client.client_list(_type="pubsub") == []


def test_a_wait_passes_over_what_is_not_ready(results: RedisResults, redis_url: str) -> None:
    sender = RedisResults(redis_url)
    sender.store([record("a", "STARTED")])
    timer = after(0.2, lambda: sender.store([record("a", "RETRY"), record("a", "FAILURE")]))
    assert results.wait("a", is_ready, 10) == meta("a", "FAILURE")
    timer.join()
    sender.close()


def test_a_wait_gives_up_after_its_time(results: RedisResults) -> None:
    start = time.monotonic()
    with pytest.raises(ResultTimeout, match="task never within 0.3 s"):
        results.wait("never", is_ready, 0.3)
    assert 0.3 <= time.monotonic() - start < 1


def test_two_hundred_waiters_share_two_connections(redis_url: str, client: redis.Redis) -> None:
    results, sender = RedisResults(redis_url), RedisResults(redis_url)
    sender.read(["warm"])
    before = {c["id"] for c in client.client_list()}
    got: dict[int, bytes] = {}

    def wait(number: int) -> None:
        got[number] = results.wait(f"t{number % 100}", is_ready, 20)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(client.pubsub_channels()) == 100, 10, "the subscriptions")
    assert len({c["id"] for c in client.client_list()} - before) == 2
    for number in range(100):
        sender.store([record(f"t{number}", "STARTED"), record(f"t{number}", result=number)])
    for thread in threads:
        thread.join()
    assert {n: json.loads(p)["result"] for n, p in got.items()} == {n: n % 100 for n in range(200)}
    with pytest.raises(ResultTimeout):
        results.wait("other", is_ready, 0.05)
    assert client.pubsub_channels() in ([], [b"celery-task-meta-other"]), "who got a result is unsubscribed"
    results.close()
    sender.close()


def test_a_leader_that_leaves_hands_the_lead_on(results: RedisResults, redis_url: str, client: redis.Redis) -> None:
    sender = RedisResults(redis_url)
    got: list[bytes] = []

    def lead() -> None:
        with pytest.raises(ResultTimeout):
            results.wait("leader", is_ready, 0.4)

    first = threading.Thread(target=lead)
    first.start()
    wait_for(client.pubsub_channels, 5)
    second = threading.Thread(target=lambda: got.append(results.wait("follower", is_ready, 10)))
    second.start()
    first.join()
    sender.store([record("follower")])
    second.join(5)
    assert got == [meta("follower")]
    sender.close()


def test_a_cut_connection_loses_no_result(results: RedisResults, redis_url: str, client: redis.Redis) -> None:
    got: dict[str, bytes] = {}
    names = [f"t{n}" for n in range(20)]
    threads = [
        threading.Thread(target=lambda n=name: got.__setitem__(n, results.wait(n, is_ready, 20))) for name in names
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(client.pubsub_channels()) == 20, 10, "the subscriptions")
    for own in client.client_list(_type="pubsub"):
        client.client_kill_filter(_id=own["id"])
    # Written straight to the keys: nobody hears a message, the keys themselves must be read again.
    for name in names:
        client.set(f"celery-task-meta-{name}", meta(name))
    for thread in threads:
        thread.join(10)
    assert got == {name: meta(name) for name in names}


def test_waiters_outlive_a_restart_of_the_server() -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        results = RedisResults(server.url)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(results.wait("a", is_ready, 30)))
        thread.start()
        with redis.Redis(port=server.port) as client:
            wait_for(client.pubsub_channels, 5)
        server.kill()
        with pytest.raises(ResultError):
            RedisResults(server.url).store([record("a")])
        server.start()
        results.store([record("a")])
        thread.join(10)
        assert got == [meta("a")]
        results.close()


def test_an_idle_connection_the_server_closed_is_opened_again_unnoticed(
    results: RedisResults, client: redis.Redis
) -> None:
    results.store([record("a")])
    client.client_kill_filter(_type="normal", skipme=True)
    results.store([record("b")])
    client.client_kill_filter(_type="normal", skipme=True)
    assert results.read(["a", "b"]) == [meta("a"), meta("b")]


def test_closing_tells_who_still_waits(redis_url: str, client: redis.Redis) -> None:
    results = RedisResults(redis_url)
    errors: list[BaseException] = []

    def wait(name: str) -> None:
        try:
            results.wait(name, is_ready, None)
        except ResultError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=wait, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(client.pubsub_channels()) == 3, 5)
    results.close()
    results.close()
    for thread in threads:
        thread.join(5)
    assert [str(error) for error in errors] == ["the result store was closed"] * 3
    wait_for(lambda: client.client_list(_type="pubsub") == [], 5, "the connection to end")


def test_errors_of_redis_come_out_as_result_errors(client: redis.Redis, redis_url: str) -> None:
    with pytest.raises(ResultError, match=r"redis://127\.0\.0\.1:1/0"):
        RedisResults("redis://:hush@127.0.0.1:1/0").store([record("a")])
    with pytest.raises(ConfigError, match="succeeded"):
        RedisResults(redis_url, options={"succeeded": True})
    with RedisServer() as server, redis.Redis(port=server.port) as full:
        results = RedisResults(server.url)
        results.read(["a"])
        full.config_set("maxmemory", "1mb")
        with pytest.raises(ResultError, match="OOM|maxmemory|memory"):
            results.store([record("a")])
        results.close()


GREEN = """
import json, sys, time
library, url = sys.argv[1:]
if library == "gevent":
    from gevent import monkey; monkey.patch_all()
    from gevent import spawn, kill
else:
    import eventlet; eventlet.monkey_patch()
    from eventlet import spawn, kill
from greenq.model import Record
from greenq.results.redis import RedisResults

results, sender = RedisResults(url), RedisResults(url)
ready = lambda payload: json.loads(payload)["status"] == "SUCCESS"
got = {}
def wait(name):
    got[name] = json.loads(results.wait(name, ready, 20))["result"]
fibers = [spawn(wait, f"t{n}") for n in range(100)]
time.sleep(0.3)
# The first is the leader; killing it and others in the middle must not stop the rest.
for victim in (0, 1, 50):
    kill(fibers[victim])
def send(n):
    for state in ("STARTED", "SUCCESS"):
        payload = json.dumps({"status": state, "result": n}).encode()
        sender.store([Record(f"t{n}", state, payload)])
for n in range(100):
    spawn(send, n)
deadline = time.monotonic() + 15
while len(got) < 97 and time.monotonic() < deadline:
    time.sleep(0.01)
assert got == {f"t{n}": n for n in range(100) if n not in (0, 1, 50)}, sorted(got)
start = time.monotonic()
try:
    results.wait("never", ready, 0.2)
except TimeoutError:
    assert 0.2 <= time.monotonic() - start < 1
print("fine")
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_wait_together_and_may_be_killed(library: str, redis_url: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", GREEN, library, redis_url]
    done = run(argv, cwd=ROOT)
    assert done.stdout == "fine\n", done.stderr
