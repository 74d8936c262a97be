"""Every command against a panel whose contents the test sets: reply shapes and literal texts (wire.md 3)."""

from __future__ import annotations

import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.serialization import dumps

from greenq.config import Settings
from greenq.control import Accepted, Scheduled, default_registry
from greenq.control.commands.steering import signal_number
from greenq.exceptions import BadArgument, PoolCannot
from tests.support.panel import FakePanel, make_request

REGISTRY = default_registry()
QUEUE_KEYS = {"id", "name", "args", "kwargs", "type", "hostname", "time_start", "acknowledged"}


@pytest.fixture
def panel() -> FakePanel:
    panel = FakePanel(settings=Settings({}))
    running = make_request("id-1", args=[2, 2])
    running.started = 1795329793.5
    panel.requests["active"].append(running)
    panel.requests["reserved"].append(make_request("id-2", shadow="shady"))
    panel.held.append(Scheduled(1795331216.5, make_request("id-3")))
    panel.app.tasks = {
        "celery.ping": SimpleNamespace(),
        "proj.add": SimpleNamespace(rate_limit=None, exchange=None, routing_key=None, max_retries=3),
        "proj.limited": SimpleNamespace(rate_limit="10/m", exchange=None, routing_key=None, app=object()),
    }
    return panel


def ask(panel: FakePanel, name: str, **arguments: Any) -> Any:
    return REGISTRY.get(name).ask(panel, arguments)


@pytest.mark.parametrize("command", REGISTRY, ids=lambda command: command.name)
def test_every_reply_can_be_sent_as_json(command: Any, panel: FakePanel) -> None:
    samples: dict[str, Any] = {"from_node": "x@y", "ids": ["id-1"], "task_id": "id-1", "signal": "TERM"}
    samples |= {"task_name": "proj.add", "rate_limit": "1/s", "id": "e1", "topic": "task"}
    samples |= {"queue": "q", "headers": {"a": "b"}}
    needed = {p.name: samples[p.name] for p in command.parameters if p.required}
    reply = command.ask(panel, needed)
    assert json.loads(dumps(reply, "json")[2]) == json.loads(json.dumps(reply))


@pytest.mark.parametrize("command", [c for c in REGISTRY if not c.extras], ids=lambda command: command.name)
def test_every_command_refuses_an_argument_it_does_not_have(command: Any, panel: FakePanel) -> None:
    with pytest.raises(BadArgument, match=f"{command.name} has no argument 'bad'"):
        command.ask(panel, {"bad": 1})


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(command.name, p.name) for command in REGISTRY for p in command.parameters if p.required],
)
def test_every_command_names_the_argument_it_misses(name: str, parameter: str, panel: FakePanel) -> None:
    needed = {p.name: "x" for p in REGISTRY.get(name).parameters if p.required and p.name != parameter}
    with pytest.raises(BadArgument, match=f"{name} needs the argument '{parameter}'"):
        ask(panel, name, **needed)


@pytest.mark.parametrize(
    ("name", "parameter"), [(command.name, p.name) for command in REGISTRY for p in command.parameters]
)
def test_every_command_names_the_argument_of_a_wrong_kind(name: str, parameter: str, panel: FakePanel) -> None:
    needed: dict[str, Any] = {p.name: "x" for p in REGISTRY.get(name).parameters if p.required}
    needed[parameter] = 5.5 if parameter not in {"rate_limit", "soft", "hard"} else [1]
    with pytest.raises(BadArgument, match=f"{name}: argument '{parameter}' must be"):
        ask(panel, name, **needed)


def test_ping_answers_pong_whatever_comes_with_it(panel: FakePanel) -> None:
    assert ask(panel, "ping") == {"ok": "pong"}
    assert ask(panel, "ping", bad=1) == {"ok": "pong"}


def test_clock_is_a_number_and_in_stats_a_text(panel: FakePanel) -> None:
    panel.clock.value = 53
    assert ask(panel, "clock") == {"clock": 53}
    assert ask(panel, "stats")["clock"] == "53"


def test_stats_has_what_clients_read(panel: FakePanel) -> None:
    stats = ask(panel, "stats")
    assert stats["total"] == {"proj.add": 3}
    assert stats["pid"] == os.getpid()
    assert stats["uptime"] == 49
    assert stats["prefetch_count"] == 40
    assert isinstance(stats["broker"], dict)
    assert isinstance(stats["pool"], dict)
    assert isinstance(stats["rusage"]["utime"], float)


