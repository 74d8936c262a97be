"""Replies as a person reads them."""

from __future__ import annotations

import json

import pytest

from greenq.cli import tables
from greenq.cli.tables import plain, render, table

INFO = {"id": "id-1", "name": "proj.add", "args": [2, "x"], "kwargs": {"y": 1}, "time_start": None, "worker_pid": 7}


def test_ok_and_error_are_unwrapped() -> None:
    assert render("ping", {"ok": "pong"}) == "    pong"
    assert render("stats", {"error": "KeyError('x')"}) == "    KeyError('x')"


def test_columns_stand_below_each_other() -> None:
    text = table(("ID", "TASK"), [("1", "proj.add"), ("22", None)])
    assert text.splitlines() == ["ID  TASK", "1   proj.add", "22  -"]


def test_a_long_cell_is_cut_and_a_line_break_cannot_forge_a_row() -> None:
    text = table(("A", "B"), [("x" * 100, 1), ("a\nb", 2)])
    assert text.splitlines()[1:] == ["x" * 57 + "...  1", "a b".ljust(62) + "2"]


def test_a_table_is_cut_to_the_terminal_and_not_for_a_pipe() -> None:
    info = {**INFO, "args": ["y" * 200]}
    assert "y" * 200 in render("active", [info])
    lines = render("active", [info], width=80).splitlines()
    assert [len(line) <= 80 for line in lines] == [True, True]
    assert lines[1].endswith("...")
    assert "y" * 200 in render("own_command", "y" * 200, width=80)


@pytest.mark.parametrize("command", ["stats", "own_command", "registered", "conf"])
def test_no_value_steers_the_terminal(command: str) -> None:
    for data in ({"a": "\x1b[2J"}, ["\x1b[2J"], "\x1b[2J", {"ok": "\x1b[2J\ta"}):
        text = render(command, data)
        assert "\x1b" not in text
        assert "\t" not in text


@pytest.mark.parametrize("command", tables._RENDERERS)
@pytest.mark.parametrize("data", [None, 5, "text", [5], [None], {"a": 5}, {"a": ["b"]}, {"a": None}, [["b"]], {}, []])
def test_a_reply_nobody_sends_is_shown_all_the_same(command: str, data: object) -> None:
    assert isinstance(render(command, data), str)


def test_found_tasks_are_a_table_of_where_they_are() -> None:
    lines = render("query_task", {"id-1": ["active", INFO]}).splitlines()
    assert lines[0].split() == ["ID", "STATE", "TASK", "ARGUMENTS"]
    assert lines[1].split()[:3] == ["id-1", "active", "proj.add"]
    assert render("query_task", {}) == "    - empty -"


def test_settings_are_a_line_each_and_the_clock_is_a_number() -> None:
    lines = render("conf", {"b": [1, 2], "long_name": None}).splitlines()
    assert lines == ["    b          [1, 2]", "    long_name  null"]
    assert render("clock", {"clock": 5}) == "    5"


def test_no_tasks_is_said_so() -> None:
    assert render("active", []) == "    - empty -"


def test_tasks_are_shown_with_their_call() -> None:
    for command in ("active", "reserved"):
        assert "(2, 'x', y=1)" in render(command, [INFO])
    assert "(2, 'x', y=1)" in render("scheduled", [{"eta": "2026-11-22T07:06:56+00:00", "request": INFO}])


def test_arguments_sent_as_text_are_shown_as_they_are() -> None:
    assert "([2, 2] {})" not in render("active", [{**INFO, "args": "[2, 2]", "kwargs": "{}"}])
    assert "[2, 2]" in render("active", [{**INFO, "args": "[2, 2]", "kwargs": "{}"}])


def test_registered_tasks_are_a_table_of_names_and_attributes() -> None:
    lines = render("registered", ["proj.add", "proj.limited [rate_limit=10/m]"]).splitlines()
    assert lines[2].split() == ["proj.limited", "rate_limit=10/m"]


def test_stats_of_an_old_worker_do_not_break_the_table() -> None:
    text = render("stats", {"total": {"a": 1, "b": 5}, "pool": "N/A", "broker": {}, "pid": 5, "rusage": "N/A"})
    assert text.index("b     5") < text.index("a     1")
    assert "N/A" in text


def test_everything_else_is_json_or_starred_lines() -> None:
    assert plain([]) == "- empty -"
    assert plain(["a", {"b": 1}]) == '* a\n* {"b": 1}'
    assert json.loads(plain({"b": 1, "a": 2})) == {"a": 2, "b": 1}
    assert plain(None) == "-"
