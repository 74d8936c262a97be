"""Commands to one node, and its replies."""

from __future__ import annotations

from typing import Any

from greenq import GreenQ
from tests.support.node import Node


class Asked:
    """Commands to one node, one reply each."""

    def __init__(self, app: GreenQ, node: Node) -> None:
        self._control = app.control
        self._node = node.name

    def __call__(self, command: str, **arguments: Any) -> Any:
        replies = self._control.broadcast(command, arguments, destination=self._node, reply=True, timeout=10)
        assert replies, f"nobody answered {command}"
        return replies[0][self._node]
