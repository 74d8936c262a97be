"""`greenq worker --reload`: a small parent that ends its worker warmly and starts another when the code changes.

For development. The parent imports neither the app nor a pool; the worker is a process as it would be without it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import click

from greenq.exceptions import ConfigError

FLAG, FOLDER = "--reload", "--reload-dir"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
_TICK = 0.1  # seconds between two looks at what has changed
_FROM_KERNEL = 128  # SI_KERNEL: a terminal's Ctrl-C, which the worker gets as well
_MOST_NAMED = 3  # files in one line


def without(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The worker's own line, and the folders to watch.

    Raises:
        ConfigError: `--reload-dir` without a folder, or one that is not there.
    """
    line, folders = [], []
    words = iter(argv)
    for word in words:
        if word == FLAG:
            continue
        if word == FOLDER or word.startswith(FOLDER + "="):
            folder = next(words, "") if word == FOLDER else word.partition("=")[2]
            if not Path(folder or "-").is_dir():
                raise ConfigError(f"{FOLDER} {folder}: there is no such directory")
            folders.append(folder)
        else:
            line.append(word)
    return line, folders


def serve(argv: Sequence[str], workdir: str) -> int:
    """Keep a worker running, on the code of now; returns its exit code when it is stopped. Main thread only.

    Raises:
        ConfigError: watchfiles is not installed, or a folder is not there.
    """
    line, folders = without(argv)
    changes = _Changes(folders or [workdir or "."])
    changes.start()
    try:
        return _Keeper([sys.executable, "-m", "greenq", *line], changes).serve()
    finally:
        changes.stop()


class _Changes:
    """Files that have changed since they were last asked for. A thread notes them, the main thread takes them."""

    def __init__(self, folders: list[str]) -> None:
        try:
            import watchfiles
        except ImportError:
            raise ConfigError(f"{FLAG} needs watchfiles: pip install 'greenq[reload]'") from None
        self._stop = threading.Event()
        self._files: set[str] = set()
        self._lock = threading.Lock()  # around the set
        self._folders = folders
        self._thread = threading.Thread(target=self._watch, args=(watchfiles,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def take(self) -> list[str]:
        with self._lock:
            files, self._files = sorted(self._files), set()
        return files

    def _watch(self, watchfiles: object) -> None:
        seen = watchfiles.watch(  # type: ignore[attr-defined]
            *self._folders,
            watch_filter=watchfiles.PythonFilter(extra_extensions=(".toml",)),  # type: ignore[attr-defined]
            stop_event=self._stop,
            raise_interrupt=False,
        )
        for changes in seen:
            with self._lock:
                self._files.update(path for _, path in changes)


class _Keeper:
    """One worker at a time. Signals are blocked and taken one by one, so that none comes between two steps."""

    def __init__(self, line: list[str], changes: _Changes) -> None:
        self._line = line
        self._changes = changes
        self._pid = 0  # of the worker; 0 while there is none
        self._renewing = self._stopping = False
        self._code = 0

    def serve(self) -> int:
        signals = {*STOPPING, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._start()
            while self._pid or not self._stopping:
                told = signal.sigtimedwait(signals, _TICK)
                if told is not None and told.si_signo in STOPPING:
                    self._pass_on(told)
                self._reap()
                if not self._stopping and (files := self._changes.take()):
                    self._renew(files)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._code

    def _start(self) -> None:
        self._renewing = False
        self._pid = os.posix_spawn(sys.executable, self._line, os.environ, setsigmask=[])

    def _pass_on(self, told: signal.struct_siginfo) -> None:
        self._stopping = True
        if self._pid and told.si_code != _FROM_KERNEL:
            os.kill(self._pid, told.si_signo)

    def _reap(self) -> None:
        if not self._pid:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            return
        self._pid, code = 0, os.waitstatus_to_exitcode(status)
        self._code = code if code >= 0 else 128 - code
        if self._stopping:
            return
        if self._renewing:
            self._start()
        else:
            _say(f"the worker ended with exit code {self._code}; it starts again when a file changes")

    def _renew(self, files: list[str]) -> None:
        names = ", ".join(os.path.relpath(each) for each in files[:_MOST_NAMED])
        more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
        if self._pid and not self._renewing:
            _say(f"{names}{more} changed; the worker starts again when running tasks have ended")
            self._renewing = True
            os.kill(self._pid, signal.SIGTERM)
        elif not self._pid:
            _say(f"{names}{more} changed; the worker starts again")
            self._start()


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} greenq --reload: {text}", err=True)
