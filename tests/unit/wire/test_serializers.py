"""What is let in, and that values survive as kombu's own coding has them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.serialization import registry
from kombu.utils import json as kombu_json

from greenq.exceptions import ConfigError, ContentRefused, EncodeError, MalformedMessage
from greenq.wire.serializers import JSON, PICKLE, Accept, dumps, loads, mime_type

ONLY_JSON = Accept.of(["json"])


@pytest.mark.parametrize("name", ["pickle", PICKLE])
def test_pickle_is_recognised_by_every_name(name: str) -> None:
    accept = Accept.of(["json", name])
    assert accept.unsafe
    assert accept.content_types == {JSON, PICKLE}
    assert not ONLY_JSON.unsafe


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["jsn"], "Did you mean 'json'"),
        (["JSON"], "there is no serializer 'JSON'"),
        (["application/jsonn"], "Did you mean 'application/json'"),
        (["application/data"], "there is no serializer"),
        (["application/x-msgpack"], "msgpack"),
        ("json", "not a text"),
        ([], "empty"),
        ([5], "int"),
    ],
)
def test_what_cannot_be_let_in_is_an_error_at_start_with_the_cure(names: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Accept.of(names)


INVENTED = [
    "application/data", "application/text", "text/plain", "text/html", "", "json", "pickle",
    "APPLICATION/JSON",
    "application/json; charset=utf-8", " application/json", "application/json\n", "application/json\0",
    *(f"application/x-{n}" for n in range(40)),
]  # fmt: skip


def test_a_refused_type_enters_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def tripwire(_data: Any) -> Any:
        pytest.fail("a decoder was entered")

    for content_type in list(registry._decoders):
        monkeypatch.setitem(registry._decoders, content_type, tripwire)
    for content_type in [*registry._decoders, *INVENTED]:
        if content_type != JSON:
            with pytest.raises(ContentRefused) as caught:
                loads(b"[]", content_type, ONLY_JSON)
            assert caught.value.reason == "content_type"


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
        st.datetimes(timezones=st.just(timezone.utc)), st.dates(), st.times(), st.uuids(),
        st.decimals(allow_nan=False, allow_infinity=False), st.binary(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(plain)
def test_json_is_written_and_read_exactly_as_kombu_does(value: Any) -> None:
    data, content_type, encoding = dumps(value)
    assert (content_type, encoding) == (JSON, "utf-8")
    assert data.decode() == kombu_json.dumps(value)
    assert repr(loads(data, JSON, ONLY_JSON)) == repr(kombu_json.loads(data.decode()))


AWKWARD = [
    "NaN", "-Infinity", "1e400", "-0", "-0.0", "0.1", "123456789012345678901234567890",
    '"\\ud800"', '"\\u0000"',
    "[1,1.0,true]", '{"a":1,"a":2}', " [ ] ", '"\\u00e9"', "1E2", '{"":{}}', '{"\\u005f_type__": "bytes"}',
    '{"__type__": "bytes", "__value__": "x"}', '{"__type__": "bytes", "__value__": "x", "more": 1}',
    '{"\\u005f_type__": "decimal", "__value__": "1.5"}', "[" * 127 + "]" * 127,
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_an_awkward_text_gives_the_value_that_kombu_gives(text: str) -> None:
    expected = kombu_json.loads(text)
    got = loads(text.encode(), JSON, ONLY_JSON)
    if "005f_type" in text and "value" in text:
        # Nobody escapes an underscore but to hide it; then the tag is data.
        assert got == {"__type__": "decimal", "__value__": "1.5"}
    else:
        assert repr(got) == repr(expected)
    assert repr(loads(text, JSON, ONLY_JSON)) == repr(got)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", "é".encode("latin-1"), b"[1,]", b"'a'", b"[" * 200_000,
        b"[" * 129 + b"]" * 129,
        b"9" * 5000, b'{"__type__": "nothing", "__value__": 1}', b'{"__type__": ["x"], "__value__": 1}',
        b'{"__type__": "uuid", "__value__": {"hex": "x"}}', b'{"__type__": "decimal", "__value__": {}}',
        b'{"__type__": "datetime", "__value__": "yesterday"}', b'{"__type__": "base64", "__value__": "a"}',
        b"\xef\xbb\xbf[]", "[]".encode("utf-16"),
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_whatever_is_wrong_with_json_is_one_reason(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        loads(data, JSON, ONLY_JSON)
    assert caught.value.reason == "body_decode"


def test_a_type_that_a_library_registered_can_be_let_in_and_is_decoded_by_it() -> None:
    registry.register(
        "shout", lambda v: str(v).upper(), lambda d: bytes(d).decode().lower(), "application/x-shout"
    )
    try:
        accept = Accept.of(["shout"])
        data, content_type, _ = dumps("Loud", "shout")
        assert (data, content_type) == (b"LOUD", "application/x-shout")
        assert loads(data, content_type, accept) == "loud"
        with pytest.raises(ContentRefused):
            loads(b"[]", JSON, accept)
    finally:
        registry.unregister("shout")


def test_a_type_with_an_encoder_only_is_not_decoded_by_a_codec_the_sender_names() -> None:
    registry.register("mute", str, None, "application/x-mute", "utf-8")
    try:
        assert loads(b"\x01\x02", "application/x-mute", Accept.of(["mute"])) == b"\x01\x02"
    finally:
        registry.unregister("mute")


class Tripwire:
    fired = False

    def __reduce__(self) -> Any:
        return (_fire, ())


def _fire() -> str:
    Tripwire.fired = True
    return "fired"


def test_a_planted_pickle_is_not_opened_unless_let_in() -> None:
    bomb, content_type, _ = dumps(Tripwire(), "pickle")
    with pytest.raises(ContentRefused):
        loads(bomb, content_type, ONLY_JSON)
    with pytest.raises(MalformedMessage):
        loads(bomb, JSON, ONLY_JSON)
    assert not Tripwire.fired
    assert loads(bomb, content_type, Accept.of(["pickle"])) == "fired"


class Jsonable:
    def __json__(self) -> Any:
        return {"me": 1}


def test_values_with_a_hook_keep_their_hook() -> None:
    assert json.loads(dumps([Jsonable()])[0]) == [{"me": 1}]
    tagged = json.loads(dumps([datetime(2026, 1, 1, tzinfo=timezone.utc), UUID(int=1), Decimal(1), b"x"])[0])
    assert [each["__type__"] for each in tagged] == ["datetime", "uuid", "decimal", "bytes"]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_value_that_cannot_be_written_is_named_with_its_serializer(serializer: str) -> None:
    with pytest.raises(EncodeError, match=serializer):
        dumps(lambda: None, serializer)


def test_a_serializers_name_and_mime_type_are_the_same_thing() -> None:
    assert mime_type("json") == mime_type(JSON) == JSON
    assert dumps(5, PICKLE) == dumps(5, "pickle")
    assert dumps(5, JSON) == dumps(5, "json")
