"""Signatures: a task, its arguments and options as data, to be sent, linked or grouped (wire.md 5.6)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from greenq.app.directory import APPS
from greenq.app.results import AsyncResult, GroupResult

if TYPE_CHECKING:
    from greenq.app.base import GreenQ

_FIELDS = ("task", "args", "kwargs", "options", "subtask_type", "immutable")
_LATER = "chains and chords are not part of this version; group(...) and link= are"


class Signature(dict[str, Any]):
    """One call of one task, as the dict that goes over the wire.

    Arguments given when it is sent go in front of its own, unless it is immutable.
    """

    def __init__(
        self,
        task: str | Mapping[str, Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        app: GreenQ | None = None,
    ) -> None:
        if isinstance(task, Mapping):
            super().__init__({field: task.get(field) for field in _FIELDS})
            if not isinstance(self["task"], str):
                raise TypeError(f"{dict(task)!r} is no signature: it names no task")
            self["args"] = list(self["args"] or ())
            self["kwargs"] = dict(self["kwargs"] or {})
            self["options"] = dict(self["options"] or {})
            self["immutable"] = bool(self["immutable"])
        else:
            super().__init__(
                task=task,
                args=list(args or ()),
                kwargs=dict(kwargs or {}),
                options=dict(options or {}),
                subtask_type=None,
                immutable=immutable,
            )
        self._app = app

    @property
    def task(self) -> str:
        """The task's name."""
        name: str = self["task"]
        return name

    @property
    def args(self) -> list[Any]:
        """Positional arguments."""
        args: list[Any] = self["args"]
        return args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        kwargs: dict[str, Any] = self["kwargs"]
        return kwargs

    @property
    def options(self) -> dict[str, Any]:
        """Options for `apply_async`."""
        options: dict[str, Any] = self["options"]
        return options

    @property
    def immutable(self) -> bool:
        """Whether it takes no more arguments."""
        return bool(self["immutable"])

    @property
    def app(self) -> GreenQ:
        """The app it is sent by: the one of its task, else the current one."""
        return APPS.current() if self._app is None else self._app

    def merged(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        """Arguments and options as they are sent: given ones in front of its own, or dropped if immutable."""
        own = {**self.options, **options}
        if self.immutable:
            return list(self.args), dict(self.kwargs), own
        return [*args, *self.args], {**self.kwargs, **(kwargs or {})}, own

    def plain(self) -> dict[str, Any]:
        """A plain dict for the wire, linked signatures included: some serializers refuse a subclass."""
        options = dict(self.options)
        for key in ("link", "link_error"):
            if options.get(key):
                options[key] = [as_signature(each).plain() for each in _as_list(options[key])]
        return {**self, "options": options}

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send it; takes the options of `Task.apply_async`."""
        refuse_composed(self)
        args, kwargs, options = self.merged(args, kwargs, **options)
        return self.app.send_task(self.task, args, kwargs, **options)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Send it with more arguments."""
        return self.apply_async(args, kwargs)

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Signature:
        """A copy with more arguments and options."""
        args, kwargs, options = self.merged(args, kwargs, **options)
        copy = Signature(self.task, args, kwargs, options, immutable=self.immutable, app=self._app)
        for key in ("link", "link_error"):
            if key in copy.options:
                copy.options[key] = list(_as_list(copy.options[key]))
        return copy

    def set(self, *, immutable: bool | None = None, **options: Any) -> Signature:
        """Change it in place, and return it."""
        if immutable is not None:
            self["immutable"] = immutable
        self.options.update(options)
        return self

    def link(self, callback: Mapping[str, Any]) -> Signature:
        """Send `callback` with the result when this succeeds; returns `callback`."""
        return self._append("link", callback)

    def link_error(self, errback: Mapping[str, Any]) -> Signature:
        """Send `errback` with the task's id when this fails; returns `errback`."""
        return self._append("link_error", errback)

    def _append(self, key: str, other: Mapping[str, Any]) -> Signature:
        signature = as_signature(other)
        linked = list(_as_list(self.options.get(key)))
        if signature not in linked:
            linked.append(signature)
        self.options[key] = linked
        return signature

    def __or__(self, other: object) -> NoReturn:
        raise NotImplementedError(_LATER)

    def __repr__(self) -> str:
        parts = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        return f"{self.task}({', '.join(parts)})"


def signature(
    task: str | Mapping[str, Any],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    app: GreenQ | None = None,
    immutable: bool = False,
    **options: Any,
) -> Signature:
    """Make a signature from a task's name, or from a signature's dict."""
    return Signature(task, args, kwargs, options, immutable=immutable, app=app)


def as_signature(value: Mapping[str, Any]) -> Signature:
    """Take a signature, or the dict of one, for something that can be sent alone.

    Raises:
        TypeError: for anything else.
        NotImplementedError: for chains, groups and chords.
    """
    if isinstance(value, group):
        raise NotImplementedError(f"a group cannot be linked: {_LATER}")
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a signature such as task.s(1, 2), or the dict of one, not {value!r}")
    found = value if isinstance(value, Signature) else Signature(value)
    refuse_composed(found)
    return found


def refuse_composed(value: Mapping[str, Any]) -> None:
    """Raise NotImplementedError for the dict of a chain, group or chord."""
    if value.get("subtask_type") is not None:
        raise NotImplementedError(f"{value.get('task')}: {_LATER}")


class group:  # noqa: N801  (Celery's name, which user code writes)
    """Several signatures sent as one batch, in one round trip where the broker allows."""

    def __init__(self, *tasks: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        given: Iterable[Any] = tasks
        if len(tasks) == 1 and not isinstance(tasks[0], Mapping):
            given = tasks[0]
        self.tasks = [as_signature(each) for each in given]

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> GroupResult[Any]:
        """Send all, each with these arguments in front of its own; returns the results in the same order.

        Raises:
            TypeError: for `link` and `link_error`, which belong to the tasks of a group.
        """
        for key in ("link", "link_error"):
            if key in options:
                raise TypeError(f"a group takes no {key}=: link its tasks one by one")
        group_id = options.pop("task_id", None) or str(uuid.uuid4())
        app = self.tasks[0].app if self.tasks else APPS.current()
        calls = [
            (each.task, *each.merged(args, kwargs, **options, group_id=group_id, group_index=index))
            for index, each in enumerate(self.tasks)
        ]
        return GroupResult(group_id, app.send_tasks(calls))

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult[Any]:
        """Send all with more arguments."""
        return self.apply_async(args, kwargs)

    __call__ = delay

    def __or__(self, other: object) -> NoReturn:
        raise NotImplementedError(_LATER)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Signature]:
        return iter(self.tasks)

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.tasks))})"


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, (list, tuple)) else [value]
