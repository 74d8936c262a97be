"""The same connection over TLS: a read and a write of one session never meet in OpenSSL."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq.broker.kombu_publisher import KombuPublisher
from greenq.config import Settings
from greenq.exceptions import BrokerUnreachable
from tests.integration.amqp_children import outcome
from tests.integration.amqp_scenarios import task_message
from tests.support.processes import free_port
from tests.support.services import RabbitServer, find_program


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """URL of a node that speaks TLS, and the settings that trust it."""
    directory: Path = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    argv = [find_program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    port = free_port()
    config = [f"listeners.ssl.1 = 127.0.0.1:{port}", "ssl_options.verify = verify_none"]
    config += [
        f"ssl_options.{name} = {path}" for name, path in (("certfile", cert), ("keyfile", key), ("cacertfile", cert))
    ]
    trust = {"ca_certs": str(cert), "cert_reqs": int(ssl.CERT_REQUIRED), "server_hostname": "localhost"}
    with RabbitServer("\n".join(config)):
        yield f"amqps://guest:guest@127.0.0.1:{port}//", {"broker_use_ssl": trust}


@pytest.mark.parametrize("runtime", ["threads", "gevent"])
def test_many_writers_share_one_tls_session(runtime: str, secure: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, settings = secure
    said = outcome(runtime, "stress", url, tmp_path, seconds=4.0, settings=settings)
    assert said["sent"] > 200
    assert said["taken"] == said["settled"] == said["sent"]
    assert (said["gone"], said["left"]) == (0, 0)


@pytest.mark.parametrize("runtime", ["threads", "gevent"])
def test_a_busy_hub_keeps_its_tls_connection(
    runtime: str, secure: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, settings = secure
    conf = Settings({})
    conf.update(settings)
    publisher = KombuPublisher(url, conf)
    publisher.purge("celery")
    publisher.publish([task_message(body=b"x" * 500_000)])
    said = outcome(runtime, "busy", url, tmp_path, heartbeat=2, seconds=6.0, settings=settings)
    assert said == {"lost": [], "gone": 0}
    assert publisher.length("celery") == 0
    publisher.close()


def test_a_certificate_nobody_vouches_for_is_refused(secure: tuple[str, dict[str, Any]]) -> None:
    url, _ = secure
    conf = Settings({})
    conf.update(
        broker_use_ssl={"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost"}, task_publish_retry=False
    )
    with pytest.raises(BrokerUnreachable, match="certificate verify failed"):
        KombuPublisher(url, conf).publish([task_message()])
