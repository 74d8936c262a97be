"""Settings from environment variables: `GREENQ_` and the name of any, or `CELERY_` and one of Celery's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from greenq.conversion import KINDS
from greenq.exceptions import ConfigError
from greenq.settings import TABLE

OWN, CELERYS = "GREENQ_", "CELERY_"
# What a parent process or `-b` may still say after an app was made.
ALWAYS_ASKED = frozenset({"broker_url", "result_backend"})
_SHORT = MappingProxyType({"worker_control_keys": "GREENQ_CONTROL_KEYS"})
# Celery has no such settings, and reads these variables (wire.md 2).
_VARIABLES_OF_CELERYS = frozenset({"worker_revokes_max", "worker_revoke_expires"})
# Kinds whose values are written as JSON; a list may also be written with commas.
_STRUCTURED = frozenset({"dict", "queues", "list", "any"})
_ALIKE = 0.9  # of difflib; a variable this near to a setting's is a mistyped one


def variables_of(name: str) -> tuple[str, ...]:
    """The variables that give a setting its value, the strongest first."""
    upper = name.upper()
    own = (OWN + upper, *((_SHORT[name],) if name in _SHORT else ()))
    return own if TABLE[name].own and name not in _VARIABLES_OF_CELERYS else (*own, CELERYS + upper)


def variable_in(environ: Mapping[str, str], name: str) -> str | None:
    """The variable that gives the setting its value; an empty one gives none."""
    return next((variable for variable in variables_of(name) if environ.get(variable)), None)


def settings_in(environ: Mapping[str, str]) -> set[str]:
    """The settings that the environment gives a value to."""
    return {name for name in TABLE if variable_in(environ, name)}


def value_of(name: str, variable: str, text: str) -> Any:
    """Convert what a variable says. Dicts and lists are JSON; a list may be words with commas between.

    Raises:
        ConfigError: naming the variable.
    """
    kind = TABLE[name].kind
    try:
        return KINDS[kind].convert(_structure(kind, text) if kind in _STRUCTURED else text)
    except (TypeError, ValueError, ConfigError) as exc:
        raise ConfigError(f"the environment variable {variable}: {exc}") from exc


def _structure(kind: str, text: str) -> Any:
    if kind == "any" or text.lstrip()[:1] in {"{", "["}:
        try:
            return json.loads(text)
        except ValueError as exc:
            if kind != "any":
                raise ValueError(f"this is not JSON: {exc}") from exc
    return text


def mistyped(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that is nearly the name of a setting's."""
    known = {OWN + name.upper(): name for name in TABLE} | {short: name for name, short in _SHORT.items()}
    found = []
    for variable in sorted(environ):
        if variable.startswith(OWN) and variable not in known:
            near = get_close_matches(variable, known, n=1, cutoff=_ALIKE)
            if near:
                found.append(f"environment variable {variable} sets nothing: did you mean {near[0]}?")
    return found
