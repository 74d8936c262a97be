"""Patching comes first and is proved: by every way of naming a pool, and nobody keeps an original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.node import ROOT

GREEN = ("eventlet", "gevent")
PATCHING = (*GREEN, "prefork")
WHOSE_SLEEP = {"eventlet": "eventlet.greenthread", "gevent": "gevent.hub", "prefork": "gevent.hub", "solo": "time"}
TELLS = "import time\nprint('sleep:', getattr(time.sleep, '__module__', None), flush=True)\nraise SystemExit(3)\n"
APP = "from greenq import GreenQ\napp = GreenQ('tasks', worker_pool={pool!r})\n"


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((env.pop("PYTHONPATH", str(cwd)), str(ROOT)))
    return subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path} | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def patched(pool: str, cwd: Path, then: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Patch for the pool in an interpreter of its own, and do `then`."""
    return run("-c", f"from greenq.runtime.patching import patch\npatch({pool!r})\n{then}", cwd=cwd, **env)


@pytest.mark.parametrize("pool", WHOSE_SLEEP)
@pytest.mark.parametrize("how", ["-P", "GREENQ_POOL", "pyproject.toml"])
def test_the_pool_is_patched_for_before_the_app_is_imported_however_it_was_named(
    tmp_path: Path, pool: str, how: str
) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    line, env = ["-m", "greenq", "-A", "tells", "worker"], {}
    if how == "-P":
        line += ["-P", pool]
    elif how == "GREENQ_POOL":
        env["GREENQ_POOL"] = pool
    else:
        (tmp_path / "pyproject.toml").write_text(f'[tool.greenq]\npool = "{pool}"\n')
    done = run(*line, cwd=tmp_path, **env)
    assert f"sleep: {WHOSE_SLEEP[pool]}\n" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("pool", [pool for pool in WHOSE_SLEEP if pool != "gevent"])
def test_a_pool_that_only_the_apps_code_names_is_refused_with_what_to_type(tmp_path: Path, pool: str) -> None:
    (tmp_path / "tasks.py").write_text(APP.format(pool=pool))
    done = run("-m", "greenq", "-A", "tasks", "worker", cwd=tmp_path)
    assert done.returncode == 2
    assert f"write -P {pool}, GREENQ_POOL={pool}, or pool under [tool.greenq] in pyproject.toml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pool_of_the_apps_code_that_there_is_not_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(APP.format(pool="threads"))
    done = run("-m", "greenq", "-A", "tasks", "worker", cwd=tmp_path)
    assert done.returncode == 2
    assert "worker_pool='threads'; name one of eventlet, gevent, prefork, solo with -P" in done.stderr


@pytest.mark.parametrize("pool", PATCHING)
@pytest.mark.parametrize("early", ["sitecustomize", "pth"])
def test_a_module_that_kept_an_original_is_refused_by_name_and_with_the_cure(
    tmp_path: Path, pool: str, early: str
) -> None:
    (tmp_path / "hasty.py").write_text("from time import sleep as doze\n")
    (tmp_path / "tasks.py").write_text("raise AssertionError('the app was imported')\n")
    if early == "pth":
        (tmp_path / "tools.pth").write_text("import sys; import hasty\n")
        (tmp_path / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(tmp_path)!r})\n")
        culprit = tmp_path / "tools.pth"
    else:
        culprit = tmp_path / "sitecustomize.py"
        culprit.write_text("import hasty\n")
    done = run("-m", "greenq", "-A", "tasks", "worker", "-P", pool, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"hasty.doze is time.sleep as it was before patching for -P {pool}" in line
    assert f"{culprit} imports hasty too early" in line


@pytest.mark.parametrize(
    ("statement", "original"),
    [
        ("from socket import socket", "socket.socket"),
        ("from socket import create_connection as connect", "socket.create_connection"),
        ("from socket import getaddrinfo", "socket.getaddrinfo"),
        ("from select import select", "select.select"),
        ("from select import poll", "select.poll"),
        ("from selectors import DefaultSelector", "selectors.DefaultSelector"),
        ("from threading import Lock", "threading.Lock"),
        ("from threading import local", "threading.local"),
        ("from _thread import start_new_thread", "_thread.start_new_thread"),
        ("from queue import Queue", "queue.Queue"),
        ("from queue import SimpleQueue", "queue.SimpleQueue"),
        ("from subprocess import Popen", "subprocess.Popen"),
        ("from ssl import SSLContext", "ssl.SSLContext"),
        ("from os import waitpid", "os.waitpid"),
    ],
)
@pytest.mark.parametrize("pool", GREEN)
def test_whatever_would_block_the_hub_is_found(tmp_path: Path, pool: str, statement: str, original: str) -> None:
    (tmp_path / "hasty.py").write_text(statement + "\n")
    (tmp_path / "sitecustomize.py").write_text("import hasty\n")
    done = patched(pool, tmp_path, "print('went on')")
    assert "ConfigError: hasty." in done.stderr, done.stderr + done.stdout
    assert f" is {original} as it was before patching" in done.stderr


@pytest.mark.parametrize("pool", PATCHING)
def test_modules_of_the_standard_library_imported_early_are_no_reason_to_refuse(tmp_path: Path, pool: str) -> None:
    early = "logging.handlers, ssl, queue, asyncio, urllib.request, http.client, concurrent.futures.thread, "
    early += "tempfile, subprocess, email.message, json, decimal, uuid, random, inspect, sqlite3, _strptime"
    (tmp_path / "sitecustomize.py").write_text(f"import {early}\n")
    done = patched(pool, tmp_path, "print('went on')")
    assert done.stdout == "went on\n", done.stderr
    assert not done.stderr


@pytest.mark.parametrize("pool", PATCHING)
def test_patching_says_nothing_to_the_user(tmp_path: Path, pool: str) -> None:
    """Not even where a lock was made too early to be replaced, of which eventlet would tell."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\ndef make():\n    lock = threading.RLock()\n    return lambda: lock\nkept = make()\n"
    )
    done = patched(pool, tmp_path, "import logging; logging.getLogger('later').error('is heard')", PYTHONWARNINGS="")
    assert done.returncode == 0
    assert done.stderr == "is heard\n"


@pytest.mark.parametrize("pool", GREEN)
def test_the_proof_costs_little(tmp_path: Path, pool: str) -> None:
    """Generous, for a busy machine: it takes about a millisecond."""
    script = (
        "import time\nfrom greenq.cli import main\nfrom greenq.runtime.originals import Originals\n"
        "from greenq.runtime.patching import PATCHERS\n"
        f"began = time.process_time(); o = Originals(); spent = time.process_time() - began\nPATCHERS[{pool!r}]()\n"
        "began = time.process_time(); assert not list(o.kept()); spent += time.process_time() - began\nprint(spent)\n"
    )
    done = run("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.02


def test_solo_leaves_the_standard_library_alone(tmp_path: Path) -> None:
    then = "import sys, time; print(time.sleep, 'gevent' in sys.modules, 'eventlet' in sys.modules)"
    done = patched("solo", tmp_path, then)
    assert done.stdout == "<built-in function sleep> False False\n", done.stderr
