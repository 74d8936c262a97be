"""The tasks of one application by their names, and the names they get."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from greenq.app.task import Task
from greenq.exceptions import NotRegistered

logger = logging.getLogger(__name__)


class Registry(dict[str, Task[..., Any]]):
    """Task name to task. A missing name raises NotRegistered, which is a KeyError."""

    def __missing__(self, name: str) -> Task[..., Any]:
        # No search for the nearest name here: a flood of unknown tasks must stay cheap.
        raise NotRegistered(name)

    def nearest(self, name: str) -> str | None:
        """The registered name most like this one, for error messages."""
        return next(iter(get_close_matches(name, self, n=1, cutoff=0.6)), None)

    def add(self, task: Task[..., Any]) -> Task[..., Any]:
        """Register a task and return it.

        A different function under a taken name replaces the first, with a warning, since only one of the two
        will ever run. The same line of code once more (a module that is reloaded) is no reason for one.
        """
        known = self.get(task.name)
        if known is not None and _place(known.function) != _place(task.function):
            logger.warning(
                "Task %s is defined twice: by %s and by %s; the latter is used.",
                task.name,
                ":".join(map(str, _place(known.function))),
                ":".join(map(str, _place(task.function))),
            )
        self[task.name] = task
        return task


def default_name(function: Callable[..., Any], main: str | None) -> str:
    """`module.function`; `__main__` becomes the app's main name, or else the name of the script's file.

    A worker imports the script under the name of its file: an app that is also run as a script should have
    that name as its main name, or none.
    """
    module = function.__module__
    if module == "__main__":
        module = main or _script_name() or module
    return f"{module}.{function.__name__}"


def _script_name() -> str | None:
    script = sys.modules["__main__"]
    spec = getattr(script, "__spec__", None)
    if spec is not None:  # python -m package.module
        name: str = spec.name
        return name.removesuffix(".__main__")
    path = getattr(script, "__file__", None)
    return Path(path).stem if path else None


def _place(function: Callable[..., Any]) -> tuple[str, int]:
    code = getattr(function, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else (repr(function), 0)
