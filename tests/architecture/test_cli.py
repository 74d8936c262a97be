"""The page of the command line is the commands', and leaves none out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest

from greenq.cli.root import TABLE, make_root
from greenq.cli.state import State
from tests.architecture.made import assert_made
from tests.architecture.source import ROOT

PAGE = "docs/reference/cli.md"


def options() -> Iterator[Any]:
    root = make_root()
    context = click.Context(root, obj=State())
    for entry in TABLE:
        command = root.get_command(context, entry.name)
        assert command is not None
        for param in command.get_params(click.Context(command, parent=context)):
            if isinstance(param, click.Option) and not param.hidden and param.name != "help":
                yield pytest.param(entry.name, param, id=f"{entry.name}{param.opts[-1]}")


def test_the_page_of_the_command_line_is_made_from_the_commands() -> None:
    assert_made(PAGE, "scripts/cli_page.py")


@pytest.mark.parametrize(("command", "option"), list(options()))
def test_the_page_describes_every_option(command: str, option: click.Option) -> None:
    text = (ROOT / PAGE).read_text()
    everybodys = text.partition("\n## Options of every command\n")[2].partition("\n## ")[0]
    own = text.partition(f"\n## greenq {command}\n")[2].partition("\n## ")[0]
    assert own
    assert option.help, "what it does"
    for name in option.opts:
        assert f"`{name}" in own + everybodys or f", {name}" in own + everybodys


@pytest.mark.parametrize("code", ["0", "1", "2", "69", "70"])
def test_the_page_has_every_exit_code(code: str) -> None:
    assert f"\n| {code} | " in (ROOT / PAGE).read_text()
