"""Handles on results: of one task, of several sent together, and of one that ran at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from greenq.app.directory import APPS
from greenq.context import current
from greenq.exceptions import ResultTimeout
from greenq.model import State
from greenq.wire.results import Meta

if TYPE_CHECKING:
    from greenq.app.base import GreenQ

R = TypeVar("R")
Replies = list[dict[str, Any]] | None

_join_allowed: ContextVar[bool] = ContextVar("greenq_join_allowed", default=False)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let a task wait for another task's result.

    It can end in a deadlock: when every slot waits, nothing is left to run what they wait for.
    """
    token = _join_allowed.set(True)
    try:
        yield
    finally:
        _join_allowed.reset(token)


def refuse_join() -> None:
    """Raise RuntimeError inside a task that runs on a worker, unless `allow_join_result` is in force."""
    context = current.get()
    if context is not None and not context.is_eager and not context.called_directly and not _join_allowed.get():
        raise RuntimeError(
            "a task must not wait for another task's result: when every slot waits, nothing runs any more. "
            "Use link=, or `with allow_join_result():` if you know that a slot is left"
        )


class AsyncResult(Generic[R]):
    """A handle on the result of one task, by its id.

    Every property reads the store, until the task is ready; from then on the answer is kept.
    """

    def __init__(self, id: str, app: GreenQ | None = None, parent_id: str | None = None) -> None:  # noqa: A002
        if not isinstance(id, str) or not id:  # type: ignore[redundant-expr]  # not every caller is typed
            raise ValueError(f"a task id is text and not empty, not {id!r}")
        self.id = id
        self._app = app
        self.parent_id = parent_id
        self._meta: Meta | None = None

    @property
    def app(self) -> GreenQ:
        """The app whose result store is asked: its own, else the current one."""
        return APPS.current() if self._app is None else self._app

    @property
    def task_id(self) -> str:
        """The same as `id`."""
        return self.id

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> R:
        """Wait for the result and return it; with `propagate`, raise what the task raised.

        Blocks for up to `timeout` seconds, or for ever.

        Raises:
            ResultTimeout: the result was not there in time.
            ResultError: the store failed, or there is none.
            RuntimeError: inside a task, outside `allow_join_result`.
        """
        refuse_join()
        if self._meta is None:
            app = self.app
            payload = app.results.wait(self.id, self._is_ready, timeout)
            self._meta = app.producer.decode(payload)
        if propagate:
            self.maybe_throw()
        return cast("R", self._meta.result)

    def maybe_throw(self) -> None:
        """Raise what the task raised, if it is known to have failed."""
        meta = self._read()
        if meta is not None and meta.status in State.PROPAGATE:
            raise _as_exception(meta.result)

    def ready(self) -> bool:
        """Whether the task has ended: succeeded, failed or revoked."""
        return self.state in State.READY

    def successful(self) -> bool:
        """Whether the task has succeeded."""
        return self.state == State.SUCCESS

    def failed(self) -> bool:
        """Whether the task has failed."""
        return self.state == State.FAILURE

    @property
    def state(self) -> str:
        """The task's state; PENDING for an id the store knows nothing of."""
        meta = self._read()
        return State.PENDING if meta is None else meta.status

    status = state

    @property
    def result(self) -> Any:
        """The return value, the exception, or the meta of a state in between."""
        meta = self._read()
        return None if meta is None else meta.result

    info = result

    @property
    def traceback(self) -> str | None:
        """The text of the traceback, if the task failed."""
        meta = self._read()
        return None if meta is None else meta.traceback

    @property
    def date_done(self) -> datetime | None:
        """When the task ended."""
        meta = self._read()
        if meta is None or not meta.date_done:
            return None
        return datetime.fromisoformat(meta.date_done.replace("Z", "+00:00"))

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """The results of the tasks it sent; empty until it is ready."""
        meta = self._read()
        found = (meta.children if meta is not None else None) or []
        return [AsyncResult(child, self._app) for child in map(_child_id, found) if child]

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: str | int | None = None,
        reply: bool = False,
        wait: bool = False,
        timeout: float = 1.0,
        **options: Any,
    ) -> Replies:
        """Tell every worker not to start the task, and with `terminate` to end it where it runs.

        Returns None as soon as the broker has the command; with `reply`, or Celery's word `wait`, what workers
        answer within `timeout` seconds. `options` are those of `app.control.broadcast`, such as `destination`.
        """
        options.update(terminate=terminate, reply=reply or wait, timeout=timeout)
        return _revoke(self.app, self.id, signal=signal, **options)

    def forget(self) -> None:
        """Delete the result from the store."""
        self._meta = None
        self.app.results.forget(self.id)

    def as_tuple(self) -> tuple[tuple[str, None], None]:
        """The form in which results stand inside other results (wire.md 6.2)."""
        return (self.id, None), None

    def _read(self) -> Meta | None:
        if self._meta is not None:
            return self._meta
        app = self.app
        payload = app.results.read([self.id])[0]
        meta = app.producer.decode(payload) if payload is not None else None
        if meta is not None and meta.status in State.READY:
            self._meta = meta
        return meta

    def _is_ready(self, payload: bytes) -> bool:
        return self.app.producer.decode(payload).status in State.READY

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"


