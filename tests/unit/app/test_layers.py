"""Settings in layers: the app's code, files, the environment, the line; each stronger than the one before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenq.app.base import GreenQ
from greenq.app.loader import AppSource
from greenq.exceptions import ConfigError
from tests.support.processes import run

APP = "from greenq import GreenQ\napp = GreenQ('one', worker_concurrency=1, task_time_limit=1, timezone='UTC')\n"
NAMES = ("worker_concurrency", "task_time_limit", "task_soft_time_limit", "timezone", "worker_control_profile")

Load = Callable[..., GreenQ]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load the app with these files beside it, in this environment."""
    for variable in list(os.environ):
        if variable.startswith(("GREENQ_", "CELERY_")):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(source: AppSource, files: dict[str, str], **environ: str) -> GreenQ:
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        for name, text in {"layered_app.py": APP, **files}.items():
            (tmp_path / name).write_text(text)
        for name in ("layered_app", "layered_settings"):
            sys.modules.pop(name, None)
        return source.load()

    return load


def test_each_layer_is_stronger_than_the_one_before(load: Load, tmp_path: Path) -> None:
    files = {
        "pyproject.toml": '[tool.greenq]\napp = "layered_app"\npool = "solo"\n'
        "worker_concurrency = 2\ntask_time_limit = 20\ntask_soft_time_limit = 2\n",
        "more.toml": 'task_time_limit = 30\nworker_control_profile = "read"\nworker_concurrency = 3\n',
    }
    source = AppSource(None, "more.toml", settings={"worker_control_profile": "off"})
    conf = load(source, files, GREENQ_WORKER_CONCURRENCY="4", GREENQ_WORKER_CONTROL_PROFILE="full").conf
    assert [(conf[name], conf.source(name)) for name in NAMES] == [
        (4, "environment variable GREENQ_WORKER_CONCURRENCY"),
        (30.0, str(tmp_path / "more.toml")),
        (2.0, f"[tool.greenq] in {tmp_path}/pyproject.toml"),
        ("UTC", conf.source("timezone")),
        ("off", "command line"),
    ]
    assert conf.source("timezone").startswith("GreenQ(...)")


def test_a_module_of_settings_is_a_file_too(load: Load) -> None:
    settings = "task_time_limit = 5\nimports = ['layered_tasks']\n"
    files = {"layered_settings.py": settings, "layered_tasks.py": "seen = 1\n"}
    conf = load(AppSource("layered_app", "layered_settings"), files).conf
    assert (conf.task_time_limit, conf.worker_concurrency) == (5, 1)
    assert "layered_tasks" in sys.modules
    del sys.modules["layered_tasks"]


def test_what_is_wrong_anywhere_is_said_at_once_with_its_place(load: Load, tmp_path: Path) -> None:
    files = {
        "pyproject.toml": '[tool.greenq]\nworker_concurency = 2\ntask_acks_late = "perhaps"\n',
        "more.toml": 'task_time_limit = "long"\n',
    }
    source = AppSource("layered_app", "more.toml", settings={"worker_control_profile": "some"})
    with pytest.raises(ConfigError) as caught:
        load(source, files, GREENQ_WORKER_REVOKES_MAX="many")
    said = str(caught.value)
    for part in (
        "'worker_concurency': did you mean worker_concurrency?",
        f"task_acks_late = 'perhaps' ([tool.greenq] in {tmp_path}/pyproject.toml)",
        f"task_time_limit = 'long' ({tmp_path}/more.toml)",
        "GREENQ_WORKER_REVOKES_MAX: expected a whole number",
        "worker_control_profile = 'some' (command line)",
    ):
        assert part in said, said


def test_a_file_that_is_not_there_is_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}/gone.toml cannot be read"):
        load(AppSource("layered_app", "gone.toml"), {})


@pytest.mark.parametrize("text", ["[tool]\ngreenq = 3\n", "[tool.greenq]\npool = 3\n"])
def test_a_table_of_the_wrong_shape_is_named(load: Load, text: str) -> None:
    with pytest.raises(ConfigError, match=r"pyproject.toml: (\[tool.greenq\] must be a table|pool must be text)"):
        load(AppSource("layered_app"), {"pyproject.toml": text})


def test_a_worker_says_all_of_it_in_one_line_and_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "layered_app.py").write_text(APP)
    (tmp_path / "greenq.toml").write_text('worker_concurrency = "few"\n')
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, (Path.cwd(),)))}
    env |= {"GREENQ_CONFIG": "greenq.toml", "CELERY_TASK_ACKS_LATE": "perhaps"}
    done = run([sys.executable, "-m", "greenq", "-A", "layered_app", "worker", "-P", "solo"], cwd=tmp_path, env=env)
    assert done.returncode == 2
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("greenq:")]
    assert "worker_concurrency = 'few'" in line
    assert "CELERY_TASK_ACKS_LATE" in line
    assert "Traceback" not in done.stderr
