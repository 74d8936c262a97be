"""Finding the app: every place it may be named in, and what a mistake says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from greenq.app.loader import find_app, load_tasks
from greenq.exceptions import ConfigError
from tests.support.processes import run

APP = "from greenq import GreenQ\n{name} = GreenQ('{main}', broker='redis://unused')\n"


class Place:
    """A directory with a few modules, and the question asked in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str, text: str = "") -> Place:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self

    def app(self, name: str, attribute: str = "app", main: str | None = None) -> Place:
        return self.file(name, APP.format(name=attribute, main=main or name.removesuffix(".py")))

    def find(self, spec: str = "", *, cwd: str = ".", **environ: str) -> str:
        """The app's main name and tasks, or the error. What was imported and its path are forgotten after."""
        modules, path = set(sys.modules), list(sys.path)
        try:
            app = find_app(spec or None, cwd=self.root / cwd, environ=environ)
            load_tasks(app)
        except ConfigError as exc:
            return f"{type(exc).__name__} {exc}"
        else:
            return " ".join([str(app.main), *sorted(app.tasks)])
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                del sys.modules[name]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("attribute", ["app", "greenq", "celery", "anything"])
def test_a_module_is_searched_for_its_app(place: Place, attribute: str) -> None:
    assert place.app("mod.py", attribute, "found").find("mod") == "found"


def test_an_attribute_may_be_named(place: Place) -> None:
    place.app("mod.py", "one").file("two.py", APP.format(name="a", main="x") + APP.format(name="b", main="y"))
    assert place.find("two:b") == "y"
    assert place.find("two.b") == "y"
    assert place.find("mod:one") == "mod"


def test_an_attribute_may_lie_deeper(place: Place) -> None:
    place.file("mod.py", APP.format(name="real", main="deep") + "class Box:\n    app = real\n")
    assert place.find("mod:Box.app") == "deep"


@pytest.mark.parametrize("submodule", ["app", "celery", "tasks"])
def test_a_package_is_searched_for_its_usual_modules(place: Place, submodule: str) -> None:
    place.file("proj/__init__.py").app(f"proj/{submodule}.py", "anything", "found")
    assert place.find("proj") == "found"
    assert place.find(f"proj.{submodule}") == "found"


def test_a_package_that_holds_the_app_itself_is_enough(place: Place) -> None:
    assert place.app("proj/__init__.py", "app", "found").file("proj/tasks.py", "1 / 0").find("proj") == "found"


def test_something_else_called_app_is_passed_over(place: Place) -> None:
    place.file("mod.py", "app = object()\n" + APP.format(name="queue", main="found"))
    assert place.find("mod") == "found"


def test_the_environment_is_asked_next_and_the_line_wins(place: Place) -> None:
    place.app("one.py").app("two.py").app("tasks.py")
    assert place.find(GREENQ_APP="one") == "one"
    assert place.find("two", GREENQ_APP="one") == "two"


def test_pyproject_is_asked_next_from_any_directory_below_it(place: Place) -> None:
    place.app("one.py").app("tasks.py").file("pyproject.toml", '[tool.greenq]\napp = "one:app"\n')
    (place.root / "a" / "b").mkdir(parents=True)
    assert place.find(cwd="a/b") == "one"
    assert place.find() == "one"
    assert place.find(GREENQ_APP="tasks") == "tasks"


def test_a_pyproject_without_an_app_says_nothing(place: Place) -> None:
    place.app("tasks.py").file("pyproject.toml", "[tool.other]\n")
    assert place.find() == "tasks"


@pytest.mark.parametrize("text", ["[tool.greenq]\napp = 3\n", "not toml ["])
def test_a_wrong_pyproject_is_named(place: Place, text: str) -> None:
    found = place.app("tasks.py").file("pyproject.toml", text).find()
    assert found.startswith(f"ConfigError {place.root}/pyproject.toml")


@pytest.mark.parametrize("name", ["tasks.py", "app.py"])
def test_the_usual_files_come_last(place: Place, name: str) -> None:
    assert place.app(name, "anything", "found").find() == "found"


def test_nothing_at_all_says_what_was_tried(place: Place) -> None:
    found = place.find()
    for tried in ("-A", "GREENQ_APP", "[tool.greenq]", "tasks.py, app.py, celery.py", str(place.root)):
        assert tried in found
    assert found.startswith("AppNotFound")


def test_a_module_that_is_not_there_gets_the_nearest_one(place: Place) -> None:
    found = place.app("myapp.py").find("myap")
    assert "-A myap: there is no module 'myap'" in found
    assert f"did you mean myapp? (found in {place.root})" in found
    found = place.file("proj/__init__.py").app("proj/worker.py").find("proj.wroker")
    assert f"did you mean proj.worker? (found in {place.root}/proj)" in found


def test_an_attribute_that_is_not_there_lists_the_apps(place: Place) -> None:
    place.file("two.py", APP.format(name="first", main="x") + APP.format(name="second", main="y"))
    found = place.find("two:frist")
    assert "module two has no attribute 'frist'; the apps in two are first, second: did you mean first?" in found