class EagerResult(AsyncResult[R]):
    """The result of a task that ran in the calling process; always ready."""

    def __init__(self, id: str, result: Any, state: str, traceback: str | None = None) -> None:  # noqa: A002
        super().__init__(id)
        self._meta = Meta(state, result, traceback, [], None, id, {})

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> R:
        """Return the result, or raise what the task raised; never waits."""
        if propagate:
            self.maybe_throw()
        return cast("R", self.result)

    def ready(self) -> bool:
        """True."""
        return True

    def revoke(self, **_options: Any) -> None:
        """Do nothing: the task has ended."""

    def forget(self) -> None:
        """Do nothing: no store holds it."""

    def __repr__(self) -> str:
        return f"<EagerResult {self.id} {self.state}>"


class GroupResult(Generic[R]):
    """The results of tasks sent together, in the order they were sent."""

    def __init__(self, id: str, results: Sequence[AsyncResult[R]]) -> None:  # noqa: A002
        self.id = id
        self.results = list(results)

    def get(self, timeout: float | None = None, *, propagate: bool = True) -> list[R]:
        """Wait for all; `timeout` is for all of them together. See `AsyncResult.get`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        values = []
        for each in self.results:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                values.append(each.get(left, propagate=propagate))
            except ResultTimeout as exc:
                done = self.completed_count()
                text = f"group {self.id}: {done} of {len(self)} tasks succeeded within {timeout} s"
                raise ResultTimeout(text) from exc
        return values

    def ready(self) -> bool:
        """Whether all have ended."""
        return all(each.ready() for each in self.results)

    def successful(self) -> bool:
        """Whether all have succeeded."""
        return all(each.successful() for each in self.results)

    def failed(self) -> bool:
        """Whether any has failed."""
        return any(each.failed() for each in self.results)

    def completed_count(self) -> int:
        """How many have succeeded."""
        return sum(each.successful() for each in self.results)

    def revoke(self, *, reply: bool = False, wait: bool = False, **options: Any) -> Replies:
        """Revoke all of them, in one message; options as `AsyncResult.revoke`. Nothing is sent for an empty group."""
        if not self.results:
            return [] if reply or wait else None
        return _revoke(self.results[0].app, [each.id for each in self.results], reply=reply or wait, **options)

    def forget(self) -> None:
        """Delete all results from the store."""
        for each in self.results:
            each.forget()

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        return iter(self.results)

    def __getitem__(self, index: int) -> AsyncResult[R]:
        return self.results[index]

    def __repr__(self) -> str:
        return f"<GroupResult {self.id} of {len(self)}>"


def _revoke(
    app: GreenQ, task_id: str | list[str], *, signal: str | int | None = None, **options: Any
) -> Replies:
    replies: Replies = app.control.revoke(task_id, signal=signal or "SIGTERM", **options)
    return replies


def _as_exception(value: Any) -> BaseException:
    return value if isinstance(value, BaseException) else RuntimeError(f"the task failed with {value!r}")


def _child_id(child: Any) -> str | None:
    """The id in the tuple form of a result, `[[id, parent], children]`."""
    while isinstance(child, (list, tuple)):
        child = child[0] if child else None
    return child if isinstance(child, str) else getattr(child, "id", None)
