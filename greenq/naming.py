"""Name nodes, and expand the `%` variables of node names and paths (wire.md 1.3)."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from greenq.exceptions import ConfigError

DEFAULT_NAME = "greenq"
_VARIABLE = re.compile(r"%(.?)", re.DOTALL)


def node_name(value: str | None = None, host: str | None = None) -> str:
    """Resolve the `-n` value to a full node name, `name@host`.

    A value without `@` is the host part, as in Celery: `-n foo` is `greenq@foo`. An empty side gets its
    default. `%h`, `%n` and `%d` stand for the full host name, the part before its first dot, and the rest.

    Raises:
        ConfigError: for any other letter after `%`.
    """
    host = host or socket.gethostname()
    short, _, domain = host.partition(".")
    text = _substitute(value or "", {"h": host, "n": short, "d": domain, "i": "0", "I": ""}, "node name")
    name, at, place = text.partition("@")
    if not at:
        name, place = "", text
    return f"{name or DEFAULT_NAME}@{place or host}"


def expand(template: str, node: str, index: int = 0) -> str:
    """Fill in a path template of `--logfile`, `--pidfile` or `--statedb` for one node.

    `%p` is the node name, `%h` and `%n` its parts after and before `@`, `%d` the domain of the former;
    `%i` the pool index (0 in the main process), `%I` the same with a leading dash, empty in the main process.

    Raises:
        ConfigError: for any other letter after `%`.
    """
    name, _, host = node.partition("@")
    domain = host.partition(".")[2]
    dashed = f"-{index}" if index else ""
    variables = {"p": node, "h": host, "n": name, "d": domain, "i": str(index), "I": dashed}
    return _substitute(template, variables, "path")


def _substitute(template: str, variables: Mapping[str, str], what: str) -> str:
    def value(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "%":
            return "%"
        if letter not in variables:
            known = " ".join(f"%{each}" for each in variables)
            raise ConfigError(f"unknown '%{letter}' in the {what} {template!r}: use {known} or %%")
        return variables[letter]

    return _VARIABLE.sub(value, template)
