"""What runs beside user code in a child process of `-P prefork`: the app, and its executor."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from greenq.app.base import GreenQ
from greenq.app.hooks import ChildInfo
from greenq.app.loader import AppSource
from greenq.execution.executor import Executor
from greenq.log import configure
from greenq.model import Outcome, Record, Request
from greenq.wire.serializers import Accept

RECIPE = "greenq.worker.child:prepare"


class TaskChild:
    """A ChildSide (see pools.base): made once in the process that loads the app, started in each child."""

    def __init__(self, app: GreenQ, hostname: str, *, keep_results: bool) -> None:
        self.accept = Accept.of(app.conf.accept_content)
        self._app = app
        self._hostname = hostname
        self._keep_results = keep_results
        self._info = ChildInfo(hostname, "prefork", 0)
        self._executor: Executor

    def start(self, index: int, store: Callable[[Record], object]) -> None:
        """See ChildSide."""
        multiprocessing.current_process().name = f"Child-{index}"  # what the log names the process by
        self._info = ChildInfo(self._hostname, "prefork", index)
        self._executor = Executor(
            self._app, self._hostname, self.accept, None, keep_results=self._keep_results, store=store
        )
        self._app.hooks.child_start.run(self._info)

    def run(self, request: Request) -> Outcome:
        """See ChildSide."""
        return self._executor.run(request)

    def epitaph(self, request: Request, error: BaseException) -> Outcome:
        """See ChildSide."""
        return self._executor.epitaph(request, error)

    def stop(self) -> None:
        """See ChildSide."""
        self._app.hooks.child_stop.run(self._info)
        self._app.close()


def prepare(source: AppSource, hostname: str, loglevel: str, logfile: str | None, *, keep_results: bool) -> TaskChild:
    """Load the app in this process, from which children will be forked.

    Raises:
        AppNotFound, ConfigError: as in the worker's own process.
    """
    configure(loglevel, logfile)
    app = source.load().finalize()
    app.close()  # a module that sent something while it was imported has opened a connection: no child shares it
    return TaskChild(app, hostname, keep_results=keep_results)
