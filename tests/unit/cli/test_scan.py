"""The line is read before anything is imported: which sub-command, which pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenq.cli.scan import arrange, option, pool_of
from greenq.exceptions import ConfigError


@pytest.mark.parametrize(
    ("line", "arranged"),
    [
        ("-A proj worker -P gevent -c 5", "worker -A proj -P gevent -c 5"),
        ("worker -A proj", "worker -A proj"),
        ("-A proj -P gevent -c 500", "worker -A proj -P gevent -c 500"),
        ("-P gevent -A proj worker -c 5", "worker -P gevent -A proj -c 5"),
        ("-Aproj -Pgevent", "worker -Aproj -Pgevent"),
        ("--app=proj inspect -d w@h ping", "inspect --app=proj -d w@h ping"),
        ("-q -C -b redis:// status", "status -q -C -b redis://"),
        ("-A worker worker", "worker -A worker"),
        ("--help", "--help"),
        ("", ""),
        ("-A proj --help", "-A proj --help"),
        ("--version", "--version"),
        ("wroker -c 5", "wroker -c 5"),
        ("--brokr x worker", "worker --brokr x"),
        ("-P solo --no-such", "worker -P solo --no-such"),
        ("--versoin", "--versoin"),
        ("--autoscale 10,2 -O default worker -A proj", "worker --autoscale 10,2 -O default -A proj"),
        ("--time-limit 5 --soft-time-limit=3 worker", "worker --time-limit 5 --soft-time-limit=3"),
        ("--max-tasks-per-child 5 worker", "worker --max-tasks-per-child 5"),
        ("--max-memory-per-child 9 worker", "worker --max-memory-per-child 9"),
        ("-Ofair --optimization default -A proj", "worker -Ofair --optimization default -A proj"),
    ],
)
def test_the_sub_command_comes_first(line: str, arranged: str) -> None:
    assert arrange(line.split()) == arranged.split()


@pytest.mark.parametrize(
    ("line", "pool"),
    [
        ("worker -P solo", "solo"),
        ("worker -Psolo", "solo"),
        ("worker -P=solo", "solo"),
        ("worker --pool solo", "solo"),
        ("worker --pool=solo", "solo"),
        ("worker -A -P -P solo", "solo"),
        ("worker -P gevent -P solo", "solo"),
        ("worker -n -Psolo", ""),
        ("worker -- -P solo", ""),
        ("worker", ""),
    ],
)
def test_the_pool_is_found_in_every_spelling(line: str, pool: str) -> None:
    assert option(line.split(), "-P", "--pool") == pool


def test_the_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.greenq]\npool = "solo"\n')
    monkeypatch.chdir(tmp_path)
    assert pool_of(["worker", "-P", "gevent"], {"GREENQ_POOL": "x"}) == ("gevent", "-P")
    assert pool_of(["worker"], {"GREENQ_POOL": "gevent"}) == ("gevent", "GREENQ_POOL")
    assert pool_of(["worker"], {}) == ("solo", f"{tmp_path}/pyproject.toml")


def test_the_file_is_read_in_the_working_directory_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.greenq]\npool = "solo"\n')
    assert pool_of(["worker", "--workdir", str(tmp_path)], {}) == ("solo", f"{tmp_path}/pyproject.toml")


def test_a_file_named_on_the_line_or_in_the_environment_wins_over_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.greenq]\npool = "solo"\n')
    named = tmp_path / "greenq.toml"
    named.write_text('worker_pool = "eventlet"\n')
    where = ["worker", "--workdir", str(tmp_path)]
    assert pool_of([*where, "--config", "greenq.toml"], {}) == ("eventlet", str(named))
    assert pool_of(where, {"GREENQ_CONFIG": str(named)}) == ("eventlet", str(named))
    assert pool_of([*where, "--config=some.module"], {}) == ("solo", f"{tmp_path}/pyproject.toml")
    assert pool_of(where, {"CELERY_WORKER_POOL": "prefork"}) == ("prefork", "CELERY_WORKER_POOL")


def test_nothing_said_means_gevent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pool_of(["worker"], {}) == ("gevent", "default")


def test_a_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/pyproject.toml cannot be read"):
        pool_of(["worker"], {})
