"""The page of remote commands is the registry's, and leaves none out."""

from __future__ import annotations

import pytest

from greenq.control.registry import Command, default_registry
from tests.architecture.made import assert_made
from tests.architecture.source import ROOT

PAGE = ROOT / "docs" / "reference" / "commands.md"


def test_the_page_of_commands_is_made_from_the_registry() -> None:
    assert_made("docs/reference/commands.md", "scripts/commands_page.py")


@pytest.mark.parametrize("command", default_registry(), ids=lambda command: command.name)
def test_the_page_describes_every_command(command: Command) -> None:
    _, found, rest = PAGE.read_text().partition(f"\n### {command.name}\n")
    described = rest.partition("\n### ")[0]
    assert found, "it has no heading"
    assert command.help in described
    assert f"**Access** `{command.access}`" in described
    assert "Reply:" in described
    assert not command.alias or f"`{command.alias}`" in described
    for parameter in command.parameters:
        assert f"| `{parameter.name}` |" in described
