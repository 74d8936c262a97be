"""Configuration files: `[tool.greenq]` of the nearest pyproject.toml, and any TOML file.

Read before anything else is imported, to learn the pool, and again for the settings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenq.exceptions import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = "pyproject.toml"
# What a file says beside settings: they are needed before there is an app whose settings they could be.
NO_SETTINGS = ("app", "pool")


def nearest(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The nearest pyproject.toml with a table `[tool.greenq]`, in the folder or above it, and that table.

    Raises:
        ConfigError: a pyproject.toml on the way cannot be read.
    """
    for each in (folder, *folder.parents):
        path = each / PYPROJECT
        if path.is_file() and (table := read(path)):
            return path, table
    return None


def read(path: Path) -> Mapping[str, Any]:
    """What a file says to greenq: `[tool.greenq]` of a pyproject.toml, the whole of any other TOML file.

    Raises:
        ConfigError: it cannot be read, or is not as described; the message names the file.
    """
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    if path.name == PYPROJECT:
        tools = table.get("tool", {})
        table = tools.get("greenq", {}) if isinstance(tools, Mapping) else {}
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: [tool.greenq] must be a table of settings, not {table!r}")
    for name in NO_SETTINGS:
        if not isinstance(table.get(name, ""), str):
            raise ConfigError(f"{path}: {name} must be text, not {table[name]!r}")
    return dict(table)


def settings_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in what a file says."""
    return {name: value for name, value in table.items() if name not in NO_SETTINGS}


def is_file(config: str) -> bool:
    """Does `--config` name a file, rather than a module?"""
    return config.endswith(".toml")