def test_active_shows_the_running_tasks(panel: FakePanel) -> None:
    assert ask(panel, "active") == [
        {
            "id": "id-1",
            "name": "proj.add",
            "args": [2, 2],
            "kwargs": {},
            "type": "proj.add",
            "hostname": "w@h",
            "time_start": 1795329793.5,
            "acknowledged": True,
            "delivery_info": {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False},
            "worker_pid": 4711,
        }
    ]


def test_active_safe_gives_arguments_as_text(panel: FakePanel) -> None:
    (info,) = ask(panel, "active", safe=True)
    assert (info["args"], info["kwargs"]) == ("[2, 2]", "{}")


def test_reserved_shows_what_has_not_started_under_its_shadow_name(panel: FakePanel) -> None:
    (info,) = ask(panel, "reserved")
    assert (info["id"], info["name"], info["type"]) == ("id-2", "shady", "proj.add")
    assert (info["time_start"], info["acknowledged"], info["worker_pid"]) == (None, False, None)


def test_scheduled_shows_the_eta_with_its_offset(panel: FakePanel) -> None:
    (entry,) = ask(panel, "scheduled")
    assert (entry["eta"], entry["priority"]) == ("2026-11-22T07:06:56.500000+00:00", 6)
    assert entry["request"]["id"] == "id-3"


def test_arguments_that_cannot_be_decoded_are_shown_as_their_sender_wrote_them(panel: FakePanel) -> None:
    request = make_request("id-9", argsrepr="('x',)", kwargsrepr="{}")
    request.body = b"{broken"
    panel.requests["reserved"] = [request]
    (info,) = ask(panel, "reserved")
    assert (info["args"], info["kwargs"]) == ("('x',)", "{}")


def test_query_task_takes_one_id_or_several_and_leaves_out_the_unknown(panel: FakePanel) -> None:
    found = ask(panel, "query_task", ids=["id-1", "id-3", "nope"])
    assert {task_id: state for task_id, (state, _) in found.items()} == {"id-1": "active", "id-3": "scheduled"}
    assert list(ask(panel, "query_task", ids="id-2")) == ["id-2"]


def test_registered_lists_names_with_attributes_and_hides_built_ins(panel: FakePanel) -> None:
    assert ask(panel, "registered") == ["proj.add", "proj.limited [rate_limit=10/m]"]
    assert ask(panel, "registered", builtins=True)[0] == "celery.ping"
    assert ask(panel, "registered", taskinfoitems=["max_retries"])[0] == "proj.add [max_retries=3]"


def test_registered_shows_neither_private_attributes_nor_objects(panel: FakePanel) -> None:
    assert ask(panel, "registered", taskinfoitems=["__class__", "__dict__", "app"]) == ["proj.add", "proj.limited"]


def test_conf_hides_secrets_and_shows_what_was_set(panel: FakePanel) -> None:
    panel.app.conf = Settings({})
    panel.app.conf.update(broker_url="redis://:hunter2@h:6379/1", task_default_queue="q")
    shown = ask(panel, "conf")
    assert shown["task_default_queue"] == "q"
    assert "hunter2" not in json.dumps(shown)
    assert "worker_concurrency" not in shown
    everything = ask(panel, "conf", with_defaults=True)
    assert "worker_concurrency" in everything
    assert "hunter2" not in json.dumps(everything)
    assert "hunter2" not in ask(panel, "report")["ok"]


def test_report_begins_as_celerys_does(panel: FakePanel) -> None:
    assert ask(panel, "report")["ok"].startswith("\nsoftware -> greenq:")


def test_memsample_is_a_text_in_megabytes(panel: FakePanel) -> None:
    text = ask(panel, "memsample")
    assert text.endswith("MB")
    assert 1 < float(text.removesuffix("MB")) < 100_000


def test_hello_exchanges_revoked_ids_in_both_formats(panel: FakePanel) -> None:
    assert ask(panel, "hello", from_node="other@x", revoked=["aaa"]) == {"revoked": ["aaa"], "clock": 1}
    assert ask(panel, "hello", from_node="old@x", revoked={"bbb": [1.0, "bbb"]})["revoked"] == ["aaa", "bbb"]
    assert ask(panel, "hello", from_node="third@x")["revoked"] == ["aaa", "bbb"]


