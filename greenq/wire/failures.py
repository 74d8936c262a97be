"""Exceptions as they stand in a stored result, and back (wire.md 6.2).

greenq's own are stored under the names that a Celery client can import, or its `except` would never match.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from greenq import exceptions as own
from greenq.model import Malformed
from greenq.wire.reprs import safe_repr

CELERY, BILLIARD, KOMBU = "celery.exceptions", "billiard.exceptions", "kombu.exceptions"

WIRE_NAMES: MappingProxyType[type[BaseException], tuple[str, str]] = MappingProxyType(
    {
        own.TaskRevokedError: (CELERY, "TaskRevokedError"),
        own.NotRegistered: (CELERY, "NotRegistered"),
        own.UnknownTask: (CELERY, "NotRegistered"),
        own.MaxRetriesExceeded: (CELERY, "MaxRetriesExceededError"),
        own.Retry: (CELERY, "Retry"),
        own.Ignore: (CELERY, "Ignore"),
        own.Reject: (CELERY, "Reject"),
        own.ResultTimeout: (CELERY, "TimeoutError"),
        own.MalformedMessage: (CELERY, "InvalidTaskError"),
        Malformed: (CELERY, "InvalidTaskError"),
        own.TimeLimitExceeded: (BILLIARD, "TimeLimitExceeded"),
        own.HardTimeLimit: (BILLIARD, "TimeLimitExceeded"),
        own.SoftTimeLimitExceeded: (BILLIARD, "SoftTimeLimitExceeded"),
        own.WorkerLostError: (BILLIARD, "WorkerLostError"),
        own.Killed: (BILLIARD, "Terminated"),
        own.ContentRefused: (KOMBU, "ContentDisallowed"),
        own.EncodeError: (KOMBU, "EncodeError"),
    }
)

# What a stored name means here. Only classes that a client may meet in a result.
OWN_CLASSES: MappingProxyType[tuple[str, str], type[Exception]] = MappingProxyType(
    {
        WIRE_NAMES[kind]: kind
        for kind in (
            own.TaskRevokedError,
            own.NotRegistered,
            own.MaxRetriesExceeded,
            own.Retry,
            own.Ignore,
            own.TimeLimitExceeded,
            own.SoftTimeLimitExceeded,
            own.WorkerLostError,
            own.EncodeError,
        )
    }
)


def describe(exc: BaseException, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """The exception object; an argument that `encode` refuses is replaced by its repr."""
    kind = type(exc)
    module, name = WIRE_NAMES.get(kind, (str(kind.__module__), kind.__qualname__))
    try:
        arguments = tuple(exc.args)
    except Exception:  # noqa: BLE001
        # A class of the user's with an `args` of its own that raises: its name is still worth storing.
        arguments = ()
    if isinstance(exc, Malformed):
        arguments = (exc.reason, exc.detail)
    message = [_writable(each, encode) for each in arguments]
    return {"exc_type": name, "exc_message": message, "exc_module": module}


def picklable(exc: BaseException) -> BaseException | None:
    """The exception itself if pickle can write and read it where greenq is not installed, else None."""
    if type(exc) in WIRE_NAMES:
        return None
    try:
        # By reading it back: many exceptions with their own __init__ can be written but not read.
        pickle.loads(pickle.dumps(exc))  # noqa: S301  (written one call earlier)
    except Exception:  # noqa: BLE001  (and __reduce__ is the user's)
        return None
    return exc


def rebuild(stored: Any) -> BaseException:
    """The exception an exception object stands for; never imports, calls nothing but Exception classes.

    What no imported module knows becomes a new subclass of Exception of the same name.
    """
    if isinstance(stored, BaseException):
        return stored
    if not isinstance(stored, dict) or not isinstance(stored.get("exc_type"), str):
        return own.TaskError(safe_repr(stored))
    name, module = stored["exc_type"], stored.get("exc_module")
    module = module if isinstance(module, str) else ""
    arguments = stored.get("exc_message", ())
    if not isinstance(arguments, (list, tuple)):
        arguments = (arguments,)
    kind = OWN_CLASSES.get((module, name)) or _find(module, name)
    if kind is not None:
        try:
            return kind(*arguments)
        except Exception:  # noqa: BLE001
            # Its __init__ wants other arguments than it hands to Exception; a stand-in says what it was.
            return _invent(module, name)(*arguments)
    return _invent(module, name)(*arguments)


def _writable(value: Any, encode: Callable[[Any], Any]) -> Any:
    try:
        encode(value)
    except own.EncodeError:
        return safe_repr(value)
    return value


def _find(module: str, name: str) -> type[Exception] | None:
    """Look in the dictionaries only: attribute access could run a module's or metaclass's __getattr__."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        try:
            found = vars(found).get(part)
        except TypeError:
            return None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _invent(module: str, name: str) -> type[Exception]:
    plain = name.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")[:200]
    return type(plain or "Unnamed", (Exception,), {"__module__": module or __name__})
