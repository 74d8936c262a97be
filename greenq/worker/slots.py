"""What remote commands may do to the pool: its size, its bounds, its child processes and their code."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from greenq.app.loader import find_app, load_tasks
from greenq.app.task import Task
from greenq.control.panel import Accepted, MainHub
from greenq.exceptions import ConfigError, PoolCannot

if TYPE_CHECKING:
    from greenq.worker.worker import Worker


class WorkerSlots:
    """See control.panel.Slots. Called from the service thread; what changes the pool runs on the main hub.

    Each request is looked at here first: what has to be refused is not "accepted", however busy the hub is.
    """

    def __init__(self, worker: Worker, hub: MainHub) -> None:
        self._worker = worker
        self._hub = hub

    def autoscaler(self) -> dict[str, int] | None:
        """See Slots."""
        found = self._worker.sizing.autoscaler
        return found.info() if found is not None else None

    def sizes(self) -> tuple[int, int]:
        """See Slots."""
        return self._worker.size.first, self._worker.pool.size

    def resize(self, by: int) -> None:
        """See Slots."""
        sizing = self._worker.sizing
        sizing.check_change(by)
        self._hub.run(sizing.change, by)

    def autoscale(self, most: int | None, least: int | None) -> tuple[int, int]:
        """See Slots."""
        sizing = self._worker.sizing
        sizing.check_bounds(most, least)
        return self._hub.run(sizing.bound, most, least)

    def restart(self, modules: Sequence[str] | None, *, reload: bool) -> None:  # the name is Celery's
        """See Slots. An import that takes long goes on behind the answer; should it fail then, the log says so."""
        pool = self._worker.pool
        if not pool.can.restart:
            raise PoolCannot(f"the {pool.name} pool has no child processes to restart: restart the worker")
        with contextlib.suppress(Accepted):
            self._hub.run(self._restart, modules, reload)

    def _restart(self, modules: Sequence[str] | None, reload: bool) -> None:  # noqa: FBT001  (posted by position)
        worker = self._worker
        tasks = refreshed(worker, modules, reload=reload)

        def renewed() -> None:
            # Not before: a task that the old children do not know would fail there.
            worker.app.tasks.update(tasks)
            worker.set_rates()

        worker.pool.restart(renewed)


def refreshed(worker: Worker, modules: Sequence[str] | None, *, reload: bool) -> dict[str, Task[..., Any]]:
    """Import modules and return the tasks there are now; in a fiber, since user code may wait.

    Only what a task is called and its options matter in this process: its functions run in the children, which
    import everything anew. The app itself keeps the tasks it has.

    Raises:
        ConfigError: one of them cannot be imported; everything is as before then.
    """
    app = worker.app
    names = list(modules) if modules is not None else _homes(worker) if reload else []
    imported = {name: sys.modules[name] for name in names if name in sys.modules}
    contents = {name: dict(vars(module)) for name, module in imported.items()}
    tasks, source = dict(app.tasks), worker.children.source
    try:
        for name in names:
            _import(name, imported.get(name), reload=reload)
        _take_tasks(worker, [name for name in names if name not in imported])
    except (Exception, SystemExit) as error:
        for name in names:
            if name in imported:
                _replace(vars(imported[name]), contents[name])
            else:
                sys.modules.pop(name, None)
        worker.children.remember(source)
        raise ConfigError(f"{error}; nothing has been restarted") from error
    else:
        return dict(app.tasks)
    finally:
        _replace(app.tasks, tasks)


def _import(name: str, module: ModuleType | None, *, reload: bool) -> None:
    try:
        if module is None:
            importlib.import_module(name)
        elif reload:
            importlib.reload(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error


def _take_tasks(worker: Worker, added: list[str]) -> None:
    """A module that makes the app has made another one when it was reloaded: its tasks are the ones of now."""
    app, source = worker.app, worker.children.source
    if source is None:
        return
    worker.children.remember(dataclasses.replace(source, include=(*source.include, *added)))
    fresh = find_app(source.spec, cwd=Path.cwd(), environ=os.environ)
    load_tasks(fresh)
    if fresh is not app:
        app.tasks.update(fresh.finalize().tasks)
        fresh.close()
        app.set_current()


def _homes(worker: Worker) -> list[str]:
    """The modules the app's tasks are defined in."""
    found = {task.function.__module__ for task in worker.app.tasks.values()}
    return sorted(name for name in found if name in sys.modules and not name.startswith("greenq."))


def _replace(place: dict[Any, Any], contents: dict[Any, Any]) -> None:
    place.update(contents)
    for key in place.keys() - contents.keys():
        del place[key]