def test_hello_from_itself_is_nothing(panel: FakePanel) -> None:
    assert ask(panel, "hello", from_node="w@h", revoked=["aaa"]) is None
    assert panel.revokes.ids() == []


def test_revoke_flags_one_id_or_several(panel: FakePanel) -> None:
    assert ask(panel, "revoke", task_id="7aa5") == {"ok": "tasks {'7aa5'} flagged as revoked"}
    reply = ask(panel, "revoke", task_id=["i1", "i2"], terminate=False, signal="SIGTERM")
    assert reply["ok"] in {"tasks {'i1', 'i2'} flagged as revoked", "tasks {'i2', 'i1'} flagged as revoked"}
    assert panel.revokes.ids() == ["7aa5", "i1", "i2"]


def test_an_id_too_long_to_be_remembered_is_refused(panel: FakePanel) -> None:
    with pytest.raises(BadArgument, match="at most 512 characters"):
        ask(panel, "revoke", task_id=["fine", "x" * 513])
    assert panel.revokes.ids() == []


def test_stamps_are_revoked_with_celerys_three_replies(panel: FakePanel) -> None:
    def revoke(headers: Any, **options: Any) -> Any:
        return ask(panel, "revoke_by_stamped_headers", headers=headers, **options)["ok"]

    flagged = "headers {'tenant': 'a'} flagged as revoked, but not terminated"
    assert revoke({"tenant": "a"}) == revoke(["tenant=a"]) == revoke("tenant=a") == flagged
    assert revoke({"tenant": ["b", 5]}, terminate=True) == "headers {'tenant': ['b', 5]} were not terminated"
    assert panel.asked[-1] == ("terminate_stamped", [("tenant", "b"), ("tenant", "5")], 15)
    panel.requests["active"].append(
        make_request("id-9", stamped_headers=["tenant"], stamps={"tenant": ["c", "d"], "hidden": "e"})
    )
    ended = revoke(["tenant=c", "hidden=e"], terminate=True)
    assert ended == "headers defaultdict(<class 'set'>, {'tenant': {'c'}}) revoked"
    assert panel.revokes.stamps()["tenant"][-1] == "c"
    assert revoke(["a=1", "a=2=3"]) == "headers {'a': ['1', '2=3']} flagged as revoked, but not terminated"


@pytest.mark.parametrize("headers", [["tenant"], ["=a"], {"tenant": None}, {"tenant": []}, {"tenant": "x" * 513}])
def test_stamps_that_say_nothing_are_refused(headers: Any, panel: FakePanel) -> None:
    with pytest.raises(BadArgument, match="revoke_by_stamped_headers: "):
        ask(panel, "revoke_by_stamped_headers", headers=headers)
    assert panel.revokes.stamps() == {}


def test_hello_exchanges_stamps_between_nodes_that_know_them(panel: FakePanel) -> None:
    reply = ask(panel, "hello", from_node="x@y", revoked=[], stamps={"tenant": ["a"]}, later="thing")
    assert reply == {"revoked": [], "stamps": {"tenant": ["a"]}, "clock": 1}


def test_revoke_with_terminate_ends_what_runs(panel: FakePanel) -> None:
    assert ask(panel, "revoke", task_id="id-1", terminate=True) == {"ok": "terminate: id-1"}
    assert ask(panel, "revoke", task_id="id-2", terminate=True) == {"ok": "terminate: tasks unknown"}
    assert panel.asked == [
        ("revoke", ["id-1"]),
        ("terminate", ["id-1"], signal.SIGTERM),
        ("revoke", ["id-2"]),
        ("terminate", ["id-2"], signal.SIGTERM),
    ]


def test_terminate_takes_the_signal_first(panel: FakePanel) -> None:
    assert ask(panel, "terminate", signal="KILL", task_id=["id-1"]) == {"ok": "terminate: id-1"}
    assert panel.asked[-1] == ("terminate", ["id-1"], signal.SIGKILL)


def test_a_signal_nobody_knows_revokes_nothing(panel: FakePanel) -> None:
    with pytest.raises(BadArgument, match="NOSIG"):
        ask(panel, "terminate", signal="SIGNOSIG", task_id="id-1")
    assert panel.asked == []


