"""Hostile and broken frames: each has one reason, none an exception of another kind (faults.md 2.5)."""

from __future__ import annotations

import base64
import json
import math
import pickle
import zlib
from typing import Any

import pytest

from greenq._speedups import Malformed, decode_envelope, decode_parts
from greenq.exceptions import MessageError
from greenq.model import Request
from greenq.wire.body import MAX_SIGNATURES, decode_body, encode_body
from greenq.wire.messages import complete_v1
from greenq.wire.serializers import Accept
from tests.unit.speedups.frames import ID, envelope

JSON = Accept.of(["json"])
OK = "runs"


def dump(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def without(*path: str) -> bytes:
    tree: Any = envelope()
    node = tree
    for step in path[:-1]:
        node = node[step]
    del node[path[-1]]
    return dump(tree)


def changed(**fields: Any) -> bytes:
    """Fields of the envelope; `content_type` stands for `content-type`."""
    return dump({**envelope(), **{key.replace("_", "-"): value for key, value in fields.items()}})


def header(**headers: Any) -> bytes:
    return dump(envelope(**headers))


def prop(**properties: Any) -> bytes:
    tree = envelope()
    tree["properties"].update(properties)
    return dump(tree)


def body(data: bytes | str | Any, **headers: Any) -> bytes:
    if not isinstance(data, (bytes, str)):
        data = json.dumps(data)
    raw = data.encode() if isinstance(data, str) else data
    return dump(envelope(base64.b64encode(raw).decode(), **headers))


def v1(data: Any) -> bytes:
    tree = json.loads(body(data))
    tree["headers"] = {}
    return dump(tree)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the bomb went off",))


def judge(raw: bytes) -> str:
    try:
        request = decode_envelope(raw, "celery", "t")
        if request.protocol == 1:
            complete_v1(request, JSON)
        decode_body(request, JSON)
    except (Malformed, MessageError) as error:
        assert len(str(error)) < 400
        return error.reason
    return OK


SIGNATURE = {"task": "proj.next", "args": [], "kwargs": {}}
FRAMES: list[tuple[str, str, bytes]] = [
    # F60
    ("F60 empty", "envelope", b""),
    ("F60 not JSON", "envelope", b"hello"),
    ("F60 list", "envelope", b"[1, 2]"),
    ("F60 null", "envelope", b"null"),
    ("F60 number", "envelope", b"17"),
    ("F60 invalid UTF-8", "envelope", dump(envelope()).replace(b"proj.add", b"proj\xff\xfe")),
    ("F60 unknown body encoding", "body_encoding", prop(body_encoding="rot13")),
    ("F60 body encoding a list", "body_encoding", prop(body_encoding=["base64"])),
    ("F60 nested", "envelope", b'{"headers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("F60 nested without end", "envelope", b"[" * 100_000),
    ("F60 headers a list", "envelope", changed(headers=[])),
    ("F60 headers a text", "envelope", changed(headers="task")),
    ("F60 body an object", "envelope", changed(body={})),
    ("F60 body missing", "envelope", without("body")),
    ("F60 cut", "envelope", dump(envelope())[:-20]),
    ("F60 long number", "envelope", dump(envelope()).replace(b'"retries": 0', b'"retries": ' + b"9" * 5000)),
    # F61
    ("F61 bad base64", "body_encoding", changed(body="not base64!")),
    ("F61 wrong padding", "body_encoding", changed(body="abcde")),
    ("F61 not ASCII", "body_encoding", changed(body="é" * 8)),
    ("F61 lone surrogate", "body_encoding", changed(body="\ud800" * 8)),
    # F62
    ("F62 no properties", "envelope", without("properties")),
    ("F62 properties a list", "envelope", changed(properties=[])),
    ("F62 no delivery tag", OK, without("properties", "delivery_tag")),
    ("F62 no delivery info", OK, without("properties", "delivery_info")),
    # F63
    ("F63 no id", "no_id", without("headers", "id")),
    ("F63 id null", "no_id", header(id=None)),
    ("F63 id empty", "no_id", header(id="")),
    # F64
    ("F64 id list", "bad_header", header(id=["x"])),
    ("F64 id object", "bad_header", header(id={})),
    ("F64 id number", "bad_header", header(id=5)),
    ("F64 id lone surrogate", "bad_header", header(id="\ud800")),
    ("F64 task list", "bad_header", header(task=["x"])),
    ("F64 task null", "bad_header", header(task=None)),
    ("F64 task empty", "bad_header", header(task="")),
    # F65, F66
    ("F65 timelimit text", "bad_header", header(timelimit="10")),
    ("F65 timelimit three", "bad_header", header(timelimit=[1, 2, 3])),
    ("F65 timelimit empty", "bad_header", header(timelimit=[])),
    ("F65 timelimit object", "bad_header", header(timelimit={})),
    ("F66 timelimit texts", "bad_header", header(timelimit=["1", "2"])),
    ("F66 timelimit negative", "bad_header", header(timelimit=[-1, None])),
    ("F66 timelimit NaN", "bad_header", header(timelimit=[math.nan, None])),
    ("F66 timelimit infinite", "bad_header", header(timelimit=[None, math.inf])),
    ("F66 timelimit true", "bad_header", header(timelimit=[True, None])),
    ("F66 timelimit huge", "bad_header", header(timelimit=[10**400, None])),
    ("F66 timelimit null", OK, header(timelimit=None)),
    # F67
    ("F67 stamped_headers text", "bad_header", header(stamped_headers="x")),
    ("F67 content-encoding number", "bad_header", changed(content_encoding=8)),
    ("F67 retries text", "bad_header", header(retries="1")),
    ("F67 retries negative", "bad_header", header(retries=-1)),
    ("F67 retries true", "bad_header", header(retries=True)),
    ("F67 retries huge", "bad_header", header(retries=2**63)),
    ("F67 priority text", "bad_header", prop(priority="high")),
    ("F67 reply_to number", "bad_header", prop(reply_to=7)),
    ("F67 delivery_info text", "bad_header", prop(delivery_info="celery")),
    ("F67 too many headers", "bad_header", header(**{f"h{n}": n for n in range(1000)})),
    ("F67 many headers", OK, header(**{f"h{n}": n for n in range(900)})),
    # F68, F69, F70
    ("F68 content type missing", "content_type", without("content-type")),
    ("F68 content type null", "content_type", changed(content_type=None)),
    ("F68 content type number", "content_type", changed(content_type=1)),
    ("F68 application/data", "content_type", changed(content_type="application/data")),
    ("F68 text/plain", "content_type", changed(content_type="text/plain")),
    ("F69 unknown content type", "content_type", changed(content_type="application/x-nothing")),
    ("F69 pickle", "content_type", changed(content_type="application/x-python-serialize")),
    ("F70 pickle bomb", "content_type", dump({
        **envelope(base64.b64encode(pickle.dumps(Bomb())).decode()),
        "content-type": "application/x-python-serialize",
    })),
    ("F70 pickle bomb called JSON", "body_decode", body(pickle.dumps(Bomb()))),
    # F71
    ("F71 body empty", "body_shape", changed(body="")),
    ("F71 body number", "body_shape", body(7)),
    ("F71 body null", "body_shape", body("null")),
    ("F71 body text", "body_shape", body('"abc"')),
    ("F71 two items", "body_shape", body([[], {}])),
    ("F71 four items", "body_shape", body([[], {}, {}, {}])),
    ("F71 object without args", "body_shape", body({"task": "x"})),
    # F72
    ("F72 body not JSON", "body_decode", body("{]")),
    ("F72 bad UTF-8", "body_decode", body(b'[["\xff"], {}, {}]')),
    ("F72 long integer", "body_decode", body(f"[[{'9' * 5000}], {{}}, {{}}]")),
    ("F72 nested", "body_decode", body("[" * 200_000 + "]" * 200_000)),
    ("F72 unknown type tag", "body_decode", body([[{"__type__": "nope", "__value__": 1}], {}, {}])),
    ("F72 broken type tag", "body_decode", body([[{"__type__": "uuid", "__value__": 1}], {}, {}])),
    # F73
    ("F73 args an object", "body_shape", body([{}, {}, {}])),
    ("F73 args a text", "body_shape", body(["ab", {}, {}])),
    ("F73 kwargs a list", "body_shape", body([[], [], {}])),
    ("F73 kwargs null", "body_shape", body([[], None, {}])),
    ("F73 embed a list", "body_shape", body([[], {}, []])),
    ("F73 embed null", "body_shape", body([[], {}, None])),
    ("F73 callbacks a text", "body_shape", body([[], {}, {"callbacks": "proj.next"}])),
    ("F73 callbacks of texts", "body_shape", body([[], {}, {"callbacks": ["proj.next"]}])),
    ("F73 errbacks an object", "body_shape", body([[], {}, {"errbacks": SIGNATURE}])),
    ("F73 chain of numbers", "body_shape", body([[], {}, {"chain": [1, 2]}])),
    ("F73 chain false", "body_shape", body([[], {}, {"chain": False}])),
    ("F73 chord a list", "body_shape", body([[], {}, {"chord": [SIGNATURE]}])),
    ("F73 too many callbacks", "body_shape", body([[], {}, {"callbacks": [{}] * (MAX_SIGNATURES + 1)}])),
    # F76, F77
    ("F76 eta rubbish", "bad_header", header(eta="tomorrow")),
    ("F76 eta number", "bad_header", header(eta=1_700_000_000)),
    ("F76 eta list", "bad_header", header(eta=[])),
    ("F76 eta empty", "bad_header", header(eta="")),
    ("F76 expires rubbish", "bad_header", header(expires="2026-13-01T00:00:00")),
    ("F76 expires number", "bad_header", header(expires=60)),
    ("F77 eta at the end of time", OK, header(eta="9999-12-31T23:59:59+14:00")),
    ("F77 eta beyond the end of time", "bad_header", header(eta="9999-12-31T23:59:59-14:00")),
    ("F77 eta before all time", "bad_header", header(eta="0001-01-01T00:00:00+14:00")),
    ("F77 eta 1970", OK, header(eta="1970-01-01T00:00:00")),
    ("F77 eta NaN", "bad_header", header(eta="NaN")),
    ("F77 expired long ago, due later", OK, header(expires="1999-01-01", eta="2030-01-01T00:00:00Z")),
    # F78
    ("F78 protocol 1", OK, v1({"task": "a", "id": "b", "args": [], "kwargs": {}})),
    ("F78 protocol 1 without id", OK, v1({"task": "a"})),
    ("F78 protocol 1 bad eta", "bad_header", v1({"task": "a", "id": "b", "eta": "soon"})),
    ("F78 protocol 1 kwargs a list", "body_shape", v1({"task": "a", "id": "b", "kwargs": []})),
    ("F78 neither protocol", "body_shape", v1([[], {}, {}])),
    # F79
    ("F79 NaN in args", OK, body("[[NaN, Infinity], {}, {}]")),
    # F81
    ("F81 unknown compression", "compression", header(compression="application/x-nothing")),
    ("F81 corrupt compression", "compression", header(compression="application/x-gzip")),
    ("F81 compression a list", "bad_header", header(compression=["gzip"])),
    ("F81 bomb", "compression", body(zlib.compress(b" " * (8 << 20)), compression="application/x-gzip")),
    ("F81 good", OK, body(zlib.compress(b"[[], {}, {}]"), compression="application/x-gzip")),
    ("F81 compressed but not encoded", "compression", dump({
        **envelope("text", compression="application/x-gzip"), "properties": {},
    })),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "raw"), [row[1:] for row in FRAMES], ids=[row[0] for row in FRAMES])
def test_a_frame_has_one_answer(expected: str, raw: bytes) -> None:
    assert judge(raw) == expected


def decoded(raw: bytes) -> Request:
    return decode_envelope(raw, "celery", "t")


def test_of_the_embed_part_only_the_known_keys_are_read() -> None:
    planted = {
        "id": "other",
        "hostname": "evil",
        "args": [9],
        "callbacks": [SIGNATURE],
        "chord": None,
        "chain": [],
    }
    request = decoded(body([[1], {}, planted]))
    assert decode_body(request, JSON) == ([1], {}, {"callbacks": [SIGNATURE], "chain": []})
    assert request.id == ID


def test_control_characters_are_data_and_stay_as_they_are() -> None:
    request = decoded(header(id="a\nb\x1b[31m", task="t\0", shadow="s\r", argsrepr="\x07"))
    assert (request.id, request.name, request.shadow, request.argsrepr) == (
        "a\nb\x1b[31m",
        "t\0",
        "s\r",
        "\x07",
    )


def test_the_same_id_three_times_gives_three_requests() -> None:
    made = [decoded(dump(envelope())) for _ in range(3)]
    assert len({id(each) for each in made}) == 3
    assert {each.id for each in made} == {ID}


def test_nan_in_arguments_is_passed_through_as_celery_does() -> None:
    args, _, _ = decode_body(decoded(body("[[NaN, Infinity], {}, {}]")), JSON)
    assert math.isnan(args[0])
    assert args[1] == math.inf


def test_moments_at_the_edges_are_read_not_clamped() -> None:
    request = decoded(header(eta="9999-12-31T23:59:59+14:00", expires="1970-01-01T00:00:00"))
    assert (request.eta, request.expires) == (253402250399.0, 0.0)


@pytest.mark.parametrize("text", ["ab\udc80", "\ud800"])
def test_a_header_that_amqp_let_through_with_bad_utf_8_is_refused(text: str) -> None:
    for headers in (
        {"task": text, "id": "x"},
        {"task": "a", "id": text},
        {"task": "a", "id": "x", "origin": text},
    ):
        with pytest.raises(Malformed) as caught:
            decode_parts(headers, {}, "application/json", "utf-8", b"[[], {}, {}]", "q", 1)
        assert caught.value.reason == "bad_header"
        assert text not in (caught.value.task_id, caught.value.task)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_body_without_transport_encoding_is_read_as_text_or_bytes(as_text: bool) -> None:
    made = encode_body((1, "é"), {"k": None}, {})
    data: bytes | str = made.body.decode() if as_text else made.body
    request = decode_parts(
        {"task": "a", "id": "b"},
        {"body_encoding": "base64"},
        made.content_type,
        made.content_encoding,
        data,
        "q",
        1,
    )
    assert decode_body(request, JSON) == ([1, "é"], {"k": None}, {})


def test_a_pickled_body_gives_a_list_of_arguments_where_pickle_is_let_in() -> None:
    made = encode_body((1, 2), {}, {"callbacks": (SIGNATURE,)}, serializer="pickle", compression="gzip")
    headers = {"task": "a", "id": "b", "compression": made.compression}
    request = decode_parts(headers, {}, made.content_type, made.content_encoding, made.body, "q", 1)
    assert decode_body(request, Accept.of(["pickle"])) == ([1, 2], {}, {"callbacks": [SIGNATURE]})
