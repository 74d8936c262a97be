"""Settings from environment variables: every one of them, converted, checked, and named when wrong."""

from __future__ import annotations

import pytest

from greenq.config import Settings
from greenq.exceptions import ConfigError


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("GREENQ_WORKER_CONCURRENCY", "7", "worker_concurrency", 7),
        ("CELERY_WORKER_CONCURRENCY", "8", "worker_concurrency", 8),
        ("GREENQ_TASK_ACKS_LATE", "no", "task_acks_late", False),
        ("GREENQ_TASK_TIME_LIMIT", "2.5", "task_time_limit", 2.5),
        ("CELERY_TIMEZONE", "Europe/Oslo", "timezone", "Europe/Oslo"),
        ("GREENQ_IMPORTS", "a, b", "imports", ("a", "b")),
        ("GREENQ_IMPORTS", '["a", "b"]', "imports", ("a", "b")),
        ("GREENQ_TASK_ROUTES", '{"a.*": {"queue": "x"}}', "task_routes", {"a.*": {"queue": "x"}}),
        ("GREENQ_TASK_QUEUES", '["a", "b"]', "task_queues", ("a", "b")),
        ("GREENQ_BROKER_USE_SSL", "true", "broker_use_ssl", True),
        ("GREENQ_TASK_ROUTES", "proj.routes.choose", "task_routes", "proj.routes.choose"),
        ("CELERY_WORKER_REVOKES_MAX", "5", "worker_revokes_max", 5),
        ("CELERY_WORKER_REVOKE_EXPIRES", "60", "worker_revoke_expires", 60.0),
        ("GREENQ_CONTROL_KEYS", "a:0123456789abcdef", "worker_control_keys", {"a": "0123456789abcdef"}),
        ("GREENQ_WORKER_CONTROL_KEYS", "a:0123456789abcdef", "worker_control_keys", {"a": "0123456789abcdef"}),
    ],
)
def test_every_setting_has_a_variable(variable: str, text: str, name: str, value: object) -> None:
    conf = Settings({variable: text})
    assert conf[name] == value
    assert conf.source(name) == f"environment variable {variable}"
    assert conf.is_set(name)
    assert conf.copy()[name] == value


def test_an_own_setting_has_no_variable_of_celerys() -> None:
    conf = Settings({"CELERY_WORKER_CONTROL_PROFILE": "off"})
    assert conf.worker_control_profile != "off"


def test_the_environment_beats_the_code_and_the_line_beats_both() -> None:
    conf = Settings({"GREENQ_WORKER_CONCURRENCY": "7", "CELERY_WORKER_CONCURRENCY": "8"})
    conf.update(worker_concurrency=3)
    assert conf.worker_concurrency == 7
    conf.update({"worker_concurrency": 5}, source="command line", over_environment=True)
    assert (conf.worker_concurrency, conf.source("worker_concurrency")) == (5, "command line")
    assert conf.copy().worker_concurrency == 5
    assert conf.as_dict()["worker_concurrency"] == 5


def test_an_empty_variable_says_nothing() -> None:
    conf = Settings({"GREENQ_WORKER_CONCURRENCY": ""})
    conf.update(worker_concurrency=3)
    assert conf.worker_concurrency == 3


def test_every_wrong_variable_is_named_at_once() -> None:
    environ = {"GREENQ_WORKER_CONCURRENCY": "x", "CELERY_TASK_TIME_LIMIT": "-1", "GREENQ_TASK_ANNOTATIONS": "{"}
    conf = Settings(environ)
    with pytest.raises(ConfigError) as caught:
        conf.check_environment()
    assert all(variable in str(caught.value) for variable in environ)
    assert "whole number" in str(caught.value)
    assert "not JSON" in str(caught.value)


def test_a_variable_nearly_the_name_of_a_setting_is_warned_about() -> None:
    conf = Settings({"GREENQ_TASK_TIME_LIMT": "3", "GREENQ_SOMETHING": "1", "GREENQ_APP": "proj"})
    conf.check_environment()
    assert conf.warnings == [
        "environment variable GREENQ_TASK_TIME_LIMT sets nothing: did you mean GREENQ_TASK_TIME_LIMIT?"
    ]


def test_what_is_set_without_effect_is_warned_about() -> None:
    conf = Settings({"CELERY_BROKER_POOL_LIMIT": "3"})
    conf.check_environment()
    assert len(conf.warnings) == 1
    assert "broker_pool_limit (environment variable CELERY_BROKER_POOL_LIMIT) has no meaning" in conf.warnings[0]
