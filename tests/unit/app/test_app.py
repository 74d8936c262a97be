"""The app: configuration from many places, found mistakes, the doors it opens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenq import GreenQ
from greenq.exceptions import ConfigError, UnknownSetting


def test_keyword_arguments_are_settings(tmp_path: Path) -> None:
    app = GreenQ("x", broker="redis://b", backend="redis://r", include=["m"], task_acks_late=False)
    assert app.conf.broker_url == "redis://b"
    assert app.conf.result_backend == "redis://r"
    assert app.conf.include == ("m",)
    assert app.conf.task_acks_late is False
    assert app.conf.source("task_acks_late") == f"GreenQ(...) in {__name__}"


def test_an_unknown_keyword_is_an_unknown_setting() -> None:
    with pytest.raises(UnknownSetting, match=r"'task_ack_late': did you mean task_acks_late\? \(GreenQ"):
        GreenQ("x", task_ack_late=False)


def test_a_configuration_object_is_read_at_once(app: GreenQ) -> None:
    app.config_from_object(SimpleNamespace(CELERY_TASK_SERIALIZER="yaml"), namespace="CELERY")
    assert app.conf.task_serializer == "yaml"
    assert GreenQ("x", config_source={"timezone": "UTC"}).conf.timezone == "UTC"


def test_a_configuration_module_is_imported_when_it_is_needed(app: GreenQ, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    app.config_from_object("later_config")
    (tmp_path / "later_config.py").write_text("task_serializer = 'yaml'\ntimezone = 'UTC'\n")
    app.conf.timezone = "Asia/Tokyo"
    assert app.conf.task_serializer == "yaml"
    assert app.conf.timezone == "Asia/Tokyo", "what is set later wins"
    assert app.conf.source("task_serializer") == "module later_config"
    assert "later_config" in sys.modules


@pytest.mark.parametrize("name", ["no_such_config", "json:no_such_attribute"])
def test_a_configuration_module_that_is_not_there_is_named(app: GreenQ, name: str) -> None:
    app.config_from_object(name)
    with pytest.raises(ConfigError, match=f"config_from_object\\('{name}'\\)"):
        _ = app.conf


def test_the_tasks_of_an_app_follow_a_configuration_module(app: GreenQ, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "route_config.py").write_text("task_routes = {'t': 'routed'}\ntask_acks_late = False\n")
    monkeypatch.syspath_prepend(tmp_path)
    app.config_from_object("route_config")
    task = app.task(name="t")(lambda: None)
    assert app.build_message("t").routing_key == "routed"
    assert task.acks_late is False


def test_autodiscover_takes_a_list(app: GreenQ) -> None:
    app.autodiscover_tasks(["a", "b"])
    app.autodiscover_tasks(lambda: ["c"], related_name="jobs")
    assert app.discover[0] == (("a", "b"), "tasks")
    assert app.discover[1][1] == "jobs"
    with pytest.raises(TypeError, match=r"takes a list of packages: \['proj'\]"):
        app.autodiscover_tasks("proj")


def test_the_control_client_is_reached_through_the_app(app: GreenQ) -> None:
    assert type(app.control).__name__ == "Control"
    assert app.control is app.control


def test_closing_twice_is_legal_and_the_next_use_opens_again(app: GreenQ) -> None:
    app.send_task("t")
    app.close()
    app.close()
    assert app.producer.publisher().length("celery") == 1


def test_two_threads_open_one_publisher(app: GreenQ) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: id(app.producer.publisher()), range(64)))
    assert len(found) == 1


def test_a_forked_child_sends_with_its_own_origin(app: GreenQ) -> None:
    import os

    before = app.build_message("t").headers["origin"]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, app.build_message("t").headers["origin"].encode())
        os._exit(0)
    os.waitpid(pid, 0)
    after = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert before.startswith(f"gen{os.getpid()}@")
    assert after.startswith(f"gen{pid}@")
