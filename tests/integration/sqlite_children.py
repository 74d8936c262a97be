"""What the tests of the embedded broker run in processes of their own: `python -m ... ROLE URL [arguments]`.

A role prints one JSON value a line and flushes it, so that a test sees how far it got when it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def envelope(number: int | str) -> bytes:
    return json.dumps({"body": "", "headers": {"id": number}, "properties": {}}).encode()


def number_of(raw: bytes) -> Any:
    return json.loads(raw)["headers"]["id"]


def hold(url: str, limit: str) -> None:
    """Claim, say so, and never let go."""
    from greenq.transports.sqlite import open_store

    store = open_store(url, f"holder-{os.getpid()}")
    say([number_of(delivery.raw) for delivery in store.claim(["q"], int(limit))])
    time.sleep(3600)


def publish(url: str, count: str) -> None:
    from greenq.transports.base import Post
    from greenq.transports.sqlite import open_store

    store = open_store(url, f"publisher-{os.getpid()}")
    for number in range(int(count)):
        store.post([Post("q", envelope(f"{os.getpid()}-{number}"))])


def publish_and_say(url: str) -> None:
    from greenq.transports.base import Post
    from greenq.transports.sqlite import open_store

    store = open_store(url, f"publisher-{os.getpid()}")
    number = 0
    while True:
        store.post([Post("q", envelope(number))])
        say(number)
        number += 1


def consume(url: str, idle: str) -> None:
    """Claim and acknowledge until nothing has come for `idle` seconds; say every id."""
    from greenq.transports.sqlite import open_store

    store = open_store(url, f"consumer-{os.getpid()}")
    last = time.monotonic()
    while time.monotonic() - last < float(idle):
        deliveries = store.claim(["q"], 100)
        if deliveries:
            say([number_of(delivery.raw) for delivery in deliveries])
            assert store.settle([delivery.tag for delivery in deliveries]) == 0
            last = time.monotonic()
        else:
            store.wait(["q"], 0.2)
    say("done")


def idle(url: str, seconds: str) -> None:
    """Wait for messages that do not come; say how much CPU a second of it took."""
    from greenq.transports.sqlite import open_store

    store = open_store(url, f"idle-{os.getpid()}")
    store.claim(["q"], 1)
    cpu, begun = time.process_time(), time.monotonic()
    while time.monotonic() - begun < float(seconds):
        if not store.wait(["q"], 1.0):
            store.claim(["q"], 1)
            store.renew(())
            store.reclaim()
    say((time.process_time() - cpu) / (time.monotonic() - begun))


def green(url: str, library: str) -> None:
    """In a patched process: one fiber waits at the store while another ticks and a third posts."""
    if library == "gevent":
        from gevent import monkey

        monkey.patch_all()
        from gevent import sleep, spawn
    else:
        import eventlet

        eventlet.monkey_patch()
        from eventlet import sleep, spawn
    import threading

    from greenq.transports.base import Post
    from greenq.transports.sqlite import open_store

    store, sender = open_store(url, "waiter"), open_store(url, "sender")
    ticks: list[float] = []
    seen: list[tuple[str, float]] = []

    def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            sleep(0.01)

    def wait() -> None:
        assert store.claim(["q"], 1) == []
        for _ in range(2):
            begun = time.monotonic()
            if store.wait(["q"], 5.0):
                seen.append((str(len(store.claim(["q"], 1))), time.monotonic() - begun))

    spawn(tick)
    waiter = spawn(wait)
    sleep(0.3)
    sender.post([Post("q", envelope(1))])
    sleep(0.3)
    threading.Thread(target=store.interrupt).start()
    sleep(0.3)
    gaps = [b - a for a, b in pairwise(ticks)]
    say({"seen": seen, "ticks": len(ticks), "longest": max(gaps), "dead": waiter.dead})
    os._exit(0)


def green_results(url: str, library: str) -> None:
    """In a patched process: three fibers wait for results while another stores them and one ticks."""
    if library == "gevent":
        from gevent import monkey

        monkey.patch_all()
        from gevent import sleep, spawn
    else:
        import eventlet

        eventlet.monkey_patch()
        from eventlet import sleep, spawn
    from greenq.model import Record
    from greenq.results.sqlite import SqliteResults

    results = SqliteResults(url)
    got: list[str] = []
    ticks: list[float] = []

    def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            sleep(0.01)

    for name in ("a", "b", "c"):
        spawn(lambda name=name: got.append(results.wait(name, bool, 5.0).decode()))
    spawn(tick)
    for name in ("b", "a", "c"):
        sleep(0.1)
        results.store([Record(name, "SUCCESS", name.encode())])
    sleep(0.1)
    gaps = [b - a for a, b in pairwise(ticks)]
    say({"got": got, "longest": max(gaps)})
    os._exit(0)


def answer_results(url: str) -> None:
    """Store a result for every task id read from standard input; say when that began."""
    from greenq.model import Record
    from greenq.results.sqlite import SqliteResults

    results = SqliteResults(url)
    say("ready")
    for line in sys.stdin:
        begun = time.monotonic()
        results.store([Record(line.strip(), "SUCCESS", b"x")])
        say(begun)


def subscribe(url: str, name: str) -> None:
    """Take three messages of the fan-out exchange `news` by kombu."""
    import kombu

    from greenq.transports.sqlite import register

    register()
    got: list[Any] = []
    exchange = kombu.Exchange("news", type="fanout", durable=False)
    queue = kombu.Queue(f"{name}.news", exchange, exclusive=True, auto_delete=True, durable=False)
    with (
        kombu.Connection(url) as connection,
        connection.Consumer([queue], callbacks=[lambda body, _: got.append(body)], no_ack=True),
    ):
        say("ready")
        while len(got) < 3:
            connection.drain_events(timeout=20)
    say(got)


def own_a_queue(url: str, *arguments: str) -> None:
    """Declare and consume a queue that dies with this process, and another that dies with its last consumer."""
    import kombu

    from greenq.transports.sqlite import register

    register()
    exchange = kombu.Exchange("replies", type="direct", durable=False)
    queues = [
        kombu.Queue("mine", exchange, routing_key="mine", exclusive=True, durable=False),
        kombu.Queue("shared", exchange, routing_key="shared", auto_delete=True),
    ]
    with kombu.Connection(url) as connection, connection.Consumer(queues, callbacks=[print]):
        say("ready")
        connection.drain_events(timeout=3600)


def mailbox(url: str, name: str) -> None:
    """A node of kombu's remote control that answers `ping`, once."""
    import kombu
    from kombu.pidbox import Mailbox

    from greenq.transports.sqlite import register

    register()
    done: list[str] = []

    def ping(state: Any, **arguments: Any) -> str:
        done.append(name)
        return f"pong from {name}"

    with kombu.Connection(url) as connection:
        node = Mailbox("test", type="fanout")(connection).Node(name, channel=connection.default_channel)
        node.handlers["ping"] = ping
        with node.Consumer(callbacks=[node.handle_message]):
            say("ready")
            while not done:
                connection.drain_events(timeout=20)
    say("answered")


def half_done(url: str, count: str) -> None:
    """By kombu: acknowledge `count` messages, claim more, and never let go."""
    import kombu

    from greenq.transports.sqlite import register

    register()
    seen: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        seen.append(body)
        if len(seen) <= int(count):
            message.ack()

    with (
        kombu.Connection(url) as connection,
        connection.Consumer([kombu.Queue("q")], callbacks=[on_message], prefetch_count=20),
    ):
        while len(seen) < int(count) + 5:
            connection.drain_events(timeout=20)
        connection.transport.flush()
        say(seen)
        time.sleep(3600)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
