"""What commands written in Celery's style, or with plain annotations, are made of and get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greenq.control import Command, control_command, inspect_command, user_commands
from greenq.control.registry import make_command
from greenq.control.state import MemoryLog, Qos
from greenq.exceptions import BadArgument, ConfigError
from tests.support.panel import FakeHub, FakePanel, FakePrefetch

if TYPE_CHECKING:
    from greenq.control import Panel


def test_a_command_in_celerys_style_needs_no_keyword_only_arguments() -> None:
    @control_command(args=[("n", int)], signature="[N=1]")
    def raise_it(state, n=1, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN003, ANN202  (as users write)
        return n, kwargs

    command = user_commands.get("raise_it")
    assert command.ask(None, {"n": 2, "other": 3}) == (2, {"other": 3})
    assert command.ask(None, {}) == (1, {})
    with pytest.raises(BadArgument, match="argument 'n' must be int, not 'x'"):
        command.ask(None, {"n": "x"})


def test_a_name_in_args_may_be_taken_by_keyword_extras() -> None:
    def loose(state: Any, **kwargs: Any) -> Any:
        return kwargs

    command = make_command(loose, "inspect", args=[("b", int), ("a", str)], variadic="a")
    assert [parameter.name for parameter in command.parameters] == ["b", "a"]
    assert command.read_words(["1", "x", "y"]) == {"b": 1, "a": ["x", "y"]}
    assert command.ask(None, {}) == {}
    with pytest.raises(BadArgument, match="argument 'b' must be int"):
        command.ask(None, {"b": "x"})


def test_a_function_in_args_reads_what_is_typed_and_checks_nothing_on_the_worker() -> None:
    def parse(text: str) -> list[str]:
        if "-" not in text:
            raise ValueError("no dash in it")
        return text.split("-")

    def when(state: Any, moment: Any) -> Any:
        return moment

    command = make_command(when, "inspect", args=[("moment", parse)])
    assert command.read_words(["a-b"]) == {"moment": ["a", "b"]}
    assert command.ask(None, {"moment": 5}) == 5
    with pytest.raises(BadArgument, match="when: moment: no dash in it"):
        command.read_words(["ab"])


def test_the_panels_type_may_be_known_to_the_type_checker_only() -> None:
    def typed(panel: Panel, *, names: list[str]) -> Panel:
        return panel

    assert make_command(typed, "inspect").parameters[0].kind == list[str]

    def unknown(panel: Any, *, names: list[Nowhere]) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return panel

    with pytest.raises(ConfigError, match="command unknown: an annotation cannot be read: name 'Nowhere'"):
        make_command(unknown, "inspect")


def test_a_users_commands_are_marked_and_may_be_asked_by_those_who_may_do_the_like() -> None:
    @inspect_command
    def reads(state: Any) -> None: ...

    @control_command
    def acts(state: Any) -> None: ...

    found: list[Command] = [user_commands.get("reads"), user_commands.get("acts")]
    assert [(command.own, command.access) for command in found] == [(True, "read"), (True, "full")]


def test_the_prefetch_count_is_raised_and_lowered() -> None:
    panel = FakePanel()
    qos = Qos(FakeHub(panel), FakePrefetch(40))  # type: ignore[arg-type]
    assert (qos.value, qos.increment_eventually(5), qos.decrement_eventually(), qos.value) == (40, 45, 44, 44)


@pytest.mark.parametrize(("before", "by", "after"), [(40, 5, 45), (40, -50, 1), (0, 5, 0)])
def test_a_prefetch_count_that_has_to_wait_is_told_as_it_will_be(before: int, by: int, after: int) -> None:
    panel = FakePanel()
    panel.busy = "proj.spin[id]"
    qos = Qos(FakeHub(panel), FakePrefetch(before))  # type: ignore[arg-type]
    assert qos.increment_eventually(by) == after
    assert qos.value == before


def test_memory_samples_are_dumped_once_spread_over_the_time() -> None:
    sizes = iter(range(1, 100))
    log = MemoryLog(lambda: next(sizes) * 2**20)
    for _ in range(5):
        log.sample()
    seen = "- rss (sample):\n-    > 1.000MB,\n-    > 3.000MB,\n-    > 5.000MB,\n"
    assert log.dump(3) == f"{seen}- rss (end): 6.000MB.\n"
    assert log.dump(3) == "- rss (end): 7.000MB.\n"
