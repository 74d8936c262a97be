"""A counter shared by the one worker process that adds to it and the bench that reads it: 8 mapped bytes."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_FORM = struct.Struct("q")


class Counter:
    """The number in the file at `path`, made with 0 if it is not there. One process adds."""

    VARIABLE = "COUNTER"

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, _FORM.size)
        self._memory = mmap.mmap(descriptor, _FORM.size)
        os.close(descriptor)

    @classmethod
    def from_env(cls) -> Counter:
        """The counter named by the environment."""
        return cls(Path(os.environ[cls.VARIABLE]))

    def add(self) -> None:
        """Add one; about 0.4 us."""
        _FORM.pack_into(self._memory, 0, _FORM.unpack_from(self._memory)[0] + 1)

    def value(self) -> int:
        """The number."""
        return int(_FORM.unpack_from(self._memory)[0])
