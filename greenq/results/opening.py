"""The result stores by the schemes of their URLs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from urllib.parse import urlsplit

from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.model import State
from greenq.results.base import ResultStore
from greenq.results.disabled import DisabledResults
from greenq.wire.results import decode_meta
from greenq.wire.serializers import Accept

REDIS = "greenq.results.redis:RedisResults"
STORES = {
    "redis": REDIS,
    "rediss": REDIS,
    "redis+socket": REDIS,
    "unix": REDIS,
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
    options = dict(conf.result_backend_transport_options)
    if STORES[scheme] == REDIS:
        options["succeeded"] = _recognition(conf)
    return _load(STORES[scheme])(url, options=options)


def _recognition(conf: Settings) -> Callable[[bytes], bool]:
    """How a SUCCESS is known that a script in the store cannot recognise: compressed, or not JSON."""
    accept = Accept.of(conf.result_accept_content or conf.accept_content)
    return lambda payload: decode_meta(payload, accept).status == State.SUCCESS


def _load(reference: str) -> Callable[..., ResultStore]:
    module, _, name = reference.partition(":")
    found: Callable[..., ResultStore] = getattr(importlib.import_module(module), name)
    return found
