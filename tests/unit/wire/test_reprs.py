"""Texts of values: Celery's shape for plain ones, bounded for all."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from greenq.wire.reprs import safe_repr

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet="ab \n\\", max_size=6)
    | st.binary(),
    lambda v: (
        st.lists(v, max_size=4)
        | st.tuples(v, v)
        | st.tuples(v)
        | st.dictionaries(st.text("ab"), v, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_what_is_small_and_shallow_is_its_repr(value: Any) -> None:
    assert safe_repr(value, levels=50) == repr(value)


@pytest.mark.parametrize(
    "value",
    [(1, 2), {}, (), (1,), [1], {"a": [1, (2, {"b": {"c": 1}})]}, "x", {1, 2}, None, 1.5, b"ab", {"a": set()},
     [[[[[]]]]]],
    ids=repr,
)  # fmt: skip
def test_the_shape_is_celerys(value: Any) -> None:
    assert safe_repr(value) == saferepr(value, 1024, 3)


@given(plain, st.integers(0, 40))
def test_no_text_is_longer_than_asked(value: Any, limit: int) -> None:
    assert len(safe_repr(value, limit)) <= max(limit, 3)


class Loud:
    def __repr__(self) -> str:
        raise SystemError("no")


def test_what_cannot_be_shown_is_said_so() -> None:
    assert safe_repr((1, Loud())) == "(1, <unprintable Loud: SystemError>)"
    assert safe_repr(10**5000) == "<unprintable int: ValueError>"
    cycle: list[Any] = []
    cycle.append(cycle)
    assert safe_repr(cycle) == "[[[[...]]]]"


def test_a_huge_value_costs_no_more_than_what_is_shown() -> None:
    huge = [{"k": list(range(1000))}] * 1_000_000
    began = time.process_time()
    assert safe_repr(huge).endswith("...")
    assert safe_repr("x" * 50_000_000).endswith("...")
    assert time.process_time() - began < 0.5
