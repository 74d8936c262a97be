"""One door to kombu: which transport a URL means, and what is said of a connection."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from greenq.broker.connections import broker_errors, connect, describe
from greenq.config import Settings
from greenq.exceptions import BrokerUnreachable, ConfigError
from tests.support.services import RedisServer, free_port

STATS_KEYS = {
    *("hostname", "userid", "virtual_host", "port", "insist", "ssl", "transport", "connect_timeout"),
    *("transport_options", "login_method", "uri_prefix", "heartbeat", "failover_strategy", "alternates"),
    "credential_provider",
}


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("redis://h:6379/1", "greenq.transports.redis.transport"),
        ("rediss://h:6379/1", "greenq.transports.redis.transport"),
        ("redis+socket:///tmp/r.sock", "greenq.transports.redis.transport"),
        ("unix:///tmp/r.sock?db=2", "greenq.transports.redis.transport"),
        ("sqlite:////tmp/b.db", "greenq.transports.sqlite.transport"),
        ("amqp://guest:guest@h//", "kombu.transport.pyamqp"),
        ("pyamqp://guest:guest@h//", "kombu.transport.pyamqp"),
        ("memory://", "kombu.transport.memory"),
    ],
)
def test_a_url_chooses_its_transport_without_connecting(url: str, module: str) -> None:
    assert type(connect(url, Settings({})).transport).__module__ == module


@pytest.mark.parametrize("url", ["nosuch://h", "no scheme at all"])
def test_a_url_nobody_serves_is_an_error_that_names_it(url: str) -> None:
    with pytest.raises(ConfigError, match=url.partition(":")[0]):
        connect(url, Settings({}))


def test_only_the_first_of_several_brokers_is_used() -> None:
    assert connect("amqp://first//;amqp://second//", Settings({})).hostname == "first"


def test_a_certificate_is_checked_unless_the_settings_say_otherwise() -> None:
    assert connect("rediss://h/0", Settings({})).ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    settings = Settings({})
    settings.update(broker_use_ssl={"ssl_cert_reqs": ssl.CERT_OPTIONAL})
    assert connect("rediss://h/0", settings).ssl == {"ssl_cert_reqs": ssl.CERT_OPTIONAL}


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("redis://:hunter2@h:6379/1", {"transport": "redis", "hostname": "h", "port": 6379, "virtual_host": "1"}),
        ("rediss://u:hunter2@h/1", {"transport": "redis", "userid": "u", "ssl": True}),
        ("amqp://guest:hunter2@h:5672//", {"transport": "amqp", "userid": "guest", "virtual_host": "/"}),
        ("sqlite:////tmp/b.db", {"transport": "sqlite"}),
    ],
)
def test_the_broker_object_of_stats_has_every_key_and_no_password(url: str, facts: dict[str, Any]) -> None:
    settings = Settings({})
    settings.update(broker_transport_options={"sentinel_kwargs": {"password": "hunter2"}, "password": "hunter2"})
    shown = describe(url, settings)
    assert set(shown) == STATS_KEYS
    assert {name: shown[name] for name in facts} == facts
    assert "hunter2" not in json.dumps(shown)


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:{port}/0", "amqp://guest:hunter2@127.0.0.1:{port}//"])
def test_a_refused_connection_is_ours_and_hides_the_password(url: str) -> None:
    url = url.format(port=free_port())
    connection = connect(url, Settings({}))
    with pytest.raises(BrokerUnreachable) as caught, broker_errors(connection, url):
        connection.ensure_connection(max_retries=1, timeout=1)
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_unix_socket_url_of_either_form_reaches_its_database(tmp_path: Path) -> None:
    with RedisServer() as server:
        for number, url in enumerate((f"{server.socket_url}?virtual_host=1", f"unix://{server.socket_path}?db=1")):
            with connect(url, Settings({})) as connection:
                channel: Any = connection.default_channel
                channel.client.set(f"key{number}", "x")
                assert channel.client.info("keyspace")["db1"]["keys"] == number + 1
