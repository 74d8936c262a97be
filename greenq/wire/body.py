"""The body of a task message: `[args, kwargs, embed]`, and the older object (wire.md 5.3, 5.4)."""

from __future__ import annotations

import sys
from base64 import b64decode
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from greenq.exceptions import MalformedMessage
from greenq.model import Request
from greenq.wire.compression import compress, decompress
from greenq.wire.serializers import Accept, dumps, loads_checked

EMBED_LISTS = ("callbacks", "errbacks", "chain")
_NOTHING_NEXT = MappingProxyType({"callbacks": None, "errbacks": None, "chain": None, "chord": None})
MAX_SIGNATURES = 10_000

# Strict: what is no base64 is a broken message, not one with a few bytes less.
if sys.version_info >= (3, 11):
    _from_base64 = partial(a2b_base64, strict_mode=True)
else:
    _from_base64 = partial(b64decode, validate=True)


class EncodedBody(NamedTuple):
    """A body before any transport encoding; `compression` is a mime type or None."""

    body: bytes
    content_type: str
    content_encoding: str
    compression: str | None


def encode_body(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    embed: Mapping[str, Any],
    *,
    serializer: str = "json",
    compression: str | None = None,
) -> EncodedBody:
    """Serialize the triple, and compress it if asked to.

    Raises:
        EncodeError: the serializer cannot write an argument.
        ConfigError: there is no such serializer or compression.
    """
    data, content_type, encoding = dumps((args, kwargs, embed), serializer)
    mime = None
    if compression:
        data, mime = compress(data, compression)
    return EncodedBody(data, content_type, encoding, mime)


def decode_body(request: Request, accept: Accept) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Decode to (args, kwargs, embed), of protocol 2, 1 and the hybrid of both.

    Of the embed part only callbacks, errbacks, chain and chord are read, and only those that are not null are
    in the dict; nothing else a sender puts there can reach a task's request.

    Raises:
        ContentRefused: the content type is not let in.
        MalformedMessage: `body_encoding`, `compression`, `body_decode` or `body_shape`.
    """
    value = decode_value(request, accept)
    if request.protocol == 1 or (isinstance(value, dict) and "args" in value):
        return _decode_object(value)
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise MalformedMessage("body_shape", "the body is not [args, kwargs, embed]")
    args, kwargs, embed = value
    if not isinstance(embed, dict):
        raise MalformedMessage("body_shape", "embed is not an object")
    return _arguments(args), _keywords(kwargs), _embedded(embed)


def decode_value(request: Request, accept: Accept) -> Any:
    """Undo transport encoding, compression and serialization of a body, whatever its shape."""
    accept.check(request.content_type)
    data: bytes | str = request.body
    if not data:
        raise MalformedMessage("body_shape", "the body is empty")
    if request.body_encoding:
        try:
            data = _from_base64(data)
        except ValueError as exc:
            raise MalformedMessage("body_encoding", f"not base64: {exc}") from exc
        if not data:
            raise MalformedMessage("body_shape", "the body is empty")
    if request.compression:
        raw = data if isinstance(data, bytes) else data.encode("utf-8", "replace")
        data = decompress(raw, request.compression)
    return loads_checked(data, request.content_type)


def _decode_object(body: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    if not isinstance(body, dict):
        raise MalformedMessage("body_shape", "the body of a protocol 1 message is not an object")
    args, kwargs = body.get("args"), body.get("kwargs")
    embed = {key: body.get(key) for key in ("callbacks", "errbacks", "chord")}
    return (
        _arguments([] if args is None else args),
        _keywords({} if kwargs is None else kwargs),
        _embedded(embed),
    )


def _arguments(args: Any) -> list[Any]:
    if isinstance(args, list):
        return args
    if isinstance(args, tuple):
        return list(args)
    raise MalformedMessage("body_shape", f"args is not a list but {type(args).__name__}")


def _keywords(kwargs: Any) -> dict[str, Any]:
    if isinstance(kwargs, dict):
        return kwargs
    raise MalformedMessage("body_shape", f"kwargs is not an object but {type(kwargs).__name__}")


def _embedded(embed: dict[str, Any]) -> dict[str, Any]:
    if embed == _NOTHING_NEXT:
        return {}
    known: dict[str, Any] = {}
    for key in EMBED_LISTS:
        signatures = embed.get(key)
        if signatures is None:
            continue
        if not isinstance(signatures, (list, tuple)) or not all(isinstance(s, dict) for s in signatures):
            raise MalformedMessage("body_shape", f"{key} is not a list of signatures")
        if len(signatures) > MAX_SIGNATURES:
            raise MalformedMessage("body_shape", f"{key} holds more than {MAX_SIGNATURES} signatures")
        known[key] = list(signatures)
    chord = embed.get("chord")
    if chord is not None:
        if not isinstance(chord, dict):
            raise MalformedMessage("body_shape", "chord is not a signature")
        known["chord"] = chord
    return known
