"""What is hidden of settings, URLs and texts before anybody sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenq.config import Settings
from greenq.conversion import mask_text, mask_url, mask_urls_in, masked_value, scrubbed
from greenq.exceptions import ConfigError

CANARY = "hunter2canary"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{CANARY}@h:6379/1", "redis://:**@h:6379/1"),
        (f"redis://u:{CANARY}/a@h:6379/1", "redis://u:**@h:6379/1"),
        (f"redis://u:a?{CANARY}#b@h/1", "redis://u:**@h/1"),
        (f"redis://u:a@{CANARY}@h/1", "redis://u:**@h/1"),
        (f"redis://u:a {CANARY}@h/1", "redis://u:**@h/1"),
        (f"redis://u:a'{CANARY}\"@h/1", "redis://u:**@h/1"),
        (f"amqp://a:{CANARY}@h1//;amqp://b:{CANARY}@h2//", "amqp://a:**@h1//;amqp://b:**@h2//"),
        (f"amqp://a:{CANARY};x@h1//,amqp://b:{CANARY}@h2//", "amqp://a:**@h1//,amqp://b:**@h2//"),
        (f"db+postgresql://u:{CANARY}@h/d", "db+postgresql://u:**@h/d"),
        (f"redis://h/0?password={CANARY}&db=1", "redis://h/0?password=**&db=1"),
        (f"redis://h/0?db=1&AUTH_TOKEN={CANARY}", "redis://h/0?db=1&AUTH_TOKEN=**"),
        (f"https://{CANARY}@sentry.example/1", "https://**@sentry.example/1"),
        (f"redis://h/0?proxy=http://u:{CANARY}@p", "redis://h/0?proxy=http://u:**@p"),
        (f"user:{CANARY}@host", "user:**@host"),
        ("redis://h:6379/1", "redis://h:6379/1"),
        ("amqp://guest@h//", "amqp://guest@h//"),
        ("sqlite:////tmp/b.db", "sqlite:////tmp/b.db"),
        ("sentinel://h1:26379;sentinel://h2:26379", "sentinel://h1:26379;sentinel://h2:26379"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"host=db user=me password={CANARY} port=5", "host=db user=me password=** port=5"),
        (f"Server=db;Uid=me;Pwd={{{CANARY};x}};Port=5", "Server=db;Uid=me;Pwd=**;Port=5"),
        (f"AccountName=me;AccountKey={CANARY}==;Suffix=x", "AccountName=me;AccountKey=**;Suffix=x"),
        (f'{{"user": "me", "password": "{CANARY}"}}', '{"user": "me", "password": **}'),
        (f"<Client(host='h', api_key='{CANARY}')>", "<Client(host='h', api_key=**)>"),
        (f"see redis://u:{CANARY}@h/1 and redis://:{CANARY}@g/2", "see redis://u:**@h/1 and redis://:**@g/2"),
        ("a task called reset_password was sent", "a task called reset_password was sent"),
        ("the key is in the door", "the key is in the door"),
    ],
)
def test_a_text_is_shown_without_what_is_secret_in_it(text: str, shown: str) -> None:
    assert mask_text(text) == shown


class Client:
    def __repr__(self) -> str:
        return f"Client('amqp://u:{CANARY}@h//')"


SHAPES: dict[str, Any] = {
    "nested mapping": {"broker_transport_options": {"sentinel_kwargs": {"password": CANARY, "db": 1}}},
    "a secret below a secret name": {"broker_transport_options": {"credentials": {"user": "me", "x": CANARY}}},
    "a URL in a list": {"broker_transport_options": {"masters": [f"redis://:{CANARY}@h/1", "x"]}},
    "a URL in a tuple in a list": {"broker_transport_options": {"a": [("b", f"redis://:{CANARY}@h/1")]}},
    "a URL in a set": {"broker_transport_options": {"a": {f"redis://:{CANARY}@h/1"}}},
    "a URL as a key": {"broker_transport_options": {f"redis://:{CANARY}@h/1": 1}},
    "a URL under a number": {"broker_transport_options": {1: {"x": f"redis://:{CANARY}@h/1"}}},
    "a DSN": {"broker_transport_options": {"fallback": f"host=h password={CANARY}"}},
    "a query parameter": {"result_backend": f"redis://h/0?password={CANARY}"},
    "several brokers": {"broker_url": [f"amqp://a:{CANARY}@h1//", f"amqp://a:{CANARY}@h2//"]},
    "bytes": {"broker_transport_options": {"a": f"redis://:{CANARY}@h/1".encode()}},
    "an object": {"broker_transport_options": {"a": Client()}},
    "the arguments of a schedule": {"beat_schedule": {"a": {"args": [f"amqp://u:{CANARY}@h//"]}}},
    "keys": {"worker_control_keys": {"k1": CANARY + "-and-more"}},
    "ssl": {"broker_use_ssl": {"ssl_keyfile_password": CANARY, "keyfile": "k.pem"}},
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_no_shape_of_a_setting_shows_a_secret(values: dict[str, Any]) -> None:
    settings = Settings({})
    settings.update(values)
    assert CANARY in repr(settings.as_dict()) + repr(settings.broker_transport_options.get("a"))
    assert CANARY not in repr(settings.masked())
    assert CANARY not in json.dumps(settings.masked(), default=repr)
    assert CANARY not in repr(settings)


def test_what_is_no_secret_stays_as_it_is() -> None:
    routes = {"proj.api.add": {"queue": "a", "priority": 3}}
    assert masked_value("task_routes", routes) == routes
    assert masked_value("imports", ("a", "b")) == ("a", "b")
    assert masked_value("x", [1, 2.5, None, True]) == [1, 2.5, None, True]
    thing = object()
    assert masked_value("x", thing) is thing


@pytest.mark.parametrize(
    "values",
    [
        {"worker_control_keys": {"k1": "short7"}},
        {"worker_control_keys": "k1:short7"},
        {"broker_connection_timeout": "redis://:short7@h"},
        {"broker_transport_options": "password=short7"},
    ],
)
def test_an_error_about_a_setting_does_not_show_it(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings({}).update(values)
    assert "short7" not in str(caught.value)


def test_keys_come_from_the_environment_too() -> None:
    secret = "0123456789abcdef"
    settings = Settings({"GREENQ_CONTROL_KEYS": f"new:{secret}:x, old:{secret}"})
    assert list(settings.worker_control_keys.items()) == [("new", f"{secret}:x"), ("old", secret)]
    with pytest.raises(ConfigError, match="GREENQ_CONTROL_KEYS.*fewer than 16") as caught:
        _ = Settings({"GREENQ_CONTROL_KEYS": "new:short7"}).worker_control_keys
    assert "short7" not in str(caught.value)


def test_what_a_library_says_of_a_url_loses_the_pieces_of_its_password() -> None:
    url = "redis://u:abc/def%20x@h:1/0"
    said = scrubbed("Port could not be cast to integer value as 'abc' (def%20x, def x)", url)
    assert not {"abc", "def"} & set(said.replace("'", " ").replace("(", " ").replace(",", " ").split())


def test_a_long_text_is_looked_through_in_no_time() -> None:
    for text in ("a" * 200_000 + "://", "a://b:" * 30_000, "redis://" + ":" * 200_000, "pass" * 50_000):
        assert mask_urls_in(text) is not None
        assert mask_text(text) is not None
