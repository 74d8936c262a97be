"""Read rate limits: a number a second, or text such as "10/m"."""

from __future__ import annotations

import math
import re

from greenq.exceptions import ConfigError

_GRAMMAR = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:/\s*([smh]))?\s*")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(value: object) -> float | None:
    """Turn a rate limit into starts a second, or None for "no limit" (wire.md 8.4).

    None, "", 0 and "0/m" mean no limit. A bare number counts a second.

    Raises:
        ConfigError: for anything else, negative rates included.
    """
    if value is None or value is False or value == "":
        return None
    rate: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        rate = float(value)
    elif isinstance(value, str) and (match := _GRAMMAR.fullmatch(value)):
        rate = float(match[1]) / _SECONDS[match[2]]
    if rate is None or rate < 0 or not math.isfinite(rate):
        raise ConfigError(
            f"rate limit {value!r} is not understood: write a number of starts a second (5, 0.5) "
            'or text with a unit: "5/s", "100/m", "2000/h"'
        )
    return rate or None
