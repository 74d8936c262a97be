"""Which broker a URL means, and the batched store or the kombu path that serves it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.transports.base import RevokedLog, Store

# scheme -> the module of the batched store; any other scheme goes through kombu.
STORES = {
    "redis": "greenq.transports.redis",
    "rediss": "greenq.transports.redis",
    "redis+socket": "greenq.transports.redis",
    "unix": "greenq.transports.redis",
    "sqlite": "greenq.transports.sqlite",
}

# Stores whose calls block in C: on a green hub they are made in a native thread.
BLOCK_IN_C = frozenset({"sqlite"})

# Where a fanout exchange puts messages into queues; on Redis kombu publishes them to whoever listens.
KEEP_FANOUT = frozenset({"sqlite"})


def scheme_of(url: str) -> str:
    """The scheme of a broker URL, lower case.

    Raises:
        ConfigError: if there is none.
    """
    scheme = urlsplit(url).scheme.lower()
    if not scheme:
        raise ConfigError(f"broker URL {url!r} has no scheme; write redis://, amqp:// or sqlite:///")
    return scheme


def is_batched(url: str) -> bool:
    """Does a batched store serve this broker?"""
    return scheme_of(url) in STORES


def blocks_in_c(url: str) -> bool:
    """Would the store's calls hold up a green hub?"""
    return scheme_of(url) in BLOCK_IN_C


def keeps_fanout(url: str) -> bool:
    """Does what is sent to a fanout exchange wait in the queues bound to it?"""
    return scheme_of(url) in KEEP_FANOUT


def store_options(url: str, conf: Settings) -> dict[str, Any]:
    """What a batched store needs from the settings. A lock of the kernel needs no lease."""
    lease = {} if blocks_in_c(url) else {"lease": conf.broker_lease}
    return {**lease, **conf.broker_transport_options}


def open_store(url: str, owner: str, options: Mapping[str, Any]) -> Store:
    """Open the batched store for the URL; connects at first use."""
    store: Store = importlib.import_module(STORES[scheme_of(url)]).open_store(url, owner, options)
    return store


def keeps_revoked(url: str) -> bool:
    """Can the broker keep a log of revokes, which every worker may read and none takes away?"""
    return is_batched(url)


def open_revoked_log(url: str, conf: Settings) -> RevokedLog:
    """Open the log of revokes of a broker that keeps one; connects at first use."""
    # Options of kombu's that the store's warn about were named when the store was opened.
    known = ("durability", "busy_timeout") if blocks_in_c(url) else tuple(conf.broker_transport_options)
    options = {name: value for name, value in store_options(url, conf).items() if name in known}
    if conf.broker_use_ssl and not blocks_in_c(url):
        options.setdefault("ssl", conf.broker_use_ssl)  # as the control plane's own connection has it
    module = importlib.import_module(STORES[scheme_of(url)])
    log: RevokedLog = module.open_revoked_log(url, conf.control_exchange, options)
    return log
