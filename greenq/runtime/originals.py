"""Prove the patching: nobody may have kept what was there before, or one call of it stops every task."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from greenq.exceptions import ConfigError

# What waits in C, or makes what does. Under gevent and eventlet only the part that each replaces counts.
WAITING = {
    "time": ("sleep",),
    "socket": (
        *("socket", "create_connection", "fromfd", "socketpair", "getaddrinfo", "getnameinfo", "getfqdn"),
        *("gethostbyname", "gethostbyname_ex", "gethostbyaddr"),
    ),
    "ssl": ("SSLContext", "SSLSocket", "wrap_socket", "get_server_certificate"),
    "select": ("select", "poll", "epoll", "kqueue"),
    "selectors": ("DefaultSelector", "SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector"),
    "threading": (
        *("Thread", "Timer", "Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier"),
        "local",
    ),
    "_thread": ("start_new_thread", "start_new", "start_joinable_thread", "allocate_lock", "allocate", "RLock"),
    "queue": ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"),
    "subprocess": ("Popen", "run", "call", "check_call", "check_output"),
    "os": ("fork", "forkpty", "posix_spawn", "posix_spawnp", "wait", "waitpid", "read", "write"),
}

# Who may keep an original, and why that stops nobody.
MAY_KEEP = {
    # The originals live there; what is patched is the module in front of it.
    **dict.fromkeys(("_thread", "_socket", "_queue", "_signal", "posix", "_posixsubprocess"), "*"),
    # A C RLock belongs to the native thread: greenlets pass through it.
    "functools": "RLock",
    # Locks around a few statements in which nothing waits.
    "tempfile": "_allocate_lock",
    "_strptime": "_thread_allocate_lock",
    # Asks for children that have ended already; and serves the Popen that is replaced.
    "subprocess": "_waitpid _PopenSelector",
    # Its classes are replaced together with those of socket.
    "ssl": "socket create_connection",
    # To ask what an object is.
    "ftplib": "_SSLSocket",
    "threading": "_LockType",
    # Between native threads, on purpose.
    "greenq.runtime.eventlet_threads": "SimpleQueue",
    # Files in Python, for interpreters without those in C; log lines of a telephone.
    "_pyio": "Lock",
    "_android_support": "*",
}

PATCHERS = frozenset(("gevent", "eventlet", "greenlet"))
COPIES = ("__original_module_", "__patched_module_")  # eventlet's, of modules of the standard library


class Kept(NamedTuple):
    """A module that holds an original."""

    module: str
    attribute: str
    original: str  # "time.sleep"


class Originals:
    """The standard library before patching: make it first, patch, and ask it."""

    def __init__(self) -> None:
        # Of a module that nobody has imported yet, nobody keeps anything.
        self._before = {
            f"{name}.{attribute}": getattr(sys.modules[name], attribute)
            for name, attributes in WAITING.items()
            if name in sys.modules
            for attribute in attributes
            if hasattr(sys.modules[name], attribute)
        }
        self._early = frozenset(sys.modules)

    def kept(self) -> Iterator[Kept]:
        """What modules hold although patching has replaced it, in their top-level names."""
        replaced: dict[int, str] = {}
        for path, value in self._before.items():
            name, _, attribute = path.partition(".")
            if getattr(sys.modules[name], attribute, None) is not value:
                replaced.setdefault(id(value), path)
        for name, module in list(sys.modules.items()):
            if not self._looked_at(name):
                continue
            allowed = MAY_KEEP.get(name, "")
            for attribute, value in list(_names(module).items()):
                if id(value) in replaced and allowed != "*" and attribute not in allowed.split():
                    yield Kept(name, attribute, replaced[id(value)])

    def _looked_at(self, name: str) -> bool:
        """What the patcher has imported of the standard library is its own to get right; nobody could do so later."""
        root = name.partition(".")[0]
        if root in PATCHERS or root.startswith(COPIES):
            return False
        return name in self._early or root not in sys.stdlib_module_names

    def check(self, pool: str) -> None:
        """Refuse to go on with an original left in a module.

        Raises:
            ConfigError: naming the module, the attribute, and who imports it too early where that is found.
        """
        for kept in self.kept():
            raise ConfigError(_refusal(kept, pool))


def _names(module: object) -> Mapping[str, Any]:
    """The module's names, without waking one that is loaded at the first look at it."""
    try:
        names = object.__getattribute__(module, "__dict__")
    except AttributeError:  # something else that was put among the modules
        return {}
    return names if isinstance(names, dict) else {}


def _refusal(kept: Kept, pool: str) -> str:
    where = _importer(kept.module)
    cure = (
        f"{where} imports {kept.module} too early: have it do so later, or not at all"
        if where
        else f"{kept.module} was imported too early: import it later, or start with the greenq command itself"
    )
    return (
        f"{kept.module}.{kept.attribute} is {kept.original} as it was before patching for -P {pool}, "
        f"and a task that waits in it would stop all others; {cure}"
    )


def _importer(module: str) -> str:
    """The file that made the interpreter import `module` when it started; "" if none is found."""
    named = re.compile(rf"\b{re.escape(module.partition('.')[0])}\b")
    for name in ("sitecustomize", "usercustomize"):
        custom = getattr(sys.modules.get(name), "__file__", None)
        if custom and (module == name or named.search(_text(Path(custom)))):
            return str(custom)
    for folder in dict.fromkeys(sys.path):
        for path in sorted(Path(folder).glob("*.pth")):
            if any(line.startswith("import") and named.search(line) for line in _text(path).splitlines()):
                return str(path)
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # removed since; then it is not named
        return ""
