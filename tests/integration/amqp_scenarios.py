"""What the children of the AMQP tests do; see `amqp_driver`."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter, deque
from typing import Any

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.broker.pushed import PushedConsumer
from greenq.config import Settings
from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError
from greenq.model import Record, Rejected, Request, Settle, Settlement, TaskMessage
from greenq.results.rpc import RpcResults
from greenq.runtime.base import Runtime


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def task_message(queue: str = "celery", task_id: str | None = None, **fields: Any) -> TaskMessage:
    """A task message of protocol 2 as Celery would send it."""
    task_id = task_id or str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": "proj.add",
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "(1, 2)",
        "kwargsrepr": "{}",
        "origin": "gen1@host",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        **fields.pop("headers", {}),
    }
    properties = {"correlation_id": task_id, "reply_to": "nobody", "delivery_mode": 2}
    return TaskMessage(
        headers=headers,
        body=fields.pop("body", b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null}]'),
        content_type="application/json",
        content_encoding="utf-8",
        properties={**properties, **fields.pop("properties", {})},
        exchange=fields.pop("exchange", ""),
        routing_key=queue,
    )


class Stage:
    """A broker, the settings and the runtime of this process."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self.url = url
        self.runtime = runtime
        self.conf = Settings({})

    def consumer(self, *queues: str, prefetch: int = 1000, start: bool = True) -> PushedConsumer:
        consumer = PushedConsumer(self.url, self.conf, queues or ("celery",), prefetch, self.runtime)
        if start:
            consumer.start()
        return consumer

    def publisher(self) -> KombuPublisher:
        return KombuPublisher(self.url, self.conf)


def collect(consumer: PushedConsumer, count: int, timeout: float = 30.0) -> list[Request | Rejected]:
    """Fetch until there are `count`, or time is up."""
    found: list[Request | Rejected] = []
    until = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < until:
        found += consumer.fetch(count - len(found), 0.5)
    return found


def hold(stage: Stage, count: int) -> None:
    """Take messages, settle none, and wait to be killed."""
    consumer = stage.consumer(prefetch=count)
    say(held=len(collect(consumer, count)))
    while True:
        consumer.fetch(0, 60.0)


def drain(stage: Stage, count: int, queue: str = "celery") -> None:
    """Acknowledge `count` messages in batches from another fiber than the one that fetches."""
    consumer = stage.consumer(queue)
    waiting: deque[list[Any]] = deque()
    more = stage.runtime.event()
    gone: list[int] = []
    ended = stage.runtime.event()

    def settle() -> None:
        settled = 0
        while settled < count:
            more.wait(1.0)
            more.clear()
            while waiting:
                batch = waiting.popleft()
                gone.append(consumer.settle(batch))
                settled += len(batch)
        ended.set()

    stage.runtime.spawn(settle, name="settle")
    tags: list[int | str] = []
    ids = Counter[str]()
    while len(tags) < count:
        batch = consumer.fetch(173, 10.0)
        assert batch, f"only {len(tags)} of {count} messages came"
        tags += [request.tag for request in batch]
        ids.update(request.id for request in batch if isinstance(request, Request))
        waiting.append(batch)
        more.set()
    ended.wait(30.0)
    last = [request for request in batch if isinstance(request, Request)]
    again = consumer.settle(last)  # settled already: no effect, and no harm to the channel
    left = consumer.fetch(10, 0.3)
    consumer.close()
    twice = sum(n > 1 for n in ids.values())
    say(
        distinct=len(ids),
        twice=twice,
        gone=sum(gone),
        again=again == len(last),
        left=len(left),
        tags=tags[:3],
    )


def recover(stage: Stage) -> None:
    """Consume through every loss until a task named "stop" comes; one request is held over each loss."""
    consumer = stage.consumer(start=False)
    seen: Counter[str] = Counter()
    epochs: set[int] = set()
    refused = held_late = 0
    held: Request | None = None
    started = False
    while True:
        try:
            if not started:
                consumer.start()
                started = True
                say(started=True)
            batch = consumer.fetch(100, 1.0)
        except BrokerUnreachable as exc:
            if started:
                say(lost=str(exc))
            started = False
            stage.runtime.sleep(0.1)
            continue
        for request in batch:
            assert isinstance(request, Request)
            epochs.add(request.epoch)
            seen[request.id] += 1
            if held is not None and request.epoch != held.epoch:
                held_late += 1
                refused += consumer.settle([held])
                held = None
            if request.headers.get("hold") and not request.redelivered:
                held = request
                say(holding=request.id)
                continue
            if consumer.settle([request]):
                say(unsettled=request.id)
            if request.name == "stop":
                consumer.close()
                say(seen=seen, epochs=len(epochs), refused=refused, held_late=held_late)
                return
            say(done=request.id)