def test_several_apps_are_not_chosen_between(place: Place) -> None:
    place.file("two.py", APP.format(name="first", main="x") + APP.format(name="second", main="y"))
    assert "module two holds several apps: say two:first or two:second" in place.find("two")


def test_no_app_in_the_module_is_said(place: Place) -> None:
    assert "there is no GreenQ app in mod" in place.file("mod.py", "x = 1\n").find("mod")
    assert "mod:x is a int, not a GreenQ app" in place.find("mod:x")


def test_a_missing_import_inside_the_app_names_the_line_and_the_package(place: Place) -> None:
    place.file("mod.py", "import inner\n").file("inner.py", "x = 1\nimport no_such_package\n")
    found = place.find("mod")
    assert "importing mod needs 'no_such_package', which is not there" in found
    assert f"({place.root}/inner.py:2)" in found


def test_a_syntax_error_shows_file_line_and_place(place: Place) -> None:
    found = place.file("mod.py", "x = 1\ndef f(:\n    pass\n").find("mod")
    assert f"-A mod: {place.root}/mod.py:2: invalid syntax" in found
    assert found.splitlines()[1:] == ["    def f(:", "          ^"]


def test_any_other_error_names_the_users_line(place: Place) -> None:
    found = place.file("mod.py", "import json\njson.loads('{')\n").find("mod")
    assert f"importing mod failed ({place.root}/mod.py:2): JSONDecodeError" in found


def test_a_wrong_setting_of_the_app_is_told_as_such(place: Place) -> None:
    found = place.file("mod.py", "from greenq import GreenQ\napp = GreenQ('x', task_ack_late=1)\n").find("mod")
    assert found.startswith("UnknownSetting")
    assert "did you mean task_acks_late? (GreenQ(...) in mod)" in found


def test_a_file_name_is_not_a_module(place: Place) -> None:
    assert "'mod.py' is not the name of a module: write mod" in place.app("mod.py").find("mod.py")
    assert "'a/b' is not the name of a module: write module:attribute" in place.find("a/b")


def test_a_celery_app_is_recognised_and_refused(place: Place) -> None:
    place.file("mod.py", "from celery import Celery\napp = Celery('x')\n")
    for spec in ("mod", "mod:app"):
        assert "mod:app is a Celery app, and this version does not serve those yet" in place.find(spec)


def test_the_tasks_of_include_imports_and_autodiscovery_are_there(place: Place) -> None:
    task = "from main import app\n@app.task\ndef {0}(): pass\n"
    place.file(
        "main.py",
        "from greenq import GreenQ, shared_task\n"
        "app = GreenQ('m', broker='redis://unused', include=['inc'], imports=['imp'])\n"
        "app.autodiscover_tasks(['pkg', 'bare'])\n",
    )
    place.file("inc.py", task.format("one")).file("imp.py", task.format("two"))
    place.file("pkg/__init__.py").file("pkg/tasks.py", task.format("three")).file("bare/__init__.py")
    assert place.find("main") == "m imp.two inc.one pkg.tasks.three"


def test_a_module_to_include_that_is_not_there_is_named(place: Place) -> None:
    place.file("main.py", "from greenq import GreenQ\napp = GreenQ('m', include=['nope'])\n")
    assert "'nope' of the settings imports and include: there is no module 'nope'" in place.find("main")
    place.file("main.py", "from greenq import GreenQ\napp = GreenQ('m')\napp.autodiscover_tasks(['nope'])\n")
    assert "autodiscover_tasks(['nope']): there is no module 'nope'" in place.find("main")
    place.file("pkg/__init__.py").file("pkg/tasks.py", "import missing_thing\n")
    place.file("main.py", "from greenq import GreenQ\napp = GreenQ('m')\napp.autodiscover_tasks(['pkg'])\n")
    assert "importing pkg.tasks needs 'missing_thing'" in place.find("main")


def in_a_process(cwd: Path, **environ: str) -> str:
    code = (
        "import os, pathlib; from greenq.app.loader import find_app; "
        "print(find_app(None, cwd=pathlib.Path.cwd(), environ=os.environ).main)"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("GREENQ_")}
    argv = [sys.executable, "-c", code]
    done = run(argv, cwd=cwd, env={**env, **environ})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_process_of_its_own_finds_the_app_from_where_it_stands(place: Place) -> None:
    place.app("one.py").app("tasks.py").file("pyproject.toml", '[tool.greenq]\napp = "one"\n')
    below = place.root / "deep" / "down"
    below.mkdir(parents=True)
    assert in_a_process(below) == "one"
    assert in_a_process(below, GREENQ_APP="tasks", PYTHONPATH=str(place.root)) == "tasks"


def test_a_file_called_celery_is_found_though_celery_is_installed(place: Place) -> None:
    assert in_a_process(place.app("celery.py", "app", "found").root) == "found"
