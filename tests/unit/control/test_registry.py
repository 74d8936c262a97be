"""How functions become commands, and how a command checks what it is asked."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.control import control_command, default_registry, inspect_command
from greenq.control.registry import make_command
from greenq.exceptions import BadArgument, ConfigError, UnknownCommand

BUILT_IN = {
    *("ping", "active", "reserved", "scheduled", "registered", "stats", "revoked", "query_task", "active_queues"),
    *("clock", "conf", "hello", "report", "memsample", "revoke", "terminate", "rate_limit", "shutdown"),
    *("time_limit", "pool_grow", "pool_shrink", "pool_restart", "autoscale"),
    *("add_consumer", "cancel_consumer"),
    "revoke_by_stamped_headers",
    *("memdump", "objgraph", "election", "enable_events", "disable_events", "heartbeat"),
}
ALIASES = {
    "dump_active": "active",
    "dump_conf": "conf",
    "dump_reserved": "reserved",
    "dump_revoked": "revoked",
    "dump_schedule": "scheduled",
    "dump_tasks": "registered",
}


def test_the_built_in_commands_are_these() -> None:
    assert {command.name for command in default_registry()} == BUILT_IN


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_the_old_names_still_work(alias: str, name: str) -> None:
    assert default_registry().get(alias).name == name


@pytest.mark.parametrize("command", default_registry(), ids=lambda command: command.name)
def test_every_command_says_what_it_does(command: Any) -> None:
    assert command.help.endswith((".", ";"))


def test_an_unknown_command_names_the_nearest() -> None:
    with pytest.raises(UnknownCommand, match="no command 'pnig'; did you mean 'ping'"):
        default_registry().get("pnig")


def test_both_decorators_may_be_bare_or_called() -> None:
    @inspect_command
    def bare(panel: Any) -> str:
        """Do nothing."""
        return "bare"

    @inspect_command()
    def called(panel: Any) -> str:
        return "called"

    @control_command(args=[("n", int)], signature="[N=1]", alias="inc", default_timeout=2.0, help="Count.")
    def increase(state: Any, n: Any = 1) -> dict[str, int]:
        return {"ok": n}

    registry = default_registry()
    assert registry.get("bare").help == "Do nothing."
    assert registry.get("called").ask(None, {}) == "called"
    command = registry.get("inc")
    assert (command.name, command.kind, command.help, command.signature) == ("increase", "control", "Count.", "[N=1]")
    assert command.ask(None, {}) == {"ok": 1}
    assert command.ask(None, {"n": 5}) == {"ok": 5}
    assert command.read_words(["5"]) == {"n": 5}
    assert bare(None) == "bare"  # the function itself is left as it was


def test_a_users_command_replaces_a_built_in_one_of_its_name() -> None:
    @inspect_command
    def ping(panel: Any) -> str:
        return "mine"

    assert default_registry().get("ping").ask(None, {}) == "mine"


def sample(panel: Any, *, task_id: str | list[str], count: int = 1, loud: bool = False) -> tuple[Any, ...]:
    """Do something."""
    return task_id, count, loud


def test_arguments_are_checked_by_their_annotations() -> None:
    command = make_command(sample, "inspect")
    assert command.ask(None, {"task_id": "a"}) == ("a", 1, False)
    assert command.ask(None, {"task_id": ["a"], "count": 2.0, "loud": True}) == (["a"], 2, True)


def test_null_for_an_argument_with_a_default_means_the_default() -> None:
    assert make_command(sample, "inspect").ask(None, {"task_id": "a", "count": None, "loud": None}) == ("a", 1, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "sample needs the argument 'task_id' (str or list of str)"),
        ({"task_id": None}, "argument 'task_id' must be str or list of str, not None"),
        ({"task_id": "a", "count": "x"}, "argument 'count' must be int, not 'x'"),
        ({"task_id": "a", "loud": 1}, "argument 'loud' must be bool, not 1"),
        ({"task_id": "a", "bad": 1}, "sample has no argument 'bad'; it takes: task_id, count, loud"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadArgument) as caught:
        make_command(sample, "inspect").ask(None, arguments)
    assert words in str(caught.value)


def test_a_command_with_keyword_extras_takes_any() -> None:
    def open_minded(panel: Any, **extras: Any) -> dict[str, Any]:
        return extras

    assert make_command(open_minded, "inspect").ask(None, {"a": 1}) == {"a": 1}


def test_words_fill_the_parameters_in_order_and_the_variadic_takes_the_rest() -> None:
    def command(panel: Any, *, signal: str, task_id: list[str], deep: bool = False) -> None:
        """Do."""

    made = make_command(command, "control", args=[("signal", str)], variadic="task_id")
    assert made.read_words(["KILL", "a", "b"]) == {"signal": "KILL", "task_id": ["a", "b"]}
    assert [parameter.name for parameter in made.named()] == ["deep"]
    with pytest.raises(BadArgument, match="needs task_id"):
        made.read_words(["KILL"])


def test_a_word_too_many_or_of_the_wrong_kind_is_refused() -> None:
    def command(panel: Any, n: int = 1) -> None:
        """Do."""

    made = make_command(command, "control")
    with pytest.raises(BadArgument, match="one word too many: 'y'"):
        made.read_words(["1", "y"])
    with pytest.raises(BadArgument, match="'x' is not int"):
        made.read_words(["x"])


def test_an_optional_parameter_after_the_star_is_an_option_and_one_before_it_a_word() -> None:
    def command(panel: Any, first: int = 1, *, second: int = 2, third: str) -> None:
        """Do."""

    made = make_command(command, "control")
    assert [parameter.name for parameter in made.positional()] == ["first", "third"]
    assert [parameter.name for parameter in made.named()] == ["second"]


def no_panel() -> None:
    """Do."""


def odd_kind(panel: Any, *, what: set[int]) -> None:
    """Do."""


def star(panel: Any, *things: int) -> None:
    """Do."""


@pytest.mark.parametrize(
    ("function", "meta", "words"),
    [
        (no_panel, {}, "take the panel"),
        (odd_kind, {}, "cannot be checked"),
        (star, {}, "callable by its name"),
        (sample, {"args": [("nope", int)]}, "no parameter 'nope'"),
        (sample, {"variadic": "nope"}, "no parameter 'nope'"),
    ],
)
def test_a_function_that_cannot_be_a_command_is_refused_at_once(function: Any, meta: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_command(function, "inspect", **meta)
