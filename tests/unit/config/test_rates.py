"""Rate limits, by the grammar of wire.md 8.4."""

from __future__ import annotations

import pytest

from greenq.exceptions import ConfigError
from greenq.rates import parse_rate


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (None, None),
        ("", None),
        (0, None),
        ("0", None),
        ("0/m", None),
        (False, None),
        (5, 5.0),
        (0.5, 0.5),
        ("5", 5.0),
        ("0.5/s", 0.5),
        (".5/s", 0.5),
        ("120/m", 2.0),
        ("200/m", 200 / 60),
        ("7200/h", 2.0),
        (" 10 / m ", 10 / 60),
    ],
)
def test_a_rate_is_starts_a_second(value: object, rate: float | None) -> None:
    assert parse_rate(value) == rate


@pytest.mark.parametrize(
    "value", ["-1", -1, "-1/s", "10/x", "10/d", "fast", "1/2/s", True, [], "nan", float("inf"), "1e999/s"]
)
def test_anything_else_is_refused_with_the_grammar(value: object) -> None:
    with pytest.raises(ConfigError, match="rate limit .* is not understood: write .*100/m"):
        parse_rate(value)
