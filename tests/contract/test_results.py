"""The ResultStore contract (greenq/results/base.py), over every store; rpc and disabled as far as they promise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest

from greenq.config import Settings
from greenq.exceptions import ResultError, ResultTimeout
from greenq.model import Record, State
from greenq.results.base import ResultStore
from greenq.results.opening import open_results
from greenq.wire.results import decode_meta, encode_exception, encode_state, encode_success
from greenq.wire.serializers import Accept
from tests.support.processes import free_port, wait_for

KEEPING = ["redis", "sqlite"]
ANSWERING = [*KEEPING, "rpc"]
Open = Callable[[], ResultStore]


@pytest.fixture
def opened(store: str, request: pytest.FixtureRequest) -> Iterator[Open]:
    """`opened()`: a new store of the kind the test's parameter `store` names; all are closed."""
    conf, url = Settings({}), f"{store}://"
    if store == "rpc":
        conf.update({"broker_url": request.getfixturevalue("rabbitmq_url")})
    elif store != "disabled":
        url = request.getfixturevalue(f"{store}_url")
    made: list[ResultStore] = []

    def make() -> ResultStore:
        made.append(open_results(url, conf))
        return made[-1]

    yield make
    for results in made:
        results.close()


@pytest.fixture
def client(opened: Open) -> ResultStore:
    """Who sends tasks and waits for their results."""
    return opened()


@pytest.fixture
def worker(opened: Open) -> ResultStore:
    """Who stores them."""
    return opened()


def record(client: ResultStore, task_id: str, state: str = State.SUCCESS, value: object = None) -> Record:
    if state == State.SUCCESS:
        payload = encode_success(task_id, value, date_done=datetime.now(timezone.utc))
    elif state in State.EXCEPTION:
        payload = encode_exception(task_id, state, ValueError(value))
    else:
        payload = encode_state(task_id, state, value)
    return Record(task_id, state, payload, getattr(client, "reply_to", ""), 60.0)


def status(payload: bytes) -> str:
    return decode_meta(payload, Accept.of(["json"])).status


def over(payload: bytes) -> bool:
    return status(payload) in State.READY


def answers(results: ResultStore, task_id: str) -> bool:
    """Whether what is stored there comes to who waits for it."""
    results.expect([task_id])
    results.store([record(results, task_id)])
    try:
        return over(results.wait(task_id, over, 10))
    except ResultError:
        return False


@pytest.mark.parametrize(
    ("store", "persistent"), [("redis", True), ("sqlite", True), ("rpc", False), ("disabled", False)]
)
def test_a_store_says_its_name_and_whether_it_keeps_results(
    client: ResultStore, store: str, persistent: bool
) -> None:
    assert (client.name, client.persistent) == (store, persistent)


@pytest.mark.parametrize("store", KEEPING)
def test_payloads_are_read_byte_for_byte_as_often_as_wanted(client: ResultStore, worker: ResultStore) -> None:
    records = [record(client, f"t{n}", value={"n": n, "text": "é\x00"}) for n in range(50)]
    worker.store(records)
    for _ in range(2):
        assert client.read(["t7", "none", "t0"]) == [records[7].payload, None, records[0].payload]
    assert client.wait("t7", over, 5) == client.wait("t7", over, 5) == records[7].payload


@pytest.mark.parametrize("store", ANSWERING)
def test_there_is_no_payload_of_a_task_that_stored_none(client: ResultStore) -> None:
    client.expect(["t"])
    assert client.read(["t"]) == [None]
    assert client.read([]) == []


@pytest.mark.parametrize("store", ANSWERING)
def test_a_stored_result_can_be_read_without_waiting(client: ResultStore, worker: ResultStore) -> None:
    client.expect(["t"])
    stored = record(client, "t")
    worker.store([stored])
    assert wait_for(lambda: client.read(["t"])[0], 5, "the result") == stored.payload


@pytest.mark.parametrize("store", KEEPING)
def test_of_several_records_of_one_task_the_last_one_stays(client: ResultStore, worker: ResultStore) -> None:
    states = [State.STARTED, State.RETRY, State.FAILURE]
    records = [record(client, "t", state, state) for state in states]
    worker.store(records)
    assert client.read(["t"]) == [records[-1].payload]


@pytest.mark.parametrize("later", [State.STARTED, State.RETRY, State.FAILURE, State.REVOKED, State.SUCCESS])
@pytest.mark.parametrize("store", KEEPING)
def test_a_stored_success_is_never_overwritten(client: ResultStore, worker: ResultStore, later: str) -> None:
    first = record(client, "t", value="first")
    worker.store([first])
    worker.store([record(client, "t", later, "later"), record(client, "other")])
    worker.store([record(client, "s", value=1), record(client, "s", later, 2)])
    assert client.read(["t"]) == [first.payload]
    assert [status(payload) for payload in client.read(["s", "other"]) if payload] == [State.SUCCESS] * 2


@pytest.mark.parametrize("store", ANSWERING)
def test_a_wait_ends_at_once_when_the_result_is_there(client: ResultStore, worker: ResultStore) -> None:
    client.expect(["t"])
    stored = record(client, "t")
    worker.store([stored])
    began = time.monotonic()
    assert client.wait("t", over, 10) == stored.payload
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("store", ANSWERING)
def test_a_wait_ends_soon_after_the_result_is_stored_through_another_connection(
    client: ResultStore, worker: ResultStore
) -> None:
    client.expect(["t"])
    stored = record(client, "t")
    timer = threading.Timer(0.3, worker.store, ([stored],))
    timer.start()
    began = time.monotonic()
    assert client.wait("t", over, 20) == stored.payload
    assert 0.25 < time.monotonic() - began < 3
    timer.join()


