"""Node names and path templates, by the examples of wire.md 1.3."""

from __future__ import annotations

import socket

import pytest

from greenq.exceptions import ConfigError
from greenq.naming import expand, node_name

HOST = "george.example.com"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "greenq@george.example.com"),
        ("", "greenq@george.example.com"),
        ("foo", "greenq@foo"),
        ("w1.%h", "greenq@w1.george.example.com"),
        ("@h", "greenq@h"),
        ("w1@", "w1@george.example.com"),
        ("a@b@c", "a@b@c"),
        ("w1@%h", "w1@george.example.com"),
        ("w1@%n", "w1@george"),
        ("w1@%d", "w1@example.com"),
        ("w%%1@%h", "w%1@george.example.com"),
        ("w%i%I@%n", "w0@george"),
    ],
)
def test_a_node_name_is_resolved_against_the_host(value: str | None, name: str) -> None:
    assert node_name(value, HOST) == name


def test_the_default_host_is_this_one() -> None:
    assert node_name() == f"greenq@{socket.gethostname()}"


@pytest.mark.parametrize(
    ("template", "index", "path"),
    [
        ("%p.log", 0, "george@foo.example.com.log"),
        ("%h.log", 0, "foo.example.com.log"),
        ("%n.log", 0, "george.log"),
        ("%d", 0, "example.com"),
        ("%n-%i.log", 0, "george-0.log"),
        ("%n-%i.log", 2, "george-2.log"),
        ("%n%I.log", 0, "george.log"),
        ("%n%I.log", 2, "george-2.log"),
        ("100%%", 0, "100%"),
    ],
)
def test_a_path_template_is_filled_in_for_a_node(template: str, index: int, path: str) -> None:
    assert expand(template, "george@foo.example.com", index) == path


@pytest.mark.parametrize("template", ["%x.log", "log%", "%p%q"])
def test_an_unknown_variable_names_the_known_ones(template: str) -> None:
    with pytest.raises(ConfigError, match="use %p %h %n %d %i %I or %%"):
        expand(template, "a@b")
    with pytest.raises(ConfigError, match="node name"):
        node_name("%p@x", HOST)
