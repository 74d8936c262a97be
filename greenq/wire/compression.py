"""Compressing bodies and results, and decompressing them without being blown up (wire.md 5.5)."""

from __future__ import annotations

import bz2
import lzma
import zlib
from difflib import get_close_matches
from typing import Any

from kombu import compression as kombu_compression

from greenq.exceptions import ConfigError, MalformedMessage

# Both are optional to kombu, which imports them at this moment too.
try:
    import brotli  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    brotli = None
try:
    from backports import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    zstd = None

GZIP = "application/x-gzip"  # in truth a zlib container, without gzip's header
BZIP2 = "application/x-bz2"
LZMA = "application/x-lzma"
BROTLI = "application/x-brotli"
ZSTD = "application/zstd"

_NAMES = {
    "zlib": GZIP,
    "gzip": GZIP,
    "bzip2": BZIP2,
    "bzip": BZIP2,
    "lzma": LZMA,
    "xz": LZMA,
    "brotli": BROTLI,
    "zstd": ZSTD,
    "zstandard": ZSTD,
}

MAX_OUTPUT = 64 << 20  # bytes
MAX_RATIO = 100
FREE_OUTPUT = 1 << 20  # bytes to which the ratio does not apply: small texts may well repeat themselves
LZMA_MEMORY = 128 << 20  # the sender chooses the dictionary, up to 4 GiB; level 9 needs 65 MiB


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """Compress to (bytes, mime type); `name` is one of kombu's names or mime types.

    Raises:
        ConfigError: there is no such method, or its library is not installed.
    """
    try:
        return kombu_compression.compress(data, name)  # type: ignore[no-any-return,unused-ignore]
    except KeyError:
        if name in _NAMES or name in _NAMES.values():
            raise ConfigError(f"Compression {name!r} needs a library that is not installed here.") from None
        near = get_close_matches(name, _NAMES, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no compression {name!r}.{hint}") from None


def decompress(data: bytes, mime: str) -> bytes:
    """Decompress, giving up as soon as the output is larger than an honest one would be.

    The limits are 64 MiB, and beyond 1 MiB a hundred times the input.

    Raises:
        MalformedMessage: `compression`: unknown method, broken data, or too large.
    """
    method = _NAMES.get(mime, mime)
    limit = min(MAX_OUTPUT, max(FREE_OUTPUT, MAX_RATIO * len(data)))
    try:
        if method == BROTLI and brotli is not None:
            output = _expand_brotli(data, limit)
        else:
            output = _expand(_decompressor(method), data, limit)
    except MalformedMessage:
        raise
    except Exception as exc:
        raise MalformedMessage("compression", f"{method}: {type(exc).__name__}: {str(exc)[:120]}") from exc
    if len(output) > limit:
        raise MalformedMessage("compression", f"{len(data)} bytes expand to more than {limit}")
    return output


def _decompressor(method: str) -> Any:
    if method == GZIP:
        return zlib.decompressobj()
    if method == BZIP2:
        return bz2.BZ2Decompressor()
    if method == LZMA:
        return lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
    if method == ZSTD and zstd is not None:
        return zstd.ZstdDecompressor()
    if method in _NAMES.values():
        raise MalformedMessage("compression", f"the library for {method} is not installed here")
    raise MalformedMessage("compression", f"unknown method {method[:80]!r}")


def _expand(decompressor: Any, data: bytes, limit: int) -> bytes:
    """At most one byte more than `limit`: enough to know."""
    output: bytes = decompressor.decompress(data, limit + 1)
    if len(output) <= limit and not decompressor.eof:
        raise MalformedMessage("compression", "the data ends too early")
    return output


def _expand_brotli(data: bytes, limit: int) -> bytes:
    decompressor = brotli.Decompressor()
    try:
        output: bytes = decompressor.process(data, output_buffer_limit=limit + 1)
    except TypeError:
        # Without that argument a few bytes could fill all memory before anybody can look.
        raise MalformedMessage("compression", "this brotli cannot limit its output; 1.2 can") from None
    if len(output) <= limit and not decompressor.is_finished():
        raise MalformedMessage("compression", "the data ends too early")
    return output
