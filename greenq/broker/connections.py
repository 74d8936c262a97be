"""The one place where kombu connections are made, and where kombu's errors become ours."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import kombu
from kombu.exceptions import OperationalError
from kombu.utils.url import parse_url

from greenq.broker.stores import scheme_of
from greenq.config import Settings
from greenq.conversion import MASK, mask_text, mask_url, masked_value, scrubbed
from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError

# scheme -> greenq's own kombu transport; every other scheme is kombu's.
TRANSPORTS = {
    "redis": "greenq.transports.redis:Transport",
    "rediss": "greenq.transports.redis:Transport",
    "redis+socket": "greenq.transports.redis:Transport",
    "unix": "greenq.transports.redis:Transport",
    "sqlite": "greenq.transports.sqlite:Transport",
}
_REDIS = frozenset({"redis", "rediss", "redis+socket", "unix"})
# A subscriber never writes, so only the kernel can notice that its Redis is gone: after some 30 s.
_KEEPALIVE = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
)
_ANSWER_TIMEOUT = 10.0  # seconds; a Redis that is silent for longer is taken for dead


def connect(
    url: str, conf: Settings, *, heartbeat: float = 0.0, options: Mapping[str, Any] | None = None
) -> kombu.Connection:
    """Make a kombu connection for a broker URL; it connects at first use, and only loads what the URL needs.

    `heartbeat` (seconds, AMQP only) obliges the owner to call `heartbeat_check` about every quarter of it.
    `options` are transport options beneath those of `broker_transport_options`.

    Raises:
        ConfigError: for a URL without a scheme or of a kind that no transport serves.
    """
    url = url.split(";", 1)[0]  # fail-over between several brokers is not part of this version
    scheme = scheme_of(url)
    try:
        connection = kombu.Connection(
            _kombu_url(url, scheme),
            transport=TRANSPORTS.get(scheme),
            connect_timeout=conf.broker_connection_timeout,
            heartbeat=heartbeat,
            login_method=conf.broker_login_method,
            ssl=_ssl(url, scheme, conf),
            transport_options={**_options(scheme, conf), **(options or {}), **conf.broker_transport_options},
        )
        # kombu reads "redis+socket" as a transport with a prefix and forgets the one it was given.
        connection.transport_cls = TRANSPORTS.get(scheme, connection.transport_cls)
        connection.transport  # noqa: B018  (found now, so that an unknown scheme is an error of this line)
    except (KeyError, ValueError, ImportError) as exc:
        raise ConfigError(f"the broker URL {mask_url(url)!r} cannot be used: {scrubbed(str(exc), url)}") from None
    return connection


def _kombu_url(url: str, scheme: str) -> str:
    if scheme != "unix":
        return url
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if "db" in query:
        query["virtual_host"] = query.pop("db")
    return f"redis+socket://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")


def _options(scheme: str, conf: Settings) -> dict[str, Any]:
    if scheme in _REDIS:
        return {
            "socket_connect_timeout": conf.broker_connection_timeout,
            "socket_timeout": _ANSWER_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": dict(_KEEPALIVE),
        }
    return {}


def _ssl(url: str, scheme: str, conf: Settings) -> Any:
    # To kombu, rediss:// without options means "check nothing"; here certificates are checked by default.
    if scheme == "rediss" and not isinstance(conf.broker_use_ssl, dict) and "ssl_cert_reqs" not in url:
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return conf.broker_use_ssl


@contextmanager
def broker_errors(connection: kombu.Connection, url: str) -> Iterator[None]:
    """Turn whatever kombu and its libraries raise for a lost or refused connection into BrokerUnreachable."""
    try:
        yield
    except BrokerError:
        raise
    except (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError) as exc:
        reason = scrubbed(str(exc).strip(), url) or type(exc).__name__
        raise BrokerUnreachable(f"no connection to {mask_url(url)}: {reason}") from exc


def describe(url: str, conf: Settings) -> dict[str, Any]:
    """The `broker` object of `inspect stats` (wire.md 3.5), without the password; connects to nothing."""
    connection = connect(url, conf, heartbeat=conf.broker_heartbeat or 0)
    scheme = scheme_of(url)
    info: dict[str, Any] = dict(connection.info())
    info.pop("password", None)
    info["transport"] = connection.uri_prefix or scheme
    if scheme in _REDIS:
        # The transport reads its URL itself, so kombu has not taken it apart.
        parts = parse_url(_kombu_url(url, scheme))
        info.update({name: parts[name] for name in ("userid", "port")}, hostname=parts["hostname"] or url)
        info["virtual_host"] = str(parts["virtual_host"] or 0) if parts["hostname"] else "0"
        info["transport"] = "redis"
    info["hostname"] = mask_url(info["hostname"] or "")
    info["ssl"] = bool(info.get("ssl"))
    info["transport_options"] = _plain(info.get("transport_options") or {})
    info["credential_provider"] = MASK if info.get("credential_provider") else None
    info["alternates"] = []
    return info


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    scalar = (str, int, float, bool, type(None))
    return {
        mask_text(str(name)): value if name == "global_keyprefix" else masked_value(str(name), value)
        for name, value in options.items()
        if isinstance(value, scalar)
    }
