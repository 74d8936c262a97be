"""Envelopes to test with: valid ones, and what may be done to them."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import timedelta, timezone
from typing import Any

from hypothesis import strategies as st

BODY = b64encode(
    b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
).decode()
ID = "f1960b1e-1f65-4c2c-9d2b-0f6a3b6d8f01"


def envelope(body: str = BODY, **headers: Any) -> dict[str, Any]:
    """A valid message of protocol 2, as kombu's Redis transport stores it."""
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": "proj.add", "id": ID, "shadow": None, "eta": None, "expires": None,
            "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": ID,
            "parent_id": None, "argsrepr": "(1, 2)", "kwargsrepr": "{}", "origin": "gen1@host",
            "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
            **headers,
        },
        "properties": {
            "correlation_id": ID, "reply_to": "b1f3-44", "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0,
            "body_encoding": "base64", "delivery_tag": "77bb8f1c",
        },
    }  # fmt: skip


offsets = st.integers(-86399, 86399).map(lambda s: timezone(timedelta(seconds=s)))
moments = st.datetimes(timezones=st.none() | offsets | st.just(timezone.utc)).map(lambda d: d.isoformat())
odd_moments = st.one_of(
    moments,
    moments.map(lambda t: t.replace("+00:00", "Z")),
    moments.map(lambda t: t[:-1]),
    moments.map(lambda t: t.replace("-", "", 1)),
    st.tuples(moments, st.integers(0, 30), st.characters(max_codepoint=0x3000)).map(
        lambda made: made[0][: made[1]] + made[2] + made[0][made[1] + 1 :]
    ),
    st.sampled_from(
        ["", "now", "NaN", "2026-02-30", "2024-02-29T23:59:59.5Z", "9999-12-31T23:59:59+14:00",
         "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "0000-01-01", "1970-01-01T00:00:00Z",
         "2026-11-22T24:00:00", "2026-11-22T23:59:60", "2026-11-22 06:49", "2026-11-22T06:49:18+0530",
         "2026-11-22T06:49:18.123456789-05", "20261122T064918Z", "2026-11-22T06:49:18+05:30:",
         "2026-11-22T06"]
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 12),
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400, 0.5, -0.0, 1e308, 1e16]),
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, odd_moments, st.text(max_size=8), st.sampled_from(["base64", "task"])
)
tagged = st.tuples(
    st.sampled_from(["datetime", "uuid", "decimal", "bytes", "base64", "nonsense"]), scalars
).map(lambda made: {"__type__": made[0], "__value__": made[1]})
values = st.recursive(
    scalars | tagged,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
limits = st.lists(st.none() | numbers | st.booleans(), min_size=0, max_size=3)

FIELDS = [
    ("headers",), ("properties",), ("body",), ("content-type",), ("content-encoding",),
    *(("headers", key) for key in [*envelope()["headers"], "compression", "redelivered"]),
    *(("properties", key) for key in envelope()["properties"]),
    *(("properties", "delivery_info", key) for key in ("exchange", "routing_key", "redelivered")),
]  # fmt: skip


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any, *, delete: bool = False) -> None:
    node: Any = tree
    for step in path[:-1]:
        node = node.get(step) if isinstance(node, dict) else None
    if isinstance(node, dict):
        if delete:
            node.pop(path[-1], None)
        else:
            node[path[-1]] = value


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid envelope with one to five mutations."""
    tree = envelope()
    tree["headers"]["eta"] = draw(st.none() | moments)
    text_level = []
    for _ in range(draw(st.integers(1, 5))):
        path = draw(st.sampled_from(FIELDS))
        what = draw(
            st.sampled_from(["swap", "swap", "swap", "delete", "time", "limit", "deep", "wide", "text"])
        )
        if what == "swap":
            _put(tree, path, draw(values))
        elif what == "delete":
            _put(tree, path, None, delete=True)
        elif what == "time":
            _put(tree, ("headers", draw(st.sampled_from(["eta", "expires"]))), draw(odd_moments))
        elif what == "limit":
            _put(tree, ("headers", "timelimit"), draw(limits))
        elif what == "deep":
            value: Any = 1
            for _ in range(draw(st.integers(120, 135))):
                value = [value]
            _put(tree, ("headers", "deep"), value)
        elif what == "wide":
            for number in range(draw(st.sampled_from([500, 975, 985, 1001]))):
                _put(tree, ("headers", f"h{number}"), number)
        else:
            text_level.append(draw(st.sampled_from(["cut", "byte", "twice", "utf-16", "bom", "raw-unicode"])))
    raw = json.dumps(tree, ensure_ascii="raw-unicode" not in text_level).encode("utf-8", "surrogatepass")
    for what in text_level:
        at = draw(st.integers(0, len(raw)))
        if what == "cut":
            raw = raw[:at]
        elif what == "byte":
            raw = raw[:at] + draw(st.binary(min_size=1, max_size=1)) + raw[at + 1 :]
        elif what == "twice":
            raw = raw.replace(b'"retries"', b'"id": "twice", "retries"', 1)
        elif what == "utf-16":
            raw = raw.decode("utf-8", "replace").encode("utf-16")
        elif what == "bom":
            raw = b"\xef\xbb\xbf" + raw
    return raw
