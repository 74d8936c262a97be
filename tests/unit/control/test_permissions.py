"""Which profile allows which command, and with which arguments."""

from __future__ import annotations

import time
from typing import Any

import pytest

from greenq.config import Settings
from greenq.control import Registry, default_registry
from greenq.control.allowance import BURST, MOST_A_TURN, POLITE_SHARE, QUIET, Allowance
from greenq.control.permissions import PROFILES, Permissions, is_off
from greenq.control.registry import ACCESS, make_command
from greenq.exceptions import CommandRefused, ConfigError
from tests.support.panel import FakePanel

REGISTRY = default_registry()
READ = {
    *("active", "active_queues", "clock", "conf", "hello", "memdump", "memsample", "ping", "query_task"),
    *("registered", "report", "reserved", "revoked", "scheduled", "stats"),
}
LIMITS = {
    *("add_consumer", "disable_events", "enable_events", "heartbeat", "pool_grow", "pool_shrink", "rate_limit"),
    *("revoke", "revoke_by_stamped_headers", "time_limit"),
}
SAMPLES: dict[str, dict[str, Any]] = {
    "add_consumer": {"queue": "celery"},
    "hello": {"from_node": "x@y"},
    "rate_limit": {"task_name": "proj.add", "rate_limit": "10/m"},
    "revoke": {"task_id": "id-1"},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}},
    "time_limit": {"task_name": "proj.add", "soft": 5, "hard": 10},
    "query_task": {"ids": "id-1"},
}


def permissions(**values: Any) -> Permissions:
    settings = Settings({})
    settings.update(values)
    return Permissions.of(settings, REGISTRY)


def refusal(profile: str, name: str, **arguments: Any) -> str:
    """What is said against a command; "" if it is allowed."""
    try:
        permissions(worker_control_profile=profile).check(REGISTRY.get(name), FakePanel(), arguments)
    except CommandRefused as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [("read", READ), ("standard", READ | LIMITS), ("full", {command.name for command in REGISTRY})],
)
def test_a_profile_allows_these_commands_and_no_others(profile: str, allowed: set[str]) -> None:
    names = [command.name for command in REGISTRY]
    assert {name for name in names if not refusal(profile, name, **SAMPLES.get(name, {}))} == allowed


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("revoke", {"task_id": "a", "terminate": True}, "with terminate"),
        ("revoke_by_stamped_headers", {"headers": {"a": "b"}, "terminate": True}, "with terminate"),
        ("rate_limit", {"task_name": "t", "rate_limit": "1/h"}, "less than one a minute"),
        ("time_limit", {"task_name": "t", "hard": 0.001}, "below 1 s"),
        ("time_limit", {"task_name": "t", "soft": 0.5, "hard": 10}, "below 1 s"),
        ("pool_grow", {"n": 11}, "more than 20 slots"),
        ("pool_shrink", {"n": 6}, "less than 5 slots"),
        ("add_consumer", {"queue": "billing"}, "task_queues does not name"),
        ("add_consumer", {"queue": "celery", "exchange": "other"}, "with an address"),
        ("add_consumer", {"queue": "celery", "queue_durable": False}, "with an address"),
    ],
)
def test_beyond_its_bounds_a_command_takes_the_full_profile(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    said = refusal("standard", name, **arguments)
    assert words in said
    assert said.startswith(name)
    assert "'standard'" in said
    assert "worker_control_profile = 'full'" in said
    assert not refusal("full", name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rate_limit", {"task_name": "t", "rate_limit": 0}),
        ("rate_limit", {"task_name": "t", "rate_limit": "1/m"}),
        ("rate_limit", {"task_name": "t", "rate_limit": "nonsense"}),  # the command's own error says more
        ("time_limit", {"task_name": "t"}),
        ("pool_grow", {"n": 10}),
        ("pool_grow", {}),
        ("pool_shrink", {"n": 5}),
        ("add_consumer", {"queue": "celery", "exchange_type": "direct", "exchange": None}),
    ],
)
def test_within_its_bounds_the_standard_profile_allows_a_command(name: str, arguments: dict[str, Any]) -> None:
    assert refusal("standard", name, **arguments) == ""


def test_a_node_that_only_reads_takes_no_revokes_from_a_neighbour() -> None:
    assert refusal("read", "hello", from_node="x@y", revoked=[]) == ""
    assert "'standard'" in refusal("read", "hello", from_node="x@y", revoked=["id-1"])
    assert refusal("standard", "hello", from_node="x@y", revoked=["id-1"]) == ""


def test_a_list_replaces_the_profile_and_knows_aliases() -> None:
    listed = permissions(worker_control_allow=["dump_active", "shutdown"])
    panel = FakePanel()
    for name in ("active", "shutdown"):
        listed.check(REGISTRY.get(name), panel, {})
    with pytest.raises(CommandRefused, match="ping is not in worker_control_allow"):
        listed.check(REGISTRY.get("ping"), panel, {})
    with pytest.raises(CommandRefused):
        permissions(worker_control_allow=[]).check(REGISTRY.get("ping"), panel, {})


def test_a_list_with_a_name_that_is_none_and_two_answers_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="'pong'"):
        permissions(worker_control_allow=["pong"])
    with pytest.raises(ConfigError, match="write one of them"):
        permissions(worker_control_allow=["ping"], worker_control_profile="full")


@pytest.mark.parametrize(
    ("values", "off"),
    [
        ({}, False),
        ({"worker_enable_remote_control": False}, True),
        ({"worker_control_profile": "off"}, True),
        ({"worker_control_profile": "off", "worker_control_allow": ["ping"]}, True),
        ({"worker_control_profile": "read"}, False),
    ],
)
def test_a_node_listens_unless_it_is_told_not_to(values: dict[str, Any], off: bool) -> None:
    settings = Settings({})
    settings.update(values)
    assert is_off(settings) is off


def test_what_a_user_adds_reads_or_may_do_anything() -> None:
    def mine(panel: object) -> None:
        """Do."""

    registry = Registry()
    reads, acts = (registry.add(make_command(mine, kind, name=kind)) for kind in ("inspect", "control"))
    assert (reads.access, acts.access) == ("read", "full")
    assert list(PROFILES.values()) == list(ACCESS)


def test_what_is_spent_comes_back_with_time_while_tasks_run_and_at_once_where_none_do() -> None:
    busy = [True]
    allowance = Allowance(lambda: bool(busy))
    assert not allowance.spent(0.0)
    for _ in range(int(BURST / MOST_A_TURN) + 1):
        allowance.spend(60.0)  # one turn counts for no more than MOST_A_TURN
    assert allowance.spent(0.0)
    began = time.monotonic()
    while allowance.spent(0.0):
        time.sleep(0.005)
        assert time.monotonic() - began < 5
    assert time.monotonic() - began >= MOST_A_TURN / POLITE_SHARE / 4
    allowance.spend(MOST_A_TURN)
    allowance.spend(MOST_A_TURN)
    assert allowance.spent(0.0)
    busy.clear()
    for _ in range(100):
        allowance.spend(MOST_A_TURN)
    assert allowance.spent(0.0)
    time.sleep(QUIET + 0.01)
    assert not allowance.spent(0.0)
