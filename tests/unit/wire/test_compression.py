"""Compression, and that a few bytes cannot become all memory."""

from __future__ import annotations

import bz2
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from kombu import compression as kombu_compression

from greenq.exceptions import ConfigError, MalformedMessage
from greenq.wire import compression
from greenq.wire.compression import compress, decompress

METHODS = ["zlib", "gzip", "bzip2", "bzip", "lzma", "xz"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "data", [b"", b"x", b"greenq" * 1000, os.urandom(5000)], ids=["empty", "one", "same", "any"]
)
def test_what_goes_in_comes_out_here_and_at_kombu(name: str, data: bytes) -> None:
    packed, mime = compress(data, name)
    assert decompress(packed, mime) == decompress(packed, name) == data
    assert kombu_compression.decompress(packed, mime) == data
    assert decompress(*kombu_compression.compress(data, name)) == data


@pytest.mark.parametrize("name", ["zlib", "bzip2", "xz"])
@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_piece_of_compressed_data_is_refused(name: str, cut: int) -> None:
    packed, mime = compress(os.urandom(2000), name)
    with pytest.raises(MalformedMessage) as caught:
        decompress(packed[:cut], mime)
    assert caught.value.reason == "compression"


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (b"rubbish", "application/x-gzip"),
        (b"rubbish", "application/x-bz2"),
        (b"rubbish", "application/x-lzma"),
        (b"rubbish", "application/x-unheard-of"),
        (b"rubbish", ""),
        (b"rubbish", "application/x-brotli"),
        (b"rubbish", "application/zstd"),
    ],
)
def test_rubbish_and_unknown_methods_are_refused(data: bytes, mime: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decompress(data, mime)
    assert caught.value.reason == "compression"


def test_up_to_a_mebibyte_may_repeat_itself_as_it_likes() -> None:
    data = b"\0" * compression.FREE_OUTPUT
    assert decompress(zlib.compress(data), "zlib") == data
    with pytest.raises(MalformedMessage, match="expand to more"):
        decompress(zlib.compress(data + b"\0"), "zlib")


def test_beyond_that_a_hundredfold_is_the_limit() -> None:
    filler = os.urandom(30_000)
    packed = zlib.compress(filler + b"\0" * 1_500_000)
    assert len(decompress(packed, "zlib")) == 1_530_000
    with pytest.raises(MalformedMessage, match="expand to more"):
        decompress(zlib.compress(filler + b"\0" * 4_000_000), "zlib")


BOMBS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("application/x-gzip", zlib.compress),
    ("application/x-bz2", bz2.compress),
    ("application/x-lzma", lzma.compress),
]
EXPLODE = """
import resource, sys
from greenq.exceptions import MalformedMessage
from greenq.wire.compression import decompress
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decompress(data, sys.argv[1])
except MalformedMessage as error:
    print(error.reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("mime", "pack"), BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(mime: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"\0" * (200 << 20))
    out = subprocess.run(
        [sys.executable, "-c", EXPLODE, mime], input=bomb, capture_output=True, check=True, timeout=60
    )
    reason, grown = out.stdout.decode().split()
    assert reason == "compression"
    assert int(grown) < 100  # MiB, of 200


def test_a_method_that_is_not_there_is_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(kombu_compression._encoders, compression.BROTLI, raising=False)
    monkeypatch.delitem(kombu_compression._aliases, "brotli", raising=False)
    with pytest.raises(ConfigError, match="Did you mean 'gzip'"):
        compress(b"", "gzipp")
    with pytest.raises(ConfigError, match="library"):
        compress(b"", "brotli")
