"""Which apps this process has, which one is current, and the tasks that belong to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

if TYPE_CHECKING:
    from greenq.app.base import GreenQ
    from greenq.app.task import Task


class SharedDefinition:
    """One function under `@shared_task`, and the task it became in each app."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.function = function
        self.options = options
        self.tasks: MutableMapping[GreenQ, Task[..., Any]] = WeakKeyDictionary()

    def register(self, app: GreenQ) -> None:
        """Make it a task of that app."""
        self.tasks[app] = app.register(self.function, self.options)


class Directory:
    """The apps of one process. The newest is current until another one says so."""

    def __init__(self) -> None:
        self._apps: WeakSet[GreenQ] = WeakSet()
        self._shared: list[SharedDefinition] = []
        self._current: GreenQ | None = None

    def add(self, app: GreenQ) -> None:
        """Take in a new app, make it current, and give it the shared tasks."""
        self._apps.add(app)
        self._current = app
        for definition in self._shared:
            definition.register(app)

    def share(self, definition: SharedDefinition) -> None:
        """Give a shared task to every app, those still to come included."""
        self._shared.append(definition)
        for app in list(self._apps):
            definition.register(app)

    def make_current(self, app: GreenQ) -> None:
        """Let shared tasks and unbound results mean this app."""
        self._current = app

    def current(self) -> GreenQ:
        """The current app.

        Raises:
            RuntimeError: if no app has been made yet.
        """
        if self._current is None:
            raise RuntimeError(
                "no GreenQ app exists in this process yet: import the module that makes it before a shared "
                "task is used (in Django: in the project package's __init__.py)"
            )
        return self._current


# The one piece of process-wide state in this room: shared tasks are defined before any app is known.
APPS = Directory()
