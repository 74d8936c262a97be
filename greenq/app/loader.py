"""Find the application: from `-A`, GREENQ_APP, pyproject.toml, or the usual files, and import its tasks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from greenq import configfile
from greenq.app.base import GreenQ
from greenq.app.trouble import explain, not_found, with_hint
from greenq.exceptions import AppNotFound, ConfigError, GreenqError

USUAL_FILES = ("tasks.py", "app.py", "celery.py")
USUAL_ATTRIBUTES = ("app", "greenq", "celery")
USUAL_SUBMODULES = ("app", "celery", "tasks")


class Spec(NamedTuple):
    """Where to look for the app, and who says so."""

    text: str
    source: str
    folder: Path  # what the module is imported from


@dataclass(frozen=True, slots=True)
class AppSource:
    """Everything that decides which app is loaded and with which settings; `load` gives the same in any process.

    Plain values. `settings` are those of the command line, with the name of their source.
    """

    spec: str | None
    config: str | None = None
    include: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> GreenQ:
        """Import the app, lay over its settings those of files, environment and command line, import its tasks.

        Raises:
            AppNotFound: as `find_app`.
            ConfigError: naming everything that is wrong in the files, the environment and the line.
        """
        app = find_app(self.spec, cwd=Path.cwd(), environ=os.environ)
        self.lay_over(app)
        load_tasks(app)
        return app

    def lay_over(self, app: GreenQ) -> None:
        """Apply the settings of the configuration files, `--config`, the environment and the command line.

        Raises:
            ConfigError: naming everything that is wrong in them.
        """
        wrong = []
        for lay in (self._lay_pyproject, self._lay_config, self._lay_environment, self._lay_line):
            try:
                lay(app)
            except ConfigError as exc:
                wrong.append(str(exc))
        if wrong:
            raise ConfigError("; ".join(wrong))

    def _lay_pyproject(self, app: GreenQ) -> None:
        if found := configfile.nearest(Path.cwd()):
            path, table = found
            app.conf.update(configfile.settings_of(table), source=f"[tool.greenq] in {path}")

    def _lay_config(self, app: GreenQ) -> None:
        if self.config and configfile.is_file(self.config):
            path = Path(self.config).resolve()
            app.conf.update(configfile.settings_of(configfile.read(path)), source=str(path))
        elif self.config:
            app.config_from_object(self.config)
            app.conf  # noqa: B018  (which imports the module)

    def _lay_environment(self, app: GreenQ) -> None:
        app.conf.check_environment()

    def _lay_line(self, app: GreenQ) -> None:
        if self.include:
            app.conf.update(include=(*app.conf.include, *self.include), source="-I", over_environment=True)
        if self.settings:
            app.conf.update(self.settings, source="command line", over_environment=True)


def find_app(spec: str | None, *, cwd: Path, environ: Mapping[str, str]) -> GreenQ:
    """Import the app and make it the current one; `load_tasks` imports its tasks.

    `spec` is `module`, `module:attribute` or a package; without it GREENQ_APP counts, then `app` under
    `[tool.greenq]` in the nearest pyproject.toml, then tasks.py, app.py and celery.py in `cwd`. The directory
    the module is looked for in is put on the import path.

    Raises:
        AppNotFound: with what was tried, where, and the nearest thing there is.
        ConfigError: the app was found, and its settings are wrong.
    """
    found = where_to_look(spec, cwd=cwd, environ=environ)
    folder = str(found.folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    module_name, _, attribute = found.text.partition(":")
    module, rest = _import_spec(module_name, found)
    attribute = attribute or rest
    app = _attribute(module, attribute, found) if attribute else _app_in(module, found)
    app.set_current()
    return app


def where_to_look(spec: str | None, *, cwd: Path, environ: Mapping[str, str]) -> Spec:
    """Say which module is meant, without importing anything.

    Raises:
        AppNotFound: nothing names an app.
    """
    if spec:
        return Spec(spec, f"-A {spec}", cwd)
    if name := environ.get("GREENQ_APP"):
        return Spec(name, f"GREENQ_APP={name}", cwd)
    if (nearest := configfile.nearest(cwd)) and (name := nearest[1].get("app")):
        return Spec(name, f"[tool.greenq] app = {name!r} in {nearest[0]}", nearest[0].parent)
    for file in USUAL_FILES:
        if (cwd / file).is_file():
            return Spec(file.removesuffix(".py"), f"{file} in {cwd}", cwd)
    raise AppNotFound(
        f"no app named: there is no -A, no GREENQ_APP, no `app` under [tool.greenq] in a pyproject.toml "
        f"of {cwd} or its parents, and no {', '.join(USUAL_FILES)} in {cwd}; "
        "write `greenq -A module:attribute ...`"
    )


def load_tasks(app: GreenQ) -> None:
    """Import the modules of `include`, `imports` and `autodiscover_tasks`.

    Raises:
        AppNotFound: one of them cannot be imported.
    """
    for name in dict.fromkeys((*app.conf.imports, *app.conf.include)):
        _import(name, f"{name!r} of the settings imports and include")
    for packages, related_name in app.discover:
        for package in packages() if callable(packages) else packages:
            _import(package, f"autodiscover_tasks([{package!r}])")
            name = f"{package}.{related_name}"
            if importlib.util.find_spec(name) is not None:
                _import(name, f"autodiscover_tasks([{package!r}])")


def _import_spec(name: str, found: Spec) -> tuple[ModuleType, str]:
    """Import `name`; where only its front part is a module, the rest is an attribute (`proj.app`)."""
    path = Path(name)
    if path.suffix == ".py" or not all(part.isidentifier() for part in name.split(".")):
        hint = f"write {path.stem}, the module's name" if path.suffix == ".py" else "write module:attribute"
        raise AppNotFound(f"{found.source}: {name!r} is not the name of a module: {hint}")
    front, _, last = name.rpartition(".")
    if _exists(name, found):
        return _import(name, found.source), ""
    if front and _exists(front, found):
        module = _import(front, found.source)
        if hasattr(module, last):
            return module, last
    raise not_found(name, found.source, found.folder)


def _exists(name: str, found: Spec) -> bool:
    """Whether there is such a module; imports the packages it lies in."""
    front = name.rpartition(".")[0]
    if front:
        if not _exists(front, found):
            return False
        if not hasattr(_import(front, found.source), "__path__"):
            return False
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec, such as __main__, is there already
        return name in sys.modules


def _import(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except GreenqError:
        raise  # it names its culprit already
    except Exception as exc:
        raise explain(exc, name, source) from exc


def _attribute(module: ModuleType, path: str, found: Spec) -> GreenQ:
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            apps = [name for name, _ in _apps(module)]
            known = f"; the apps in {module.__name__} are {', '.join(apps)}" if apps else ""
            names = [name for name in vars(module) if not name.startswith("_")]
            text = f"{found.source}: module {module.__name__} has no attribute {path!r}{known}"
            raise AppNotFound(with_hint(text, path, names))
        value = getattr(value, part)
    if isinstance(value, ModuleType):
        return _app_in(value, found)
    return _checked(value, f"{module.__name__}:{path}", found)


def _app_in(module: ModuleType, found: Spec) -> GreenQ:
    for name in USUAL_ATTRIBUTES:
        if isinstance(getattr(module, name, None), GreenQ):
            app: GreenQ = getattr(module, name)
            return app
    apps = list(_apps(module))
    if len({id(app) for _, app in apps}) > 1:
        names = " or ".join(f"{module.__name__}:{name}" for name, _ in apps)
        raise AppNotFound(f"{found.source}: module {module.__name__} holds several apps: say {names}")
    if apps:
        return apps[0][1]
    tried = [module.__name__]
    for name in USUAL_SUBMODULES if hasattr(module, "__path__") else ():
        full_name = f"{module.__name__}.{name}"
        if importlib.util.find_spec(full_name) is not None:
            tried.append(full_name)
            return _app_in(_import(full_name, found.source), found)
    for name, value in list(vars(module).items()):
        if _is_celery(value):
            return _checked(value, f"{module.__name__}:{name}", found)
    raise AppNotFound(
        f"{found.source}: there is no GreenQ app in {' or '.join(tried)} ({module.__file__}): "
        "write `app = GreenQ(...)` there, or name another module"
    )


def _apps(module: ModuleType) -> Iterator[tuple[str, GreenQ]]:
    for name, value in list(vars(module).items()):
        if isinstance(value, GreenQ):
            yield name, value


def _checked(value: Any, name: str, found: Spec) -> GreenQ:
    if isinstance(value, GreenQ):
        return value
    if _is_celery(value):
        raise AppNotFound(
            f"{found.source}: {name} is a Celery app, and this version does not serve those yet: "
            "make it a GreenQ (`from greenq import GreenQ`), whose tasks Celery's producers can call"
        )
    raise AppNotFound(f"{found.source}: {name} is a {type(value).__name__}, not a GreenQ app")


def _is_celery(value: Any) -> bool:
    """Whether it is a Celery app, without importing Celery."""
    return any(cls.__name__ == "Celery" and cls.__module__.startswith("celery.") for cls in type(value).__mro__)
