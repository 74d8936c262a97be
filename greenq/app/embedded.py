"""Choose the broker and the result store: what is configured, or else the embedded one beside the project."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from greenq.config import Settings
from greenq.conversion import mask_url

MARKERS = ("pyproject.toml", ".git", ".greenq")
FOLDER = ".greenq"
DATABASE = "broker.db"


@dataclass(frozen=True, slots=True)
class BrokerChoice:
    """Which broker an app uses, and why."""

    url: str
    shown: str  # the same with its password hidden
    reason: str
    configured: str | None = None  # the setting this was read from; None for the embedded broker

    @property
    def embedded(self) -> bool:
        """Whether nothing was configured, so that the file beside the project serves."""
        return self.configured is None


def choose_broker(conf: Settings, home: Path | None, name: str, environ: Mapping[str, str]) -> BrokerChoice:
    """The configured broker (the first, if there are several), or the embedded one.

    `home` is the file of the app's module. Touches the file system only to look for the project's root.
    """
    configured = conf.broker_url
    if configured:
        url = configured.split(";")[0]
        return BrokerChoice(url, mask_url(url), f"broker_url from {conf.source('broker_url')}", configured)
    root = project_root(home)
    path = root / FOLDER / DATABASE if root is not None else _state_directory(name, environ) / DATABASE
    url = f"sqlite:///{quote(str(path))}"
    return BrokerChoice(url, url, "no broker configured: embedded, one host")


def choose_backend(conf: Settings, broker: BrokerChoice) -> str | None:
    """The configured result store; with the embedded broker its file serves; else none, as in Celery."""
    configured: str | None = conf.result_backend
    if configured is not None:
        return configured
    return broker.url if broker.embedded else None


def project_root(home: Path | None) -> Path | None:
    """The directory that stands for the project of a module: the same for producers and workers alike.

    It is the nearest parent that holds one of MARKERS, else the module's own directory; None where that
    cannot be written to, or is not known.
    """
    if home is None:
        return None
    directory = home.resolve().parent
    for parent in (directory, *directory.parents):
        if any((parent / marker).exists() for marker in MARKERS):
            directory = parent
            break
    existing = directory / FOLDER
    return directory if os.access(existing if existing.exists() else directory, os.W_OK) else None


def calling_module() -> tuple[str, Path | None]:
    """Name and file of the module whose code, outside greenq, is being run by the caller."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "greenq":
        frame = frame.f_back
    if frame is None:
        return "__main__", None
    path = frame.f_globals.get("__file__")
    # A prompt or `python -c` has no file; what it makes belongs to the directory it was started in.
    return frame.f_globals.get("__name__", "__main__"), Path(path) if path else Path.cwd() / "<prompt>"


def _state_directory(name: str, environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "greenq" / (re.sub(r"[^\w.-]+", "_", name) or "app")
