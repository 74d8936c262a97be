"""Where a Redis server is, and how to open one raw connection to it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from greenq.exceptions import ConfigError

# No command of ours waits inside Redis, so a reply that takes longer means a connection that is dead but
# not closed. Without this a half-open connection would hold its owner until the kernel gives up (15 minutes).
REPLY_TIMEOUT = 10.0
CONNECT_TIMEOUT = 5.0

_CERT_REQS = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
    "cert_required": ssl.CERT_REQUIRED,
    "cert_optional": ssl.CERT_OPTIONAL,
    "cert_none": ssl.CERT_NONE,
}
_CONNECTION_OPTIONS = frozenset(
    {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"}
    | {"client_name", "username", "password", "credential_provider"}
)
_TCP_ONLY = ("socket_keepalive", "socket_keepalive_options")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, a database and the way in; `str()` of it holds no password."""

    connection_class: Any  # of redis.connection: its classes are typed in part only
    params: Mapping[str, Any] = field(repr=False)
    label: str

    def connection(self, protocol: int) -> Any:
        """Make a connection, not yet connected, that never repeats a command on its own account."""
        return self.connection_class(**self.params, protocol=protocol, retry=Retry(NoBackoff(), 0))

    def __str__(self) -> str:
        return self.label


def parse_endpoint(url: str, options: Mapping[str, Any]) -> Endpoint:
    """Read a broker or result URL as kombu and Celery write them.

    `redis://[user[:password]@]host[:port][/db]`, `rediss://` (the certificate is verified unless
    `ssl_cert_reqs` says otherwise), `redis+socket:///path?virtual_host=N`, `socket://`, `unix:///path?db=N`.
    The query may hold `ssl_*`, `db`, `virtual_host` and the connection options; `options` may hold `ssl`, a
    mapping of `ssl_*` names, and the same connection options. Times are seconds.

    Raises:
        ConfigError: naming the part of the URL that cannot be used.
    """
    scheme, separator, rest = url.removeprefix("greenq+").partition("://")
    if not separator or scheme not in ("redis", "rediss", "redis+socket", "socket", "unix"):
        raise ConfigError(f"not a Redis URL: {scheme}://; use redis://, rediss:// or redis+socket:///path")
    parts = urlsplit(f"http://{rest}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    params: dict[str, Any] = {"socket_timeout": REPLY_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
    params |= {k: v for k, v in options.items() if k in _CONNECTION_OPTIONS and v is not None}
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value:
            params[name] = unquote(value)
    tls = _tls(scheme, query, options.get("ssl"))
    _take_query(query, params, url_kind=scheme)
    database = query.pop("virtual_host", query.pop("db", None))
    if query:
        # With an `@` it is rather the rest of a password than a name.
        names = sorted("**" if "@" in name else name for name in query)
        raise ConfigError(f"unknown part of the Redis URL: {', '.join(names)}")
    if scheme in ("redis", "rediss"):
        return _tcp(parts.hostname, _port(parts, rest), database or parts.path, params, tls)
    params = {k: v for k, v in params.items() if k not in _TCP_ONLY}
    path = unquote(parts.path)
    if not path or path == "/":
        raise ConfigError("the Redis socket URL has no path; write redis+socket:///run/redis.sock")
    params |= {"path": path, "db": _database(database)}
    return Endpoint(UnixDomainSocketConnection, params, f"redis+socket://{path}?virtual_host={params['db']}")


def _tcp(host: str | None, port: int, database: str, params: dict[str, Any], tls: dict[str, Any] | None) -> Endpoint:
    params.setdefault("socket_keepalive", True)
    params |= {"host": unquote(host or "127.0.0.1"), "port": port, "db": _database(database)}
    name = "rediss" if tls is not None else "redis"
    label = f"{name}://{params['host']}:{port}/{params['db']}"
    if tls is None:
        return Endpoint(Connection, params, label)
    return Endpoint(SSLConnection, params | tls, label)


def _port(parts: Any, rest: str) -> int:
    try:
        return int(parts.port or 6379)
    except ValueError as exc:
        raise ConfigError(f"the port in the Redis URL is not a number: {rest.rpartition('@')[2]}") from exc


def _database(value: str | int | None) -> int:
    text = str(value or 0).strip("/") or "0"
    if "@" in text:
        raise ConfigError("the password in the Redis URL has a slash in it; write %2F for that")
    if not text.isdigit():
        raise ConfigError(f"the Redis database is a number, as in redis://host:6379/0, not {text!r}")
    return int(text)


def _take_query(query: dict[str, str], params: dict[str, Any], url_kind: str) -> None:
    for name in _CONNECTION_OPTIONS & query.keys():
        value: Any = query.pop(name)
        if name.endswith("timeout"):
            try:
                value = float(value)
            except ValueError as exc:
                raise ConfigError(f"{name} in the {url_kind}:// URL is in seconds, not {value!r}") from exc
        elif name == "socket_keepalive":
            value = value.lower() not in ("0", "false", "no", "")
        params[name] = value


def _tls(scheme: str, query: dict[str, str], option: object) -> dict[str, Any] | None:
    """The `ssl_*` arguments, or None where the connection is a plain one."""
    names = [name for name in query if name.startswith("ssl_")]
    if scheme != "rediss" and not names and not option:
        return None
    if scheme in ("redis+socket", "socket", "unix"):
        raise ConfigError("a unix socket takes no TLS settings; remove ssl from the URL or the options")
    settings: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    if isinstance(option, Mapping):
        settings |= option
    settings |= {name: query.pop(name) for name in names}
    reqs = settings["ssl_cert_reqs"]
    if isinstance(reqs, str):
        if reqs.lower() not in _CERT_REQS:
            raise ConfigError(f"ssl_cert_reqs is required, optional or none, not {reqs!r}")
        settings["ssl_cert_reqs"] = _CERT_REQS[reqs.lower()]
    check = settings.get("ssl_check_hostname")
    if isinstance(check, str):
        settings["ssl_check_hostname"] = check.lower() not in ("0", "false", "no")
    return settings
