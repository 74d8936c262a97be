"""`shared_task`: tasks of libraries and reusable packages, which belong to whatever app is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from greenq.app.directory import APPS, SharedDefinition
from greenq.app.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenq.app.options import TaskOptions

P = ParamSpec("P")
R = TypeVar("R")


class SharedTask(Task[P, R]):
    """Stands for the current app's task of one shared function; every attribute is that task's."""

    def __init__(self, definition: SharedDefinition) -> None:
        self.__dict__["_definition"] = definition

    def _task(self) -> Task[..., Any]:
        definition: SharedDefinition = self.__dict__["_definition"]
        return definition.tasks[APPS.current()]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._task(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._task(), name, value)

    def __repr__(self) -> str:
        function = self.__dict__["_definition"].function
        return f"<shared task {function.__module__}.{function.__qualname__}>"


@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(
    *, bind: Literal[True], name: str | None = ..., **options: Unpack[TaskOptions]
) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
@overload
def shared_task(
    *, bind: Literal[False] = ..., name: str | None = ..., **options: Unpack[TaskOptions]
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def shared_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task of every app in the process; takes the options of `@app.task`.

    Calling or sending it uses the current app: the newest, or the one `set_current` named.
    """

    def make(function: Callable[..., Any]) -> Task[..., Any]:
        definition = SharedDefinition(function, options)
        APPS.share(definition)
        return SharedTask(definition)

    return make if function is None else make(function)
