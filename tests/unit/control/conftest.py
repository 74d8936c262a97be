"""Commands of the user's that a test registers are gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenq.control import user_commands


@pytest.fixture(autouse=True)
def own_commands() -> Iterator[None]:
    before = {command.name for command in user_commands}
    yield
    for command in list(user_commands):
        if command.name not in before:
            user_commands._commands.pop(command.name)
