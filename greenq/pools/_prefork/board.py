"""One page that parent and children share: which task a child is on, and which one is to end.

A child notes the start of a task here and not on its pipe, where the word would wake the parent for nothing; and
a signal handler can read here which task the signal is meant for. A word has one writer, and a store of eight
aligned bytes is not torn.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import NamedTuple

MOST_CHILDREN = 2048
WORDS = 4
STARTED, WANTED, KIND, DETAIL = range(WORDS)  # the first is the child's, the others are the parent's
BYTES = MOST_CHILDREN * WORDS * 8


class Wanted(NamedTuple):
    """The ending that is wanted for one task: a kind of `endings`, and its number."""

    kind: int
    detail: int


def make_file() -> int:
    """A file of the board's size that has no name; returns its descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("greenq-board")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, BYTES)
    return fd


class Board:
    """The page, mapped; children are numbered from 1."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BYTES)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Let go of the page."""
        self._words.release()
        self._map.close()

    def clear(self, index: int) -> None:
        """Parent: before a child of that number is born."""
        at = index * WORDS
        for word in range(at, at + WORDS):
            self._words[word] = 0

    def start(self, index: int, number: int) -> None:
        """Child: I am on this task now."""
        self._words[index * WORDS + STARTED] = number

    def started(self, index: int) -> int:
        """Parent: the number of the task the child took up last; 0 before the first."""
        return self._words[index * WORDS + STARTED]

    def want(self, index: int, number: int, wanted: Wanted) -> None:
        """Parent: that task is to end so. Then send the child a signal."""
        at = index * WORDS
        self._words[at + KIND] = wanted.kind
        self._words[at + DETAIL] = wanted.detail
        self._words[at + WANTED] = number  # last: who sees it sees the others

    def wanted(self, index: int, number: int) -> Wanted | None:
        """Child: what is wanted of this task, if anything."""
        at = index * WORDS
        if self._words[at + WANTED] != number:
            return None
        return Wanted(self._words[at + KIND], self._words[at + DETAIL])
