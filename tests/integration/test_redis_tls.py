"""Redis over TLS: checked by default, and everything works through it, the doorbell too."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Queue

from greenq.exceptions import BrokerUnreachable, ResultError
from greenq.model import Record
from greenq.results.redis import RedisResults
from greenq.transports.redis import open_store, register
from tests.support.redis_proxy import number_of, posts
from tests.support.services import RedisServer, find_program, free_port

OURS = "greenq.transports.redis:Transport"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, beside its key (`.key`)."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = [find_program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    files = ["-keyout", f"{path}.key", "-out", str(path)]
    subprocess.run([*make, *subject, *files], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def secure_url(certificate: Path) -> Iterator[str]:
    port = free_port()
    server = RedisServer(
        tls_port=str(port),
        tls_cert_file=str(certificate),
        tls_key_file=f"{certificate}.key",
        tls_ca_cert_file=str(certificate),
        tls_auth_clients="no",
    )
    with server:
        yield f"rediss://localhost:{port}/0"


def test_an_unknown_certificate_is_refused_by_default(secure_url: str) -> None:
    store = open_store(secure_url, "w", {})
    with pytest.raises(BrokerUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
        store.length("q")
    store.close()
    with pytest.raises(ResultError, match="CERTIFICATE_VERIFY_FAILED"):
        RedisResults(secure_url).read(["t"])
    register()
    for url, transport in ((secure_url, OURS), (f"greenq+{secure_url}", None)):
        connection = Connection(url, transport=transport)
        with pytest.raises(connection.connection_errors, match="CERTIFICATE_VERIFY_FAILED"):
            connection.connect()


def test_the_check_can_be_given_a_certificate_or_be_turned_off(secure_url: str, certificate: Path) -> None:
    ways: list[tuple[str, dict[str, Any]]] = [
        (f"{secure_url}?ssl_ca_certs={certificate}", {}),
        (secure_url, {"ssl": {"ssl_ca_certs": str(certificate)}}),
        (f"{secure_url}?ssl_cert_reqs=none", {}),
        (f"{secure_url}?ssl_cert_reqs=CERT_NONE", {}),
    ]
    for url, options in ways:
        store = open_store(url, "w", options)
        assert store.length("q") == 0
        store.close()


def test_claims_waits_and_results_work_over_tls(secure_url: str, certificate: Path) -> None:
    url = f"{secure_url}?ssl_ca_certs={certificate}"
    store, sender = open_store(url, "w", {}), open_store(url, "p", {})
    timer = threading.Timer(0.3, lambda: sender.post(posts(300)))
    timer.start()
    start = time.monotonic()
    assert store.wait(["q"], 10) is True
    assert time.monotonic() - start < 2
    timer.join()
    assert store.rings
    got = [d for _ in range(3) for d in store.claim(["q"], 100)]
    assert [number_of(d.raw) for d in got] == list(range(300))
    assert store.settle([d.tag for d in got]) == 0
    assert store.wait(["q"], 0.2) is False

    results = RedisResults(url)
    timer = threading.Timer(0.3, lambda: results.store([Record("t", "SUCCESS", b'{"status": "SUCCESS"}')]))
    timer.start()
    assert results.wait("t", lambda payload: True, 10) == b'{"status": "SUCCESS"}'
    timer.join()
    for closing in (store, sender, results):
        closing.close()


def test_the_kombu_transport_works_over_tls(secure_url: str, certificate: Path) -> None:
    register()
    got: list[Any] = []
    with Connection(f"greenq+{secure_url}?ssl_ca_certs={certificate}") as connection:
        connection.Producer().publish({"a": 1}, exchange="", routing_key="tls")
        with connection.Consumer([Queue("tls")], on_message=lambda m: (got.append(m.payload), m.ack())):
            connection.drain_events(timeout=5)
    assert got == [{"a": 1}]
