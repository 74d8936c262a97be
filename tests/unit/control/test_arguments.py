"""Values from the wire are checked, words from the prompt are read."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.control.arguments import check, describe, read_text, supported

IDS = str | list[str]


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (int, 3, 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (str, "x", "x"),
        (bool, True, True),
        (list[int], (1, 2), [1, 2]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (int | None, None, None),
        (IDS, ["a"], ["a"]),
        (Literal["a", "b"], "b", "b"),
        (Any, object, object),
    ],
)
def test_a_value_of_the_kind_is_taken(kind: Any, value: Any, wanted: Any) -> None:
    taken = check(kind, value)
    assert taken == wanted
    assert type(taken) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "3"),
        (int, True),
        (int, 3.5),
        (int, float("inf")),
        (int, float("nan")),
        (float, "x"),
        (float, False),
        (float, 10**400),
        (float, float("inf")),
        (str, 3),
        (str, None),
        (bool, 1),
        (bool, "true"),
        (list[int], ["x"]),
        (list, "abc"),
        (dict, []),
        (dict[str, int], {"a": "b"}),
        (IDS, 5),
        (IDS, [5]),
        (Literal["a", "b"], "c"),
        (None, 0),
    ],
)
def test_a_value_of_another_kind_is_refused_by_the_name_of_the_kind(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check(kind, value)
    assert str(caught.value) in describe(kind)


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        (int, "5", 5),
        (float, "0.5", 0.5),
        (str, "5", "5"),
        (bool, "yes", True),
        (bool, "OFF", False),
        (int | None, "none", None),
        (str | int, "9", 9),
        (str | int, "KILL", "KILL"),
        (str | float | None, "10/m", "10/m"),
        (list[int], "1,2", [1, 2]),
        (dict, '{"a": 1}', {"a": 1}),
        (Literal[1, 2], "2", 2),
        (Any, "x", "x"),
    ],
)
def test_typed_words_are_read_as_the_kind(kind: Any, text: str, wanted: Any) -> None:
    assert read_text(kind, text) == wanted


@pytest.mark.parametrize(
    ("kind", "text"), [(int, "x"), (float, ""), (bool, "maybe"), (Literal["a"], "b"), (dict, "{"), (int | None, "x")]
)
def test_a_word_that_is_not_of_the_kind_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_text(kind, text)


def test_kinds_that_nobody_could_check_are_known_as_such() -> None:
    assert supported(list[str | None])
    assert not supported(set)
    assert not supported(list[bytes])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from([int, float, str, bool, list, dict, list[str], IDS, int | None, Literal["a"]]))
def test_any_json_is_either_taken_or_refused(value: Any, kind: Any) -> None:
    try:
        check(kind, value)
    except TypeError as exc:
        assert str(exc)
