"""A consumer in a process of its own: fetches, says the ids, and closes, or lives on until it is killed.

python -m tests.contract.consumer_driver URL JSON_SETTINGS COUNT close|live
"""

from __future__ import annotations

import json
import sys
import time

from greenq.broker.opening import open_consumer
from greenq.config import Settings
from greenq.model import Request
from greenq.runtime.threads import ThreadsRuntime


def main(url: str, settings: str, count: str, end: str) -> None:
    conf, runtime = Settings({}), ThreadsRuntime()
    conf.update(json.loads(settings))
    runtime.attach()
    consumer = open_consumer(url, conf, ["celery"], int(count), runtime)
    consumer.start()
    held: list[Request] = []
    while len(held) < int(count):
        held += [item for item in consumer.fetch(int(count) - len(held), 1.0) if isinstance(item, Request)]
    if end == "close":
        consumer.release()
        consumer.close()
    print(json.dumps([request.id for request in held]), flush=True)
    while end == "live":
        consumer.beat()
        if not consumer.renew(held):
            sys.exit("given up for dead, though alive")
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
