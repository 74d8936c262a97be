"""The pools by their `-P` names, found without importing the others' libraries."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from greenq.exceptions import ConfigError

POOLS = {
    "eventlet": "greenq.pools.eventlet",
    "gevent": "greenq.pools.gevent",
    "prefork": "greenq.pools.prefork",
    "solo": "greenq.pools.solo",
}
DEFAULT_SIZE = {"eventlet": 100, "gevent": 100, "solo": 1}


def load(name: str) -> ModuleType:
    """Import a pool's module: it has `make_runtime()` and `make_pool(options, runtime)`.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in POOLS:
        near = difflib.get_close_matches(name, POOLS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(POOLS))}"
        raise ConfigError(f"no pool {name!r}{hint}")
    return importlib.import_module(POOLS[name])
