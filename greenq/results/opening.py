"""The result stores by the schemes of their URLs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from urllib.parse import urlsplit

from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.results.base import ResultStore
from greenq.results.disabled import DisabledResults

STORES = {
    "redis": "greenq.results.redis:RedisResults",
    "rediss": "greenq.results.redis:RedisResults",
    "redis+socket": "greenq.results.redis:RedisResults",
    "unix": "greenq.results.redis:RedisResults",
    "sqlite": "greenq.results.sqlite:SqliteResults",
}
RPC = "greenq.results.rpc:RpcResults"


def open_results(url: str | None, conf: Settings) -> ResultStore:
    """Make the result store for the URL; it connects at first use. None, "" and "disabled://" keep nothing.

    Raises:
        ConfigError: for a scheme that no store serves.
    """
    scheme = urlsplit(url).scheme.lower() if url else "disabled"
    if url and not scheme:
        scheme = url.lower()
    if scheme == "disabled":
        return DisabledResults()
    if scheme == "rpc":
        return _load(RPC)(conf.broker_url, conf)
    if scheme not in STORES:
        known = ", ".join(sorted([*STORES, "rpc", "disabled"]))
        raise ConfigError(f"no result store for {scheme}:// (result_backend); there are {known}")
    return _load(STORES[scheme])(url, options=conf.result_backend_transport_options)


def _load(reference: str) -> Callable[..., ResultStore]:
    module, _, name = reference.partition(":")
    found: Callable[..., ResultStore] = getattr(importlib.import_module(module), name)
    return found
