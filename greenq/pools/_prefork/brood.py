"""The worker's view of one nursery: what is asked of it, and what it says."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any, NamedTuple

from greenq.exceptions import ConfigError, PoolError
from greenq.pools._prefork import nursery as words
from greenq.pools._prefork.zygote import MOST_BYTES, NEW_NURSERY, Zygote
from greenq.pools.base import Recipe

PATIENCE = 10.0  # seconds for the zygote to fork, which takes milliseconds


class Said(NamedTuple):
    """One word of a nursery with what belongs to it; `fd` is a newborn's pipe."""

    word: str
    rest: tuple[Any, ...]
    fd: int


class Brood:
    """One nursery. Owned by the main hub; asking never waits, listening is for when its socket is readable."""

    def __init__(self, zygote: Zygote, board: int, recipe: Recipe) -> None:
        """Have the zygote fork it, and have it load the app.

        Raises:
            PoolError: the zygote is no more.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = _ask_zygote(zygote, theirs.fileno(), board)
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003  (its only parameter)
        self._socket = ours
        self._waiting: list[bytes] = []
        self._tell(words.LOAD, recipe.target, dict(recipe.arguments), str(Path.cwd()), dict(os.environ))

    def fileno(self) -> int:
        """Of the socket that is to be watched."""
        return self._socket.fileno()

    def birth(self, index: int, max_tasks: int | None, max_memory: int | None) -> None:
        """Have a child forked; it is announced as BORN with its pipe, or as STILLBORN."""
        self._tell(words.BIRTH, index, max_tasks, max_memory)

    def signal(self, pid: int, *numbers: int) -> None:
        """Signal a child, if it still is one."""
        self._tell(words.SIGNAL, pid, *map(int, numbers))

    def listen(self) -> list[Said] | None:
        """What the nursery has said; None once it is gone."""
        said: list[Said] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, words.MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except ConnectionError:
                return said or None
            if not data:
                return said or None
            word, *rest = pickle.loads(data)  # noqa: S301  (from our own process)
            said.append(Said(word, tuple(rest), fds[0] if fds else -1))
        self._flush()
        return said

    def close(self) -> None:
        """Let go: the nursery ends when its children have, or ends them."""
        self._socket.close()

    def _tell(self, *said: object) -> None:
        self._waiting.append(pickle.dumps(said))
        self._flush()

    def _flush(self) -> None:
        """Words wait only while the nursery is busy loading; it says LOADED afterwards, and they go then."""
        while self._waiting:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:  # gone; `listen` sees it
                self._waiting.clear()
                return
            self._waiting.pop(0)


def _ask_zygote(zygote: Zygote, *fds: int) -> int:
    control = socket.socket(fileno=zygote.fd)
    try:
        control.settimeout(PATIENCE)
        socket.send_fds(control, [NEW_NURSERY], list(fds))
        answer = control.recv(MOST_BYTES)
    except OSError as error:
        raise PoolError(f"the zygote (pid {zygote.pid}) does not answer ({error}): restart the worker") from error
    finally:
        control.detach()
    if not answer:
        raise PoolError(f"the zygote (pid {zygote.pid}) is gone: restart the worker")
    return int(answer)


def check_zygote(zygote: object) -> Zygote:
    """The zygote, if the process was started with one.

    Raises:
        ConfigError: prefork was chosen too late.
    """
    if not isinstance(zygote, Zygote):
        raise ConfigError(
            "prefork needs its zygote, which has to be forked before anything else is imported: start the worker "
            "with `greenq -A ... worker -P prefork`"
        )
    return zygote