@pytest.mark.parametrize(("given", "number"), [("KILL", 9), ("SIGKILL", 9), (9, 9), ("TERM", 15), (None, 15)])
def test_signals_have_names_and_numbers(given: Any, number: int) -> None:
    assert signal_number(given) == number


def test_the_default_signal_may_be_remapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    assert signal_number(None) == signal.SIGQUIT
    assert signal_number("TERM") == signal.SIGTERM


def test_rate_limit_sets_and_lifts(panel: FakePanel) -> None:
    set_reply = {"ok": "new rate limit set successfully"}
    assert ask(panel, "rate_limit", task_name="proj.add", rate_limit="10/m") == set_reply
    assert ask(panel, "rate_limit", task_name="proj.add", rate_limit=5) == set_reply
    lifted = {"ok": "rate limit disabled successfully"}
    assert ask(panel, "rate_limit", task_name="proj.add", rate_limit=0) == lifted
    assert ask(panel, "rate_limit", task_name="proj.add", rate_limit=None) == lifted
    assert [limit for _, _, limit in panel.asked] == ["10/m", 5.0, None, None]


@pytest.mark.parametrize("limit", ["x", "10/x", "-1/s", -1, "1/2/3"])
def test_a_rate_limit_that_makes_no_sense_is_an_error_reply(limit: Any, panel: FakePanel) -> None:
    reply = ask(panel, "rate_limit", task_name="proj.add", rate_limit=limit)
    assert reply["error"].startswith("Invalid rate limit string: ValueError(")
    assert panel.asked == []


def test_the_rate_limit_of_an_unknown_task_is_an_error_reply(panel: FakePanel) -> None:
    assert ask(panel, "rate_limit", task_name="nope", rate_limit="1/s") == {"error": "unknown task"}


def test_time_limit_sets_both_and_lifts_what_is_not_given(panel: FakePanel) -> None:
    done = {"ok": "time limits set successfully"}
    assert ask(panel, "time_limit", task_name="proj.add", soft=1, hard=2.5) == done
    assert ask(panel, "time_limit", task_name="proj.add", hard=3) == done
    assert ask(panel, "time_limit", task_name="proj.add", soft=0, hard=0) == done
    assert ask(panel, "time_limit", task_name="proj.add") == done
    assert panel.asked == [
        ("time_limit", "proj.add", 1.0, 2.5),
        ("time_limit", "proj.add", None, 3.0),
        ("time_limit", "proj.add", None, None),
        ("time_limit", "proj.add", None, None),
    ]


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"soft": 3, "hard": 2}, "the soft limit, 3 s, is above the hard one, 2 s"),
        ({"soft": -1}, "soft must not be negative"),
        ({"hard": -0.5}, "hard must not be negative"),
        ({"hard": "abc"}, "argument 'hard' must be float"),
    ],
)
def test_time_limits_that_make_no_sense_are_refused(panel: FakePanel, limits: dict[str, Any], why: str) -> None:
    with pytest.raises(BadArgument, match=why):
        ask(panel, "time_limit", task_name="proj.add", **limits)
    assert panel.asked == []


def test_the_time_limit_of_an_unknown_task_is_an_error_reply(panel: FakePanel) -> None:
    assert ask(panel, "time_limit", task_name="nope", hard=1) == {"error": "unknown task"}


def test_the_words_of_the_prompt_are_the_soft_limit_and_then_the_hard_one() -> None:
    words = REGISTRY.get("time_limit").read_words(["proj.add", "1", "2"])
    assert words == {"task_name": "proj.add", "soft": 1.0, "hard": 2.0}
    assert REGISTRY.get("autoscale").read_words(["8", "2"]) == {"max": 8, "min": 2}


def test_the_pool_grows_and_shrinks_by_one_or_more(panel: FakePanel) -> None:
    assert ask(panel, "pool_grow") == ask(panel, "pool_grow", n=3) == {"ok": "pool will grow"}
    assert ask(panel, "pool_shrink") == ask(panel, "pool_shrink", n=2) == {"ok": "pool will shrink"}
    assert panel.asked == [("resize", 1), ("resize", 3), ("resize", -1), ("resize", -2)]


