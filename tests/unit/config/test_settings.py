"""Settings: checked when set, every mistake at once, sources known, secrets hidden."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import greenq
from greenq.config import Settings
from greenq.exceptions import ConfigError, UnknownSetting
from greenq.settings import TABLE, Status


@pytest.fixture
def conf() -> Settings:
    return Settings({})


def test_defaults_are_celerys_but_for_the_named_ones() -> None:
    from celery.app.defaults import NAMESPACES, flatten

    theirs = {name: option.default for name, option in flatten(NAMESPACES)}
    ours = Settings({}).as_dict()
    differing = {name for name in theirs.keys() & ours.keys() if _comparable(theirs[name]) != _comparable(ours[name])}
    assert differing == {"task_acks_late", "task_reject_on_worker_lost", "worker_pool"}


def test_every_setting_of_celerys_core_is_in_the_table() -> None:
    from celery.app.defaults import NAMESPACES, flatten

    from greenq.settings import OTHER_STORES

    theirs = {name for name, _ in flatten(NAMESPACES) if not name.startswith(OTHER_STORES)}
    assert theirs - TABLE.keys() == set()


def test_every_honoured_setting_is_read_and_no_other_name_is() -> None:
    rooms = Path(greenq.__file__).parent
    own = {"settings.py", "config.py"}
    text = "\n".join(path.read_text() for path in rooms.rglob("*.py") if path.name not in own)
    honoured = {row.name for row in TABLE.values() if row.status is Status.HONOURED}
    assert {name for name in honoured if not re.search(rf"\b{name}\b", text)} == set()
    read = set(re.findall(r"\bconf\.([a-z]+_[a-z_]+)\b", text)) - set(dir(Settings))
    assert read - TABLE.keys() == set()


def _comparable(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return tuple(value) if isinstance(value, (list, tuple)) else value


def test_attributes_and_items_are_the_same_values(conf: Settings) -> None:
    conf.task_serializer = "pickle"
    assert conf["task_serializer"] == conf.task_serializer == conf.get("task_serializer") == "pickle"
    conf["task_serializer"] = "yaml"
    assert conf.task_serializer == "yaml"
    assert "task_serializer" in conf
    assert conf.get("timezone", "UTC") == "UTC"


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("task_acks_late", "no", False),
        ("task_acks_late", 1, True),
        ("worker_concurrency", "500", 500),
        ("worker_concurrency", "auto", "auto"),
        ("result_expires", timedelta(hours=1), 3600.0),
        ("result_expires", None, None),
        ("task_time_limit", "2.5", 2.5),
        ("accept_content", "json, pickle", ("json", "pickle")),
        ("task_default_delivery_mode", "transient", 1),
        ("broker_url", ["redis://a", "redis://b"], "redis://a;redis://b"),
        ("task_default_rate_limit", "10/m", "10/m"),
    ],
)
def test_a_value_is_converted_to_its_kind(conf: Settings, name: str, given: Any, kept: Any) -> None:
    conf.update({name: given})
    assert conf[name] == kept


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("task_acks_late", "maybe"),
        ("task_acks_late", None),
        ("worker_concurrency", "many"),
        ("worker_concurrency", -1),
        ("broker_heartbeat", 1.5),
        ("task_time_limit", -1),
        ("task_time_limit", "nan"),
        ("task_publish_retry_policy", [1]),
        ("task_default_delivery_mode", 3),
        ("task_default_rate_limit", "-1/s"),
        ("broker_url", 6379),
        ("task_queues", "celery"),
    ],
)
def test_a_wrong_value_names_setting_value_and_source(conf: Settings, name: str, given: Any) -> None:
    before = conf.as_dict()
    with pytest.raises(ConfigError, match=f"setting {name} = .*celeryconfig.*: ") as caught:
        conf.update({name: given}, source="celeryconfig")
    assert repr(given) in str(caught.value)
    assert conf.as_dict() == before


def test_all_mistakes_are_told_at_once_and_nothing_is_changed(conf: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        conf.update(task_serialiser="json", worker_concurency=1, task_acks_late="maybe", timezone="UTC")
    text = str(caught.value)
    assert "did you mean task_serializer?" in text
    assert "did you mean worker_concurrency?" in text
    assert "task_acks_late = 'maybe'" in text
    assert conf.timezone is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("task_serialiser", "task_serializer"),
        ("worker_concurency", "worker_concurrency"),
        ("broker_ulr", "broker_url"),
        ("result_backed", "result_backend"),
        ("task_ack_late", "task_acks_late"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(conf: Settings, wrong: str, right: str) -> None:
    with pytest.raises(UnknownSetting, match=f"no setting '{wrong}': did you mean {right}?"):
        conf.update({wrong: "x"})
    with pytest.raises(UnknownSetting, match=right):
        setattr(conf, wrong, "x")
    with pytest.raises(UnknownSetting, match=right):
        conf[wrong]
    with pytest.raises(AttributeError, match=right):
        getattr(conf, wrong)


def test_a_setting_without_meaning_is_named_with_its_reason_once(
    conf: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        conf.worker_hijack_root_logger = True
        conf.worker_hijack_root_logger = True
    assert len(conf.warnings) == len(caplog.records) == 1
    assert "worker_hijack_root_logger" in conf.warnings[0]
    assert "has no meaning here: greenq never takes over the root logger" in conf.warnings[0]


def test_an_unsupported_setting_is_named_unless_it_asks_for_what_happens_anyway(conf: Settings) -> None:
    conf.task_send_sent_event = False
    conf.task_protocol = 2
    assert conf.warnings == []
    conf.task_send_sent_event = True
    assert "task_send_sent_event" in conf.warnings[0]
    assert "not supported yet: events are not part of this version" in conf.warnings[0]


def test_settings_of_other_result_stores_are_not_taken_in_silence(conf: Settings) -> None:
    conf.update(mongodb_backend_settings={"database": "x"})
    assert "mongodb_backend_settings" in conf.warnings[0]
    assert "redis, sqlite or rpc" in conf.warnings[0]


def test_no_honoured_setting_warns(conf: Settings) -> None:
    for row in TABLE.values():
        if row.status is Status.HONOURED and row.default is not None:
            conf.update({row.name: row.default})
    assert conf.warnings == []


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("BROKER_URL", "broker_url", "redis://"),
        ("CELERY_RESULT_BACKEND", "result_backend", "redis://"),
        ("CELERYD_CONCURRENCY", "worker_concurrency", 4),
        ("CELERY_ACKS_LATE", "task_acks_late", False),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires", 60.0),
        ("CELERY_TASK_SERIALIZER", "task_serializer", "yaml"),
        ("CELERY_QUEUES", "task_queues", {"a": {}}),
        ("CELERY_ENABLE_UTC", "enable_utc", True),
    ],
)
def test_an_old_upper_case_name_is_taken_and_its_new_name_told(
    conf: Settings, old: str, new: str, value: Any
) -> None:
    conf.update({old: value})
    assert conf[new] == value
    assert f"{old} is Celery's old name for {new}" in conf.warnings[0]


def test_all_old_names_of_celery_lead_to_a_setting() -> None:
    from celery.app.defaults import NAMESPACES, flatten

    from greenq.config import _new_name
    from greenq.settings import OTHER_STORES

    wrong = {}
    for name, option in flatten(NAMESPACES):
        for pattern in getattr(option, "old", None) or ():
            old = pattern.format(name).upper()
            if not name.startswith(OTHER_STORES) and _new_name(old) != name:
                wrong[old] = (name, _new_name(old))
    assert wrong == {}


def test_a_module_gives_its_settings_and_not_its_imports(conf: Settings) -> None:
    module = ModuleType("celeryconfig")
    exec(  # a configuration module as people write them
        "import os\nfrom datetime import timedelta\n_private = 1\nBASE_DIR = '/x'\n"
        "def helper(): pass\n"
        "task_serializer = 'yaml'\nresult_expires = timedelta(minutes=1)\n",
        module.__dict__,
    )
    conf.from_object(module)
    assert conf.task_serializer == "yaml"
    assert conf.result_expires == 60
    assert conf.source("task_serializer") == "module celeryconfig"


def test_a_misspelt_name_in_a_module_or_class_is_an_error(conf: Settings) -> None:
    class Config:
        task_serialiser = "json"

    with pytest.raises(UnknownSetting, match=r"did you mean task_serializer\? \(Config\)"):
        conf.from_object(Config)
    with pytest.raises(UnknownSetting, match="CELERY_ACK_LATE"):
        conf.from_object(SimpleNamespace(CELERY_ACK_LATE=True))


def test_a_namespace_takes_only_its_own_names(conf: Settings) -> None:
    settings = SimpleNamespace(CELERY_TASK_SERIALIZER="yaml", DEBUG=True, TIMEZONE="Asia/Tokyo", lower=1)
    conf.from_object(settings, namespace="CELERY")
    assert conf.task_serializer == "yaml"
    assert conf.timezone is None
    with pytest.raises(UnknownSetting, match="did you mean task_serializer"):
        conf.from_object(SimpleNamespace(CELERY_TASK_SERIALISER="yaml"), namespace="CELERY_")


def test_the_environment_beats_configuration() -> None:
    environ = {"CELERY_BROKER_URL": "redis://celery"}
    conf = Settings(environ)
    conf.update(broker_url="redis://configured", result_backend="redis://configured")
    assert conf.broker_url == conf["broker_url"] == "redis://celery"
    assert conf.source("broker_url") == "environment variable CELERY_BROKER_URL"
    environ["GREENQ_BROKER_URL"] = "redis://greenq"
    assert conf.broker_url == "redis://greenq"
    assert conf.result_backend == "redis://configured"
    environ["GREENQ_RESULT_BACKEND"] = "redis://results"
    assert conf.result_backend == "redis://results"


def test_secrets_are_masked_and_hosts_shown(conf: Settings) -> None:
    conf.update(
        broker_url="redis://user:s3cret@host:6379/1;amqp://u:p4ss@other//",
        result_backend="redis://:s3cret@host/2?password=s3cret&x=1",
        broker_password="s3cret",
        security_key="s3cret",
        broker_transport_options={"sentinel_kwargs": {"password": "s3cret"}, "max_retries": 1},
        task_routes=[{"a": "b"}],
    )
    masked = conf.masked()
    assert "s3cret" not in repr(masked)
    assert "p4ss" not in repr(masked)
    assert "s3cret" not in repr(conf)
    assert masked["broker_url"] == "redis://user:**@host:6379/1;amqp://u:**@other//"
    assert masked["result_backend"] == "redis://:**@host/2?password=**&x=1"
    assert masked["broker_password"] == masked["security_key"] == "********"
    assert masked["broker_transport_options"]["max_retries"] == 1
    assert set(masked) == set(TABLE)


def test_an_error_about_a_secret_does_not_tell_it(conf: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        conf.update(broker_password=["s3cret"])
    assert "s3cret" not in str(caught.value)


def test_a_copy_is_independent(conf: Settings) -> None:
    conf.task_publish_retry_policy = {"max_retries": 1}
    twin = conf.copy(task_serializer="yaml")
    twin.task_publish_retry_policy["max_retries"] = 9
    assert conf.task_serializer == "json"
    assert conf.task_publish_retry_policy == {"max_retries": 1}
    assert twin.task_serializer == "yaml"


def test_defaults_that_are_dicts_are_not_shared() -> None:
    one, other = Settings({}), Settings({})
    one.broker_transport_options["x"] = 1
    assert other.broker_transport_options == {}


def test_a_change_is_told_to_whoever_watches(conf: Settings) -> None:
    seen: list[str] = []
    conf.on_change = lambda: seen.append(conf.task_serializer)
    conf.update(task_serializer="yaml", timezone="UTC")
    assert seen == ["yaml"]
    with pytest.raises(ConfigError):
        conf.update(task_serializer=1)
    assert seen == ["yaml"]


def test_several_brokers_are_not_taken_for_fail_over_in_silence(conf: Settings) -> None:
    conf.broker_url = "redis://a;redis://b"
    assert "only the first is used" in conf.warnings[0]
