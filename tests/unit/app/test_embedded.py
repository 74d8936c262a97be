"""The default broker: the same file for every process of a project, wherever it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenq import GreenQ
from greenq.app.embedded import choose_backend, choose_broker, project_root
from greenq.config import Settings
from tests.support.processes import run

APP = "from greenq import GreenQ\napp = GreenQ('proj')\n@app.task\ndef add(x, y):\n    return x + y\n"
SEND = "from proj.tasks import add; add.delay(1, 2)"
COUNT = "from proj.tasks import app; print(app.producer.publisher().length('celery'))"
BROKER = "from proj.tasks import app; print(app.broker.url)"


def python(code: str, cwd: Path, path: Path, **environ: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GREENQ_", "CELERY_"))}
    env.update(PYTHONPATH=str(path), **environ)
    done = run([sys.executable, "-c", code], cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src" / "proj").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "src" / "proj" / "__init__.py").touch()
    (root / "src" / "proj" / "tasks.py").write_text(APP)
    return root


def test_producer_and_worker_meet_from_different_directories(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    src = project / "src"
    python(SEND, elsewhere, src)
    python(SEND, src / "proj", src)
    assert python(COUNT, project, src) == "2"
    assert (project / ".greenq" / "broker.db").exists()
    assert list(elsewhere.iterdir()) == []


def test_a_script_finds_the_same_file_as_an_import_of_it(project: Path, tmp_path: Path) -> None:
    script = project / "src" / "proj" / "tasks.py"
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(script)!r})['app'].broker.url)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == python(BROKER, tmp_path, project / "src")


def test_a_symbolic_link_leads_to_the_same_file(project: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(project / "src")
    assert python(BROKER, tmp_path, link) == python(BROKER, tmp_path, project / "src")


@pytest.mark.parametrize("marker", ["pyproject.toml", ".git", ".greenq"])
def test_the_nearest_marked_parent_is_the_root(tmp_path: Path, marker: str) -> None:
    inner = tmp_path / "outer" / "inner"
    (inner / "pkg").mkdir(parents=True)
    (tmp_path / "outer" / "pyproject.toml").touch()
    (inner / marker).mkdir()
    assert project_root(inner / "pkg" / "tasks.py") == inner


def test_without_a_mark_the_modules_own_directory_is_the_root(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    assert project_root(tmp_path / "pkg" / "tasks.py") == tmp_path / "pkg"


def test_where_nothing_can_be_written_the_state_directory_serves(tmp_path: Path) -> None:
    home = Path("/proc/sys/tasks.py")  # a directory that nobody can write to, root included
    assert project_root(home) is None
    broker = choose_broker(Settings({}), home, "my app/x", {"XDG_STATE_HOME": str(tmp_path)})
    assert broker.url == f"sqlite:///{tmp_path}/greenq/my_app_x/broker.db"
    assert broker.embedded


def test_a_prompt_uses_the_directory_it_was_started_in(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    code = "from greenq import GreenQ; print(GreenQ('x').broker.url)"
    assert python(code, tmp_path, tmp_path) == f"sqlite:///{tmp_path}/.greenq/broker.db"


def test_looking_for_the_broker_creates_nothing(project: Path) -> None:
    python(BROKER, project, project / "src")
    assert not (project / ".greenq").exists()


def test_the_embedded_broker_keeps_results_too_and_a_configured_one_does_not(tmp_path: Path) -> None:
    conf = Settings({})
    broker = choose_broker(conf, tmp_path / "tasks.py", "x", {})
    assert broker.reason == "no broker configured: embedded, one host"
    assert choose_backend(conf, broker) == broker.url
    conf.result_backend = "disabled://"
    assert choose_backend(conf, broker) == "disabled://"
    conf = Settings({})
    conf.broker_url = "redis://u:secret@h/1"
    broker = choose_broker(conf, None, "x", {})
    assert (broker.url, broker.shown) == ("redis://u:secret@h/1", "redis://u:**@h/1")
    assert broker.reason == "broker_url from app.conf"
    assert choose_backend(conf, broker) is None


def test_the_environment_names_the_broker_and_is_said_to(monkeypatch: Any) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://env")
    monkeypatch.setenv("GREENQ_RESULT_BACKEND", "redis://results")
    app = GreenQ("x", broker="redis://argument")
    assert app.broker.url == "redis://env"
    assert app.broker.reason == "broker_url from environment variable CELERY_BROKER_URL"
    assert app.backend == "redis://results"
    monkeypatch.delenv("CELERY_BROKER_URL")
    assert app.broker.url == "redis://argument"
    assert "GreenQ(...)" in app.broker.reason
