"""Print one line a function: microseconds here, microseconds there, and how many times faster.

`python -m bench.micro` takes half a minute. Both sides alternate, and each keeps its best of seven: the neighbours
on a small machine can only make a loop slower.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from kombu.transport.virtual import Message
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads

from bench.micro.clock import alone, compare
from bench.micro.structures import buckets, heaps, revoked
from greenq._speedups import decode_envelope, plain_json
from greenq.model import Outcome, State
from greenq.pools._prefork.board import Board, make_file
from greenq.pools._prefork.frames import READ_BYTES, FrameReader, Kind, frame
from greenq.wire.body import decode_body
from greenq.wire.messages import build_task_message, to_envelope
from greenq.wire.passing import pack_outcome, pack_request, unpack_outcome, unpack_request
from greenq.wire.results import decode_meta, encode_success
from greenq.wire.serializers import Accept
from tests.unit.speedups import oracle

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=timezone.utc)


def message(task_id: str) -> Any:
    """A task message as `.delay(1, 2)` builds it."""
    return build_task_message(
        name="proj.tasks.add",
        args=(1, 2),
        kwargs={},
        task_id=task_id,
        origin="gen1234@host.example",
        routing_key="celery",
        reply_to=task_id,
        now=NOW,
    )


def messages() -> None:
    """A task's way in and out."""
    task_id = str(uuid4())
    made = message(task_id)
    raw = to_envelope(made, task_id)
    request, accept = decode_envelope(raw, "celery", "t"), Accept.of(["json"])
    print(f"envelope of {len(raw)} bytes")
    compare(
        "decode_envelope",
        lambda: decode_envelope(raw, "celery", "t"),
        lambda: oracle.decode(raw),
        "plain Python, as strict",
    )
    compare(
        "decode_envelope",
        lambda: decode_envelope(raw, "celery", "t"),
        lambda: json.loads(raw)["headers"].get("id"),
        "json.loads, nothing checked",
    )
    compare(
        "decode_envelope + decode_body",
        lambda: decode_body(decode_envelope(raw, "celery", "t"), accept),
        lambda: Message(kombu_loads(raw), channel=_Channel(), accept={"application/json"}).decode(),
        "kombu's Message",
    )
    compare(
        "decode_body",
        lambda: decode_body(request, accept),
        lambda: kombu_loads(made.body),
        "kombu, JSON only",
    )
    compare(
        "build_task_message",
        lambda: message(task_id),
        lambda: kombu_dumps(((1, 2), {}, {})),
        "kombu, body only",
    )
    tree = json.loads(raw)
    compare("to_envelope", lambda: to_envelope(made, task_id), lambda: kombu_dumps(tree), "kombu, JSON only")
    compare("plain_json", lambda: plain_json(tree), lambda: kombu_dumps(tree), "kombu")
    stored = encode_success(task_id, 3, date_done=NOW)
    compare(
        "encode_success",
        lambda: encode_success(task_id, 3, date_done=NOW),
        lambda: kombu_dumps({"status": "SUCCESS", "result": 3, "date_done": NOW.isoformat(), "task_id": task_id}),
        "kombu, JSON only",
    )
    compare("decode_meta", lambda: decode_meta(stored, accept), lambda: kombu_loads(stored), "kombu, JSON only")


class _Channel:
    """All that kombu's Message needs to undo base64."""

    @staticmethod
    def decode_body(body: str, _encoding: str) -> bytes:
        return b64decode(body)


def pipes() -> None:
    """What crosses between a prefork worker and a child, per task. Absolute: there is nothing to set beside it."""
    task_id = str(uuid4())
    raw = to_envelope(message(task_id), task_id)
    request, accept = decode_envelope(raw, "celery", "t"), Accept.of(["json"])
    outcome = Outcome(request, State.SUCCESS)
    packed, answer = pack_request(request), pack_outcome(outcome)
    done = frame(Kind.DONE, 7, answer)
    reader = FrameReader()
    print("prefork, parent")
    alone("pack_request + frame", lambda: frame(Kind.RUN, 7, pack_request(request)))
    alone("FrameReader, one DONE", lambda: reader.feed(done))
    alone("FrameReader, of 25 at once, each", lambda: reader.feed(done * 25), 25)
    alone("unpack_outcome", lambda: unpack_outcome(answer, request))
    print("prefork, child")
    alone("unpack_request", lambda: unpack_request(packed, accept))
    alone("pack_outcome + frame", lambda: frame(Kind.DONE, 7, pack_outcome(outcome)))
    file = make_file()
    board = Board(file)
    alone("Board.start", lambda: board.start(3, 7))
    alone("Board.wanted, nothing", lambda: board.wanted(3, 7))
    board.close()
    os.close(file)
    one, other = os.pipe()
    alone("os.write + os.read of a DONE", lambda: (os.write(other, done), os.read(one, READ_BYTES)))
    os.close(one)
    os.close(other)


if __name__ == "__main__":
    messages()
    buckets()
    revoked()
    heaps()
    pipes()