@pytest.mark.parametrize("store", ANSWERING)
def test_a_wait_passes_over_payloads_that_are_not_ready(client: ResultStore, worker: ResultStore) -> None:
    client.expect(["t"])
    last = record(client, "t", State.FAILURE, "no")
    timers = [
        threading.Timer(0.1, worker.store, ([record(client, "t", State.STARTED)],)),
        threading.Timer(0.4, worker.store, ([last],)),
    ]
    for timer in timers:
        timer.start()
    assert client.wait("t", over, 20) == last.payload
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("store", ANSWERING)
def test_a_wait_without_a_ready_result_times_out_and_can_be_repeated(
    client: ResultStore, worker: ResultStore
) -> None:
    client.expect(["t"])
    worker.store([record(client, "t", State.STARTED)])
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        client.wait("t", over, 0.3)
    assert 0.25 < time.monotonic() - began < 3
    worker.store([record(client, "t")])
    assert over(client.wait("t", over, 10))


@pytest.mark.parametrize("store", ANSWERING)
def test_a_timeout_of_none_waits_for_as_long_as_it_takes(client: ResultStore, worker: ResultStore) -> None:
    client.expect(["t"])
    timer = threading.Timer(0.3, worker.store, ([record(client, "t")],))
    timer.start()
    assert over(client.wait("t", over, None))
    timer.join()


@pytest.mark.parametrize("store", ANSWERING)
def test_many_threads_store_and_wait_on_one_store_each_for_its_own_result(
    client: ResultStore, worker: ResultStore
) -> None:
    ids = [f"t{n}" for n in range(40)]
    client.expect(ids)
    records = {task_id: record(client, task_id, value=task_id) for task_id in ids}
    with ThreadPoolExecutor(20) as waiters, ThreadPoolExecutor(4) as storers:
        found = [waiters.submit(client.wait, task_id, over, 20) for task_id in ids]
        for stored in storers.map(lambda task_id: worker.store([records[task_id]]), reversed(ids)):
            assert stored is None
        assert [one.result(20) for one in found] == [records[task_id].payload for task_id in ids]


@pytest.mark.parametrize("store", ANSWERING)
def test_a_forgotten_result_is_gone_and_the_others_stay(client: ResultStore, worker: ResultStore) -> None:
    client.expect(["t", "other"])
    worker.store([record(client, "t"), record(client, "other")])
    wait_for(lambda: all(client.read(["t", "other"])), 5, "both results")
    client.forget("t")
    assert client.read(["t"]) == [None]
    assert client.read(["other"]) != [None]
    client.forget("t")
    client.forget("never-stored")


@pytest.mark.parametrize("store", KEEPING)
def test_a_forgotten_success_gives_way_to_a_new_result(client: ResultStore, worker: ResultStore) -> None:
    worker.store([record(client, "t")])
    client.forget("t")
    later = record(client, "t", State.FAILURE, "later")
    worker.store([later])
    assert client.read(["t"]) == [later.payload]


@pytest.mark.parametrize("store", KEEPING)
def test_a_result_is_gone_when_its_time_is_up_and_kept_for_ever_without_one(
    client: ResultStore, worker: ResultStore
) -> None:
    worker.store([record(client, "short")._replace(expires=1.0), record(client, "kept")._replace(expires=None)])
    assert None not in client.read(["short", "kept"])
    wait_for(lambda: client.read(["short"]) == [None], 5, "the end of the result")
    assert client.read(["kept"]) != [None]


@pytest.mark.parametrize("store", ["rpc"])
def test_a_result_of_a_store_that_keeps_none_is_read_once_and_only_by_its_caller(
    opened: Open, client: ResultStore, worker: ResultStore
) -> None:
    stranger = opened()
    stranger.expect(["t"])
    client.expect(["t"])
    worker.store([record(client, "t")])
    assert over(client.wait("t", over, 10))
    assert client.read(["t"]) == stranger.read(["t"]) == [None]
    with pytest.raises(ResultTimeout):
        client.wait("t", over, 0.1)


@pytest.mark.parametrize("store", ["disabled"])
def test_disabled_results_are_dropped_silently_and_asking_for_one_is_an_error(client: ResultStore) -> None:
    client.expect(["t"])
    client.store([record(client, "t")])
    with pytest.raises(ResultError, match="result_backend"):
        client.read(["t"])
    began = time.monotonic()
    with pytest.raises(ResultError, match="result_backend") as caught:
        client.wait("t", over, 30)
    assert not isinstance(caught.value, ResultTimeout)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("store", [*ANSWERING, "disabled"])
def test_closing_twice_is_legal_used_or_not(opened: Open, store: str) -> None:
    unused, used = opened(), opened()
    used.expect(["t"])
    used.store([record(used, "t")])
    for results in (unused, used):
        results.close()
        results.close()
    assert answers(opened(), "later") is (store in ANSWERING)


@pytest.mark.parametrize("store", ANSWERING)
def test_a_store_that_cannot_be_reached_raises_result_error_and_nothing_else(store: str, tmp_path: Path) -> None:
    conf, port = Settings({}), free_port()
    conf.update({"broker_url": f"amqp://guest:guest@127.0.0.1:{port}//", "task_publish_retry": False})
    (tmp_path / "file").touch()
    urls = {"redis": f"redis://127.0.0.1:{port}/0", "sqlite": f"sqlite:///{tmp_path}/file/db", "rpc": "rpc://"}
    results = open_results(urls[store], conf)
    with suppress(ResultError):  # only some stores prepare anything
        results.expect(["t"])
    with pytest.raises(ResultError):
        results.store([record(results, "t")._replace(reply_to="somebody")])
    with pytest.raises(ResultError):
        results.wait("t", over, 0.5)
    results.close()
