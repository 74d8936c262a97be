"""What a signature of a command covers, and what is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import hmac
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from greenq.wire.control import BadFrame, command_body, with_reply
from greenq.wire.signing import WINDOW, Claim, Nonces, canonical, signed, verify

NOW = 1_795_000_000.25
KEYS = {"new": "a secret of many characters", "old": "another secret of many more"}
CLAIM = Claim("new", NOW, NOW + 30, "0123456789abcdef")


def command(**changes: Any) -> dict[str, Any]:
    body = command_body("revoke", {"task_id": ["id-1", "id-2"], "terminate": False}, destination=["w@h"])
    return {**with_reply(body, "ticket-1", "key-1", "celery"), **changes}


def send(body: dict[str, Any] | None = None, claim: Claim = CLAIM, secret: str | None = None) -> dict[str, Any]:
    """A signed command as it comes out of the wire."""
    made = signed(command() if body is None else body, claim, "celery", secret or KEYS[claim.key])
    found: dict[str, Any] = loads(dumps(made))
    return found


def refused(body: dict[str, Any], *, now: float = NOW, keys: dict[str, str] = KEYS, namespace: str = "celery") -> str:
    with pytest.raises(BadFrame) as caught:
        verify(body, namespace, keys, now)
    return caught.value.kind


def test_the_bytes_that_are_signed_and_their_mac_are_known() -> None:
    text = (
        b'["greenq-control-1","celery","new",1795000000.25,1795000030.25,"0123456789abcdef",'
        b'{"arguments":{"task_id":["id-1","id-2"],"terminate":false},"destination":["w@h"],"matcher":null,'
        b'"method":"revoke","pattern":null,'
        b'"reply_to":{"exchange":"reply.celery.pidbox","routing_key":"key-1"},"ticket":"ticket-1"}]'
    )
    assert canonical(command(), CLAIM, "celery") == text
    mac = send()["signature"]["mac"]
    assert mac == hmac.new(b"a secret of many characters", text, hashlib.sha256).hexdigest()
    assert mac == "ae4b8f2f02df07d36e2d444eec9eca4db2ec67c59e5cf878df6c61c4d1eb0a50"


def test_a_signed_command_is_let_in_as_what_it_says() -> None:
    body = send()
    assert verify(body, "celery", KEYS, NOW + 1) == CLAIM
    assert {name: value for name, value in body.items() if name != "signature"} == command()


@pytest.mark.parametrize(
    "change",
    [
        {"method": "terminate"},
        {"arguments": {"task_id": ["id-1"], "terminate": False}},
        {"arguments": {"task_id": ["id-1", "id-2"], "terminate": True}},
        {"arguments": {"task_id": ["id-1", "id-2"], "terminate": 0}},
        {"arguments": {"task_id": ["id-1", "id-2"], "terminate": False, "signal": "KILL"}},
        {"arguments": None},
        {"destination": ["x@h"]},
        {"destination": ["w@h", "x@h"]},
        {"destination": None},
        {"destination": None, "pattern": "*", "matcher": "glob"},
        {"ticket": "ticket-2"},
        {"reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "key-2"}},
        {"more": 1},
    ],
)
def test_an_altered_command_is_refused(change: dict[str, Any]) -> None:
    assert refused({**send(), **change}) == "signature_wrong"


@pytest.mark.parametrize(
    "change",
    [{"key": "old"}, {"issued": NOW + 1}, {"expires": NOW + 31}, {"nonce": "other"}, {"mac": "0" * 64}, {"mac": "é"}],
)
def test_an_altered_signature_is_refused(change: dict[str, Any]) -> None:
    body = send()
    assert refused({**body, "signature": {**body["signature"], **change}}) == "signature_wrong"


def test_a_command_of_another_namespace_is_refused() -> None:
    assert refused(send(), namespace="other") == "signature_wrong"


@pytest.mark.parametrize(
    ("signature", "kind"),
    [
        (None, "unsigned"),
        (5, "signature_shape"),
        ("x", "signature_shape"),
        ({}, "signature_shape"),
        ({"key": 5}, "signature_shape"),
        ({"key": ["new"]}, "signature_shape"),
        ({"nonce": ""}, "signature_shape"),
        ({"nonce": "x" * 65}, "signature_shape"),
        ({"mac": None}, "signature_shape"),
        ({"issued": "now"}, "signature_shape"),
        ({"issued": True}, "signature_shape"),
        ({"issued": float("nan")}, "signature_shape"),
        ({"expires": 1e300}, "signature_shape"),
        ({"expires": None}, "signature_shape"),
        ({"key": "nobody's"}, "signature_key"),
    ],
)
def test_a_signature_that_is_none_says_what_is_wrong(signature: Any, kind: str) -> None:
    body = send()
    given = {**body["signature"], **signature} if isinstance(signature, dict) and signature else signature
    assert refused({**body, "signature": given}) == kind


def test_an_unsigned_command_is_refused() -> None:
    assert refused(command()) == "unsigned"


@pytest.mark.parametrize(
    ("claim", "later"),
    [
        (CLAIM, 31.0),  # expired
        (Claim("new", NOW, NOW + 1000, "n"), WINDOW + 1),  # too old, whatever it says of itself
        (Claim("new", NOW + WINDOW + 1, NOW + WINDOW + 2, "n"), 0.0),  # of the future
        (Claim("new", NOW, NOW - 1, "n"), 0.0),
    ],
)
def test_a_command_is_good_for_a_while_only(claim: Claim, later: float) -> None:
    assert refused(send(claim=claim), now=NOW + later) == "signature_time"


@pytest.mark.parametrize("skew", [-WINDOW + 1, WINDOW - 1])
def test_clocks_may_differ_by_the_window(skew: float) -> None:
    claim = Claim("new", NOW, NOW + 2 * WINDOW, "n")
    assert verify(send(claim=claim), "celery", KEYS, NOW + skew) == claim


def test_keys_are_changed_without_a_gap() -> None:
    old = {"old": KEYS["old"]}
    by_old, by_new = send(claim=Claim("old", NOW, NOW + 30, "a")), send()
    assert verify(by_old, "celery", old, NOW).key == "old"
    assert refused(by_new, keys=old) == "signature_key"
    for body in (by_old, by_new):  # while both are known
        assert verify(body, "celery", KEYS, NOW).key == body["signature"]["key"]
    assert refused(by_old, keys={"new": KEYS["new"]}) == "signature_key"
    assert refused(send(secret=KEYS["old"])) == "signature_wrong"


def test_a_command_is_obeyed_once() -> None:
    nonces = Nonces(since=NOW - 10)
    nonces.take(CLAIM, NOW)
    for later in (0.0, 29.0, 59.0):
        with pytest.raises(BadFrame, match="replayed"):
            nonces.take(CLAIM, NOW + later)


def test_what_was_issued_before_anybody_remembered_is_refused() -> None:
    with pytest.raises(BadFrame, match="replayed"):
        Nonces(since=NOW + 1).take(CLAIM, NOW + 1)


def test_ten_thousand_commands_are_remembered_and_what_is_forgotten_cannot_come_again() -> None:
    nonces = Nonces(since=NOW - 100)
    claims = [Claim("new", NOW + number / 1000, NOW + 100, f"n{number}") for number in range(20_000)]
    for claim in claims:
        nonces.take(claim, NOW + 20)
    assert len(nonces) == 10_000
    for claim in claims[::97]:
        with pytest.raises(BadFrame, match="replayed"):
            nonces.take(claim, NOW + 20)
    nonces.take(Claim("new", NOW + 20.001, NOW + 100, "a new one"), NOW + 20)
    nonces.take(Claim("new", NOW + 200, NOW + 300, "much later"), NOW + 200)
    assert len(nonces) == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.datetimes()
    | st.uuids()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=5) | st.integers(0, 20), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_what_json_carries_is_the_same_to_both_sides(arguments: dict[str, Any]) -> None:
    body = send(command(arguments=arguments))
    assert verify(body, "celery", KEYS, NOW) == CLAIM


def test_arguments_of_more_than_plain_types_are_signed_as_they_travel() -> None:
    arguments = {
        "when": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        "sum": decimal.Decimal("1.20"),
        "id": uuid.UUID(int=5),
        "pair": (1, {9: "a", 10: "b"}),
    }
    assert verify(send(command(arguments=arguments)), "celery", KEYS, NOW) == CLAIM


def test_what_json_cannot_carry_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="cannot be signed"):
        signed(command(arguments={"x": object()}), CLAIM, "celery", "secret")


def test_arguments_nested_without_end_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert refused({**send(), "arguments": {"x": deep}}) == "signature_shape"


def test_the_signature_is_text_and_numbers_only() -> None:
    assert json.loads(json.dumps(send()["signature"])) == send()["signature"]