def busy(stage: Stage, heartbeat: int, seconds: float) -> None:
    """Hold a message while the main fiber computes; only a native thread beats."""
    stage.conf.update(broker_heartbeat=heartbeat)
    consumer = stage.consumer()
    (request,) = collect(consumer, 1)
    assert isinstance(request, Request)
    stop: list[bool] = []
    lost: list[str] = []

    def beats() -> None:
        while not stop:
            consumer.beat()
            time.sleep(1.0)

    def reads() -> None:
        try:
            while not stop:
                consumer.fetch(10, 0.5)
        except BrokerUnreachable as exc:
            lost.append(str(exc))

    stage.runtime.isolated(beats, name="beats")
    stage.runtime.spawn(reads, name="reads")
    stage.runtime.sleep(0.1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    stage.runtime.sleep(0.2)  # the reader looks at what has come meanwhile
    gone = consumer.settle([request])
    stage.runtime.sleep(0.5)
    stop.append(True)
    consumer.close()
    say(lost=lost, gone=gone)


def silence(stage: Stage, heartbeat: int) -> None:
    """Read from a broker that stops answering; say how long it took to notice."""
    stage.conf.update(broker_heartbeat=heartbeat)
    consumer = stage.consumer()
    stop: list[bool] = []

    def beats() -> None:
        while not stop:
            consumer.beat()
            time.sleep(0.5)

    stage.runtime.isolated(beats, name="beats")
    say(reading=True)
    try:
        while True:
            consumer.fetch(10, 5.0)
    except BrokerUnreachable as exc:
        say(lost=str(exc))
    stop.append(True)


def endings(stage: Stage) -> None:
    """Settle in every way: requeue one, bury one, bury what cannot be decoded."""
    consumer = stage.consumer()
    found = collect(consumer, 4, 5.0)
    requests = {item.headers.get("role"): item for item in found if isinstance(item, Request)}
    rejected = [item for item in found if isinstance(item, Rejected)]
    others: list[tuple[Request | Rejected, Settlement]] = [
        (item, Settlement(item.tag, item.queue, Settle.DEAD, reason=item.error.reason)) for item in rejected
    ]
    back, dead = requests["back"], requests["dead"]
    others.append((back, Settlement(back.tag, back.queue, Settle.REQUEUE)))
    others.append((dead, Settlement(dead.tag, dead.queue, Settle.DEAD, reason="unknown_task")))
    gone = consumer.settle([], others)
    again = collect(consumer, 1, 5.0)
    say(
        reasons=[item.error.reason for item in rejected],
        ids=[item.error.task_id for item in rejected],
        gone=gone,
        redelivered=[item.redelivered for item in again if isinstance(item, Request)],
    )
    consumer.settle([item for item in again if isinstance(item, Request)])
    consumer.close()


def held(stage: Stage, queue: str, count: int) -> None:
    """Hold `count` requests at a prefetch of 10, and still get the ordinary ones behind them."""
    consumer = stage.consumer(queue, prefetch=10)
    holding: list[Any] = []
    ordinary: list[Any] = []
    until = time.monotonic() + 20
    while len(ordinary) < 20 and time.monotonic() < until:
        for request in consumer.fetch(10, 0.5):
            assert isinstance(request, Request)
            if request.eta:
                holding.append(request)
                consumer.raise_prefetch(1)
            else:
                ordinary.append(request)
                consumer.settle([request])
    first = consumer.settle(holding[: count // 2])
    consumer.lower_prefetch(count // 2)
    say(held=len(holding), ordinary=len(ordinary), gone=first, info=consumer.queues())
    consumer.close()


def queues(stage: Stage) -> None:
    """Add queues and cancel them while reading."""
    consumer = stage.consumer("one")
    publisher = stage.publisher()
    names: list[str] = []
    stop: list[bool] = []
    taken = stage.runtime.event()

    def reads() -> None:
        while not stop:
            for request in consumer.fetch(10, 30.0):
                consumer.settle([request])  # type: ignore[list-item]
                names.append(request.queue)
                taken.set()

    def expect(queue: str) -> None:
        taken.clear()
        publisher.publish([task_message(queue)])
        assert taken.wait(5.0), f"nothing from {queue}"

    reader = stage.runtime.spawn(reads, name="reads")
    expect("one")
    consumer.add_queue("two")
    expect("two")
    try:
        consumer.add_queue("refused", queue_arguments={"x-max-priority": 3})
    except ConfigError as exc:
        assert "queue 'refused' exists with x-max-priority = none" in str(exc), exc
    else:
        raise AssertionError("a queue with other arguments was taken")
    expect("two")
    consumer.cancel_queue("two")
    expect("one")
    publisher.publish([task_message("two")])
    expect("one")
    stop.append(True)
    consumer.interrupt()
    reader.join(5.0)
    say(names=names, left=publisher.length("two"), consumed=[info["name"] for info in consumer.queues()])
    consumer.close()
    publisher.close()


def crowd(stage: Stage, fibers: int) -> None:
    """Publish one message each from many fibers at once."""
    publisher = stage.publisher()
    ended: list[float] = []
    began = time.monotonic()

    def publish() -> None:
        publisher.publish([task_message()])
        ended.append(time.monotonic() - began)

    running = [stage.runtime.spawn(publish, name="publish") for _ in range(fibers)]
    for fiber in running:
        fiber.join(30.0)
    say(published=len(ended), length=publisher.length("celery"), seconds=round(max(ended), 2))
    publisher.close()


def stream(stage: Stage) -> None:
    """Publish without end; say each id before, and what became of it."""
    publisher = stage.publisher()
    while True:
        message = task_message()
        task_id = message.properties["correlation_id"]
        try:
            publisher.publish([message])
        except BrokerError as exc:
            say(id=task_id, error=type(exc).__name__)
        else:
            say(id=task_id, error="")


def stress(stage: Stage, seconds: float) -> None:
    """Settle from four fibers, beat from a native thread and change queues, all at once."""
    stage.conf.update(broker_heartbeat=2)
    consumer = stage.consumer(prefetch=200)
    publisher = stage.publisher()
    line: deque[Any] = deque()
    stop: list[bool] = []
    published: list[bool] = []
    sent = settled = gone = 0
    lock = threading.Lock()

    def beats() -> None:
        while not stop:
            consumer.beat()
            time.sleep(0.01)

    def settles() -> None:
        nonlocal settled, gone
        while not stop or line:
            try:
                request = line.popleft()
            except IndexError:
                stage.runtime.sleep(0.001)
                continue
            lost = consumer.settle([request])
            with lock:
                settled += 1
                gone += lost

    def changes() -> None:
        while not stop:
            consumer.add_queue("extra")
            consumer.prefetch = 150
            stage.runtime.sleep(0.02)
            consumer.cancel_queue("extra")
            consumer.prefetch = 200
            stage.runtime.sleep(0.02)

    def publishes() -> None:
        nonlocal sent
        while not published:
            publisher.publish([task_message() for _ in range(100)])
            sent += 100

    stage.runtime.isolated(beats, name="beats")
    publishing = stage.runtime.spawn(publishes, name="publishes")
    fibers = [stage.runtime.spawn(work, name="work") for work in (settles, settles, settles, changes)]
    until = time.monotonic() + seconds
    taken = 0
    while publishing.alive() or taken < sent:
        if time.monotonic() > until and not published:
            published.append(True)
        batch = consumer.fetch(50, 0.5)
        taken += len(batch)
        line.extend(batch)
        assert time.monotonic() < until + 20, f"{taken} of {sent} messages came"
    stop.append(True)
    for fiber in fibers:
        fiber.join(10.0)
    consumer.close()
    say(sent=sent, taken=taken, settled=settled, gone=gone, left=publisher.length("celery"))
    publisher.close()


def answers(stage: Stage, count: int) -> None:
    """Wait for many results from as many fibers; the answers come from another store, in reverse order."""
    client, worker = RpcResults(stage.url, stage.conf), RpcResults(stage.url, stage.conf)
    ids = [str(number) for number in range(count)]
    client.expect(ids)
    found: list[bytes] = []
    began = time.monotonic()

    def wait(task_id: str) -> None:
        found.append(client.wait(task_id, lambda payload: payload == task_id.encode(), 20.0))

    fibers = [stage.runtime.spawn(wait, task_id, name="wait") for task_id in ids]
    for task_id in reversed(ids):
        worker.store([Record(task_id, "SUCCESS", task_id.encode(), client.reply_to)])
    for fiber in fibers:
        fiber.join(20.0)
    say(found=len(set(found)), seconds=round(time.monotonic() - began, 2))
    client.close()
    worker.close()


def interrupted(stage: Stage) -> None:
    """Say how long a wait took that was interrupted, and one that a message ended."""
    consumer = stage.consumer()
    stage.runtime.spawn(lambda: (stage.runtime.sleep(0.1), consumer.interrupt()), name="interrupt")
    began = time.monotonic()
    assert consumer.fetch(10, 20.0) == []
    say(seconds=round(time.monotonic() - began, 2))
    publisher = stage.publisher()
    stage.runtime.spawn(lambda: (stage.runtime.sleep(0.1), publisher.publish([task_message()])), name="publish")
    began = time.monotonic()
    assert len(consumer.fetch(10, 20.0)) == 1
    say(published_seconds=round(time.monotonic() - began, 2))
    consumer.close()
