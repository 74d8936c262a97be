"""Say in one line why a module could not be imported: what, where, and the nearest name."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from greenq.exceptions import AppNotFound

_LIBRARY = (
    str(Path(__file__).resolve().parents[1]),
    *(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def not_found(name: str, source: str, folder: Path) -> AppNotFound:
    """There is no such module: say where it was looked for, and what is there."""
    front, _, last = name.rpartition(".")
    place = folder.joinpath(*front.split(".")) if front else folder
    near = get_close_matches(last, modules_in(place), n=1, cutoff=0.5)
    text = f"{source}: there is no module {name!r} in {folder} or on the import path"
    if near:
        text += f": did you mean {front + '.' if front else ''}{near[0]}? (found in {place})"
    return AppNotFound(text)


def modules_in(folder: Path) -> list[str]:
    """The names of the modules and packages in a directory."""
    if not folder.is_dir():
        return []
    names = [path.stem for path in folder.glob("*.py") if path.stem.isidentifier()]
    return names + [path.parent.name for path in folder.glob("*/*.py") if path.parent.name.isidentifier()]


def explain(error: Exception, name: str, source: str) -> AppNotFound:
    """The module is there, but importing it failed: say why, and the line of the user's own that did it."""
    where = _user_line(error)
    if isinstance(error, SyntaxError):
        line = (error.text or "").rstrip()
        caret = " " * max(0, (error.offset or 1) - 1) + "^"
        shown = f"\n    {line}\n    {caret}" if line else ""
        return AppNotFound(f"{source}: {error.filename}:{error.lineno}: {error.msg}{shown}")
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name == name:
            return AppNotFound(f"{source}: there is no module {name!r} on the import path{where}")
        package = error.name.partition(".")[0]
        cure = "install it, or add its directory to PYTHONPATH" if error.name == package else "check the name"
        return AppNotFound(f"{source}: importing {name} needs {error.name!r}, which is not there{where}: {cure}")
    return AppNotFound(f"{source}: importing {name} failed{where}: {type(error).__name__}: {error}")


def with_hint(text: str, name: str, known: Iterable[str]) -> str:
    """The text, and the known name nearest to the wrong one."""
    near = get_close_matches(name, list(known), n=1)
    return f"{text}: did you mean {near[0]}?" if near else text


def _user_line(error: Exception) -> str:
    """` (file:line, in function)` of the innermost frame that is no library's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith("<"):
            continue
        if not str(Path(frame.filename).resolve()).startswith(_LIBRARY):
            return f" ({frame.filename}:{frame.lineno})"
    return ""
