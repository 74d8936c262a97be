"""Whole command lines in a process of their own: help, mistakes, exit codes. No broker is asked."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from greenq.cli import scan
from greenq.cli.root import TABLE
from tests.support.processes import run

TASKS = """
from greenq import GreenQ
from greenq.control import control_command, inspect_command
app = GreenQ("proj", broker="redis://127.0.0.1:1/0", backend="disabled://")

@app.task
def add(x, y):
    return x + y

@inspect_command
def whoami(panel, *, loud: bool = False, times: int = 1):
    '''Say who I am.'''

@control_command(args=[("n", int)], signature="[N=1]")
def increase(state, n=1):
    '''Increase.'''
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def greenq(*words: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GREENQ", "CELERY"))}
    env = {**clean, "PYTHONPATH": root, "NO_COLOR": "1", **environ}
    return run([sys.executable, "-m", "greenq", *words], cwd=cwd, env=env)


def test_help_imports_nothing_that_costs() -> None:
    code = (
        "import sys; sys.argv = ['greenq', '--help']\n"
        "from greenq.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as exc: assert not exc.code\n"
        "costly = {'kombu', 'gevent', 'eventlet', 'redis', 'amqp', 'psutil', 'sqlite3', 'msgspec', 'greenq.app',\n"
        "          'greenq.control', 'greenq.worker', 'greenq._speedups', 'greenq.config', 'asyncio', 'logging'}\n"
        "found = costly & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_help_groups_the_commands_and_gives_examples(tmp_path: Path) -> None:
    done = greenq("--help", cwd=tmp_path)
    assert done.returncode == 0
    for title in (
        "Run:",
        "Ask and steer:",
        "Tasks and queues:",
        "Options of every command:",
        "Examples:",
        "Exit codes:",
    ):
        assert title in done.stdout


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_every_entry_of_the_table_is_a_command_whose_options_all_have_help(entry: object) -> None:
    module, _, attribute = entry.where.partition(":")  # type: ignore[attr-defined]
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == entry.name  # type: ignore[attr-defined]
    assert command.get_short_help_str(200).startswith(entry.help.rstrip("."))  # type: ignore[attr-defined]
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, param.name


def test_the_scanner_knows_the_same_commands() -> None:
    assert tuple(entry.name for entry in TABLE) == scan.COMMANDS


def test_version_is_printed(tmp_path: Path) -> None:
    assert greenq("--version", cwd=tmp_path).stdout.startswith("greenq 0.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wroker", "no command 'wroker'; did you mean 'worker'?"),
        ("xyzzy", "no command 'xyzzy'; there are worker, status"),
        ("-A tasks inspect pnig", "no inspect command 'pnig'; did you mean 'ping'?"),
        ("inspect pnig", "no inspect command 'pnig'; did you mean 'ping'?"),
        ("inspect rate_limit", "greenq control rate_limit"),
        ("worker --concurency 5", "--concurrency"),
        ("--brokr x worker", "--broker"),
        ("--versoin", "--version"),
        ("-P solo --concurency 5", "--concurrency"),
        ("--config nosuchconf status", "nosuchconf"),
        ("worker -I nosuchmod", "nosuchmod"),
        ("worker -P gevnt", "did you mean 'gevent'?"),
        ("worker -P threads", "threads is not in this version yet"),
        ("worker -l INFOO", "did you mean 'INFO'?"),
        ("worker -c many", "'many' is neither a number of slots nor 'auto'"),
        ("worker --autoscale 3,1,2", "--autoscale takes one or two numbers"),
        ("worker --autoscale x", "'x' is not one or two numbers of slots"),
        ("worker --autoscale 0", "--autoscale takes one or two numbers"),
        ("worker -P solo --autoscale 3,1", "the solo pool has exactly one slot"),
        ("worker -c 5 --autoscale 3,1", "leave one of them out"),
        ("worker -P solo -c 2", "the solo pool has exactly one slot"),
        ("worker -O fast", "'fast' is none of fair, default"),
        ("worker -O default", "the gevent pool has none"),
        ("worker -P solo -O default", "the solo pool has none"),
        ("worker -P gevent --max-tasks-per-child 5", "use -P prefork"),
        ("worker -P eventlet --max-tasks-per-child 5", "use -P prefork"),
        ("worker -P solo --max-memory-per-child 5", "use -P prefork"),
        ("worker --max-tasks-per-child 0", "--max-tasks-per-child"),
        ("worker --time-limit abc", "'abc' is not a valid float"),
        ("worker --time-limit -1", "--time-limit"),
        ("worker --time-limit 5 --soft-time-limit 6", "task_soft_time_limit, 6 s (command line), is above"),
        ("control time_limit tasks.add x", "'x' is not float or null"),
        ("control pool_grow x", "'x' is not int"),
        ("control rate_limit tasks.add", "rate_limit needs rate_limit"),
        ("control increase x", "'x' is not int"),
        ("control increase 1 2", "one word too many: '2'"),
        ("call tasks.add -a 5", "'5' is not a JSON array"),
        ("call tasks.add -k [", "is not a JSON object"),
        ("call tasks.add --eta tomorrow", "'tomorrow' is not a moment"),
        ("purge -f -X celery", "no queue is left"),
        ("-A nope inspect ping", "nope"),
        ("-A tasks:nope inspect ping", "no attribute 'nope'"),
    ],
)
def test_a_mistake_is_one_line_with_its_cure_and_exit_code_2(line: str, words: str, project: Path) -> None:
    done = greenq(*line.split(), cwd=project)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("greenq: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_traceback_shows_where_an_error_came_from(project: Path) -> None:
    done = greenq("-A", "nope", "--traceback", "status", cwd=project)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("greenq: ")


@pytest.mark.parametrize(
    "line", ["inspect ping", "status", "control revoke x", "purge -f", "call tasks.add -a [1,2]"]
)
def test_a_broker_that_is_down_is_one_line_and_exit_code_69(line: str, project: Path) -> None:
    done = greenq(*line.split(), cwd=project)
    assert done.returncode == 69, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("greenq: ")
    assert "127.0.0.1:1" in last
    assert "Traceback" not in done.stderr


def test_the_password_of_the_broker_is_never_shown(project: Path) -> None:
    done = greenq("-b", "redis://:hunter2@127.0.0.1:1/0", "inspect", "ping", cwd=project)
    assert done.returncode == 69
    assert "hunter2" not in done.stderr + done.stdout


def test_own_commands_are_listed_when_the_app_is_named(project: Path) -> None:
    assert "whoami" not in greenq("inspect", "--help", cwd=project).stdout
    listed = greenq("-A", "tasks", "inspect", "--help", cwd=project).stdout
    assert "Say who I am." in listed
    assert "increase [N=1]" in greenq("control", "--list", "-A", "tasks", cwd=project).stdout.splitlines()


def test_commands_are_listed_by_what_they_are_about(project: Path) -> None:
    text = greenq("-A", "tasks", "control", "--help", cwd=project).stdout
    titles = [line.strip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles.index("Pools") < titles.index("Steering") < titles.index("The app's own") < titles.index("Asking")


def test_arguments_are_described_one_by_one(project: Path) -> None:
    text = greenq("control", "terminate", "--help", cwd=project).stdout
    assert "Usage: greenq control terminate [OPTIONS] SIGNAL TASK_ID...\n" in text
    assert "\nArguments:\n  SIGNAL   str or int\n  TASK_ID  one or more\n" in text
    assert "NUM        int [default: 200]" in greenq("inspect", "objgraph", "--help", cwd=project).stdout


def test_a_group_without_a_command_shows_its_help(project: Path) -> None:
    done = greenq("inspect", cwd=project)
    assert done.returncode == 2
    assert "\n  ping " in done.stderr
    assert done.stdout == ""


def test_an_own_command_has_help_made_of_its_annotations(project: Path) -> None:
    text = greenq("inspect", "whoami", "--help", cwd=project).stdout
    assert "--loud" in text
    assert "--times" in text
    assert "int" in text


def test_a_pool_only_the_settings_name_is_refused_with_the_cure(project: Path) -> None:
    (project / "tasks.py").write_text(TASKS + "\napp.conf.worker_pool = 'solo'\n")
    done = greenq("-A", "tasks", "worker", cwd=project)
    assert done.returncode == 2
    assert "write -P solo, GREENQ_POOL=solo" in done.stderr


@pytest.mark.parametrize(
    ("setting", "options", "words"),
    [
        ("worker_autoscaler = 'tasks:add'", "--autoscale 4", "worker_autoscaler = 'tasks:add' is no subclass of"),
        ("worker_autoscaler = 'nope:X'", "--autoscale 4", "No module named 'nope'; write module:Class"),
        ("worker_pool_start_method = 'spawn'", "-P prefork", "there is only 'fork'"),
        ("worker_max_tasks_per_child = 5", "-P gevent", "(--max-tasks-per-child) needs child processes"),
        ("task_soft_time_limit = 9", "--time-limit 5", "9 s (app.conf), is above task_time_limit, 5 s"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_start(
    setting: str, options: str, words: str, project: Path
) -> None:
    (project / "tasks.py").write_text(f"{TASKS}\napp.conf.{setting}\n")
    done = greenq("-A", "tasks", "worker", *options.split(), cwd=project)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_keepalive_that_is_no_number_is_refused_at_start(project: Path) -> None:
    done = greenq("-A", "tasks", "worker", "--autoscale", "4", cwd=project, AUTOSCALE_KEEPALIVE="soon")
    assert done.returncode == 2
    assert "AUTOSCALE_KEEPALIVE='soon' in the environment is not a number of seconds" in done.stderr


def test_purge_asks_first(project: Path) -> None:
    done = greenq("purge", cwd=project)
    assert done.returncode == 1
    assert "This cannot be undone" in done.stderr
    assert done.stderr.splitlines()[-1] == "greenq: aborted"