@pytest.mark.parametrize("name", ["pool_grow", "pool_shrink"])
@pytest.mark.parametrize(
    ("n", "why"), [(0, "at least 1"), (-5, "at least 1"), ("x", "must be int"), (1.5, "must be int")]
)
def test_a_number_of_slots_that_makes_no_sense_is_refused(panel: FakePanel, name: str, n: Any, why: str) -> None:
    with pytest.raises(BadArgument, match=why):
        ask(panel, name, n=n)
    assert panel.asked == []


@pytest.mark.parametrize("name", ["pool_grow", "pool_shrink"])
def test_with_autoscale_the_pool_is_resized_by_its_bounds_only(panel: FakePanel, name: str) -> None:
    panel.slots.scaler = {"max": 8, "min": 2, "current": 5, "qty": 6}
    error = f"{name} is not supported with autoscale. Adjust autoscale range instead."
    assert ask(panel, name) == {"error": error}
    assert ask(panel, "stats")["autoscaler"] == {"max": 8, "min": 2, "current": 5, "qty": 6}


def test_stats_has_no_autoscaler_where_there_is_none(panel: FakePanel) -> None:
    assert "autoscaler" not in ask(panel, "stats")


@pytest.mark.parametrize("name", ["pool_grow", "pool_shrink", "pool_restart"])
def test_what_a_pool_cannot_do_is_an_error_reply(panel: FakePanel, name: str) -> None:
    panel.app.conf.worker_pool_restarts = True
    panel.slots.cannot = PoolCannot("the solo pool has exactly one slot")
    assert ask(panel, name) == {"error": "PoolCannot('the solo pool has exactly one slot')"}


def test_autoscale_sets_the_bounds_it_is_given(panel: FakePanel) -> None:
    assert ask(panel, "autoscale", max=5, min=1) == {"error": "ValueError('Autoscale not enabled')"}
    panel.slots.scaler = {"max": 8, "min": 2, "current": 5, "qty": 6}
    assert ask(panel, "autoscale", max=5, min=1) == {"ok": "autoscale now max=5 min=1"}
    assert ask(panel, "autoscale", min=3) == {"ok": "autoscale now max=8 min=3"}
    assert panel.asked == [("autoscale", 5, 1), ("autoscale", None, 3)]


def test_a_pool_is_restarted_only_where_the_settings_allow_it(panel: FakePanel) -> None:
    assert ask(panel, "pool_restart") == {"error": "ValueError('Pool restarts not enabled')"}
    panel.app.conf.worker_pool_restarts = True
    assert ask(panel, "pool_restart") == {"ok": "reload started"}
    assert ask(panel, "pool_restart", modules=["proj.tasks"], reload=True) == {"ok": "reload started"}
    assert panel.asked == [("restart", None, False), ("restart", ["proj.tasks"], True)]


def test_a_reloader_can_only_be_null_and_is_no_option_of_the_prompt(panel: FakePanel) -> None:
    panel.app.conf.worker_pool_restarts = True
    assert ask(panel, "pool_restart", modules=None, reload=False, reloader=None) == {"ok": "reload started"}
    with pytest.raises(BadArgument, match="argument 'reloader' must be null"):
        ask(panel, "pool_restart", reloader="mine")
    assert [parameter.name for parameter in REGISTRY.get("pool_restart").named()] == ["modules", "reload"]


@pytest.mark.parametrize("module", ["", "a b", "../x", "a..b", ".a", "os;x", "1a"])
def test_a_restart_imports_modules_and_nothing_else(panel: FakePanel, module: str) -> None:
    panel.app.conf.worker_pool_restarts = True
    with pytest.raises(BadArgument, match="is not the name of a module"):
        ask(panel, "pool_restart", modules=[module])
    assert panel.asked == []


def test_shutdown_passes_its_reason_and_never_answers(panel: FakePanel) -> None:
    assert ask(panel, "shutdown") is None
    assert panel.asked == [("shutdown", "Got shutdown from remote")]
    assert not REGISTRY.get("shutdown").replies


def test_a_verb_that_waits_for_a_busy_hub_says_who_is_in_the_way(panel: FakePanel) -> None:
    panel.busy = "proj.loop[id-1]"
    with pytest.raises(Accepted, match=r"accepted: takes effect when proj.loop\[id-1\] yields"):
        ask(panel, "rate_limit", task_name="proj.add", rate_limit="1/s")
