"""Replies as a person reads them."""

from __future__ import annotations

import json

from greenq.cli.tables import plain, render, table

INFO = {"id": "id-1", "name": "proj.add", "args": [2, "x"], "kwargs": {"y": 1}, "time_start": None, "worker_pid": 7}


def test_ok_and_error_are_unwrapped() -> None:
    assert render("ping", {"ok": "pong"}) == "    pong"
    assert render("stats", {"error": "KeyError('x')"}) == "    KeyError('x')"


def test_columns_stand_below_each_other() -> None:
    text = table(("ID", "TASK"), [("1", "proj.add"), ("22", None)])
    assert text.splitlines() == ["ID  TASK", "1   proj.add", "22  -"]


def test_a_long_cell_is_cut_and_a_line_break_cannot_forge_a_row() -> None:
    text = table(("A",), [("x" * 100,), ("a\nb",)])
    assert text.splitlines()[1:] == ["x" * 57 + "...", "a b"]


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
