"""A node whose clock is ahead of its clients' hears them all the same."""

from __future__ import annotations

import json
import time
from typing import Any

import kombu

from greenq.broker.connections import connect
from greenq.config import Settings
from tests.support.control import listening
from tests.support.processes import wait_for


def test_commands_that_come_steadily_are_not_late_because_two_clocks_differ(broker_url: str) -> None:
    body = json.dumps({"method": "ping", "arguments": {}}).encode()
    with listening(broker_url) as ear, connect(broker_url, Settings({})) as connection:
        exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode=1)
        producer = kombu.Producer(connection.default_channel, exchange)
        sent, until = 0, time.monotonic() + 2
        while time.monotonic() < until:  # oftener than the listener waits for one
            headers: dict[str, Any] = {"clock": 1, "expires": time.time() - 1}
            producer.publish(body, content_type="application/json", content_encoding="utf-8", headers=headers)
            sent += 1
            time.sleep(0.1)
        wait_for(lambda: ear.listener.hearing.handled == sent, 5, lambda: f"{sent} sent, {ear.listener.hearing}")
        assert ear.listener.hearing.rejected == {}
