"""Requests and outcomes as bytes, for the pipe between a worker and its own child processes.

A request crosses as the message's raw bytes wherever the broker gave such; what else crosses is pickled, which is
safe here and nowhere else: both ends are one program, of one user, and no message from outside is unpickled.
"""

from __future__ import annotations

import pickle
from struct import Struct

from greenq._speedups import decode_envelope, decode_parts
from greenq.model import Outcome, Record, Request, Settle, State
from greenq.wire.messages import complete_v1
from greenq.wire.serializers import Accept

_HEAD = Struct("<BH")  # flags, length of the queue's name
_RAW, _ACKED = 1, 2
_RUNTIME = Struct("<Bd")
_PLAIN, _FULL = 0, 1


def pack_request(request: Request) -> bytes:
    """The request, as `unpack_request` reads it."""
    queue = request.queue.encode()
    flags = _ACKED if request.acked else 0
    if request.raw is not None and request.protocol == 2:
        return _HEAD.pack(flags | _RAW, len(queue)) + queue + request.raw
    parts = (
        request.raw,
        request.headers if request.raw is None else None,
        request.properties if request.raw is None else None,
        request.content_type,
        request.content_encoding,
        request.body if request.raw is None else None,
        request.id,
    )
    return _HEAD.pack(flags, len(queue)) + queue + pickle.dumps(parts, 5)


def unpack_request(data: bytes, accept: Accept) -> Request:
    """The request again; it has been decoded before, so nothing in it can be wrong."""
    flags, length = _HEAD.unpack_from(data)
    start = _HEAD.size + length
    queue = data[_HEAD.size : start].decode()
    if flags & _RAW:
        request = decode_envelope(data[start:], queue, "")
    else:
        raw, headers, properties, content_type, encoding, body, task_id = pickle.loads(data[start:])  # noqa: S301
        if raw is not None:
            request = decode_envelope(raw, queue, "")
        else:
            request = decode_parts(headers, properties, content_type, encoding, body, queue, "")
        if request.protocol == 1:
            complete_v1(request, accept)
            request.id = task_id  # a message without one got it in the parent
    request.acked = bool(flags & _ACKED)
    return request


def pack_epitaph(request: Request, error: BaseException) -> bytes:
    """A request whose run was ended from outside, and the error (one of `greenq.exceptions`) that ended it."""
    return pickle.dumps((type(error), error.args, pack_request(request)), 5)


def unpack_epitaph(data: bytes, accept: Accept) -> tuple[Request, BaseException]:
    """The request and the error again."""
    kind, args, packed = pickle.loads(data)  # noqa: S301
    return unpack_request(packed, accept), kind(*args)


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome without its request and without its value, which stay where they are.

    Raises whatever pickle raises for a follow-up whose headers hold what cannot travel.
    """
    if (
        outcome.state == State.SUCCESS
        and outcome.how is Settle.ACK
        and outcome.record is None
        and not outcome.follow_ups
        and not outcome.more_records
    ):
        return _RUNTIME.pack(_PLAIN, outcome.runtime) + outcome.result_text.encode()
    fields = (
        outcome.state,
        outcome.how.value,
        outcome.record,
        outcome.more_records,
        outcome.follow_ups,
        outcome.result_text,
        outcome.traceback,
        outcome.expected,
        outcome.due,
        outcome.reason,
        outcome.signum,
    )
    return _RUNTIME.pack(_FULL, outcome.runtime) + pickle.dumps(fields, 5)


def unpack_outcome(data: bytes, request: Request) -> Outcome:
    """The outcome again, for the request as the parent has it."""
    kind, runtime = _RUNTIME.unpack_from(data)
    if kind == _PLAIN:
        return Outcome(request, State.SUCCESS, runtime=runtime, result_text=data[_RUNTIME.size :].decode())
    state, how, record, more, follow_ups, text, traceback, expected, due, reason, signum = pickle.loads(  # noqa: S301
        data[_RUNTIME.size :]
    )
    return Outcome(
        request,
        state,
        Settle(how),
        record,
        more,
        follow_ups,
        runtime,
        None,
        text,
        traceback,
        expected,
        due,
        reason,
        signum,
    )


def pack_record(record: Record) -> bytes:
    """A record that is not an outcome (STARTED)."""
    return pickle.dumps(tuple(record), 5)


def unpack_record(data: bytes) -> Record:
    """The record again."""
    return Record(*pickle.loads(data))  # noqa: S301
