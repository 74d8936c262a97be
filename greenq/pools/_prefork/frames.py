"""Frames on the socket between parent and child: a length, a kind, a task's number, and bytes.

The numbers count what the parent hands out and never repeat; a child ends its tasks in the order it got them.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

HEAD = Struct("<IBQ")
_SIZE = HEAD.size
# From 128 KiB on an interpreter maps fresh memory for each read, which costs ten times as much as a small one.
READ_BYTES = 64 * 1024


class Kind(IntEnum):
    """What a frame says."""

    # parent to child
    RUN = 1  # a packed request
    TELL = 4  # the same, and the outcome is to have the text of the task's value
    EPITAPH = 2  # a packed request behind the numbers of the ending that its outcome is to be made of
    LEAVE = 3  # end after what came before
    # child to parent
    READY = 10
    UNFIT = 11  # the text of what made the start fail
    DONE = 12  # a packed outcome
    RECORD = 13  # a packed record that is not an outcome
    LEAVING = 14  # this child takes nothing more: it has done its share


Frame = tuple[int, int, bytes]  # kind, number, payload; a plain tuple, since there is one for each task


def frame(kind: Kind, number: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEAD.pack(len(payload), kind, number) + payload


class FrameReader:
    """Cuts a stream into frames; keeps what is not complete yet."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEAD.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with this data."""
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []  # a large frame is put together once, not at each read
            data = b"".join(self._chunks)
            self._chunks.clear()
        frames: list[Frame] = []
        at, end = 0, len(data)
        self._need = _SIZE
        while end - at >= _SIZE:
            length, kind, number = HEAD.unpack_from(data, at)
            start = at + _SIZE
            if end - start < length:
                self._need = _SIZE + length
                break
            frames.append((kind, number, data[start : start + length]))
            at = start + length
        self._have = end - at
        if self._have:
            self._chunks.append(data[at:] if at else data)
        return frames
