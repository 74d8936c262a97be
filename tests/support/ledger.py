"""The ledger: one append-only file to which every task writes that it started and that it is done.

A checker joins it with the list of what was published. Each line is one `write` on a descriptor opened
with O_APPEND, so that lines of several processes never mix and survive a kill -9 of the writer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """What became of the published ids."""

    ok: frozenset[str]  # done at least once
    lost: frozenset[str]  # published, never done
    duplicated: dict[str, int]  # done more than once: id -> how often
    restarted: dict[str, int]  # started more than once: id -> how often
    unexpected: frozenset[str]  # ran, never published

    def __str__(self) -> str:
        return (
            f"ok {len(self.ok)}, lost {len(self.lost)} {sorted(self.lost)[:5]}, "
            f"duplicated {len(self.duplicated)} {sorted(self.duplicated)[:5]}, "
            f"restarted {len(self.restarted)}, unexpected {len(self.unexpected)}"
        )


class Ledger:
    """Writes and reads the file at `path`. Ids may not hold white space."""

    VARIABLE = "GREENQ_TEST_LEDGER"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    @classmethod
    def from_env(cls) -> Ledger:
        """The ledger of the test that started this process."""
        return cls(Path(os.environ[cls.VARIABLE]))

    def _write(self, line: str) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._descriptor, line.encode())

    def start(self, task: object) -> None:
        self._write(f"start {task}\n")

    def done(self, task: object) -> None:
        self._write(f"done {task}\n")

    def _count(self, word: str) -> Counter[str]:
        if not self.path.exists():
            return Counter()
        lines = (line.split() for line in self.path.read_text().splitlines())
        return Counter(parts[1] for parts in lines if len(parts) == 2 and parts[0] == word)

    def starts(self) -> Counter[str]:
        """How often each id was started."""
        return self._count("start")

    def dones(self) -> Counter[str]:
        """How often each id was done."""
        return self._count("done")

    def running(self) -> set[str]:
        """Ids with more starts than dones: running, or cut short."""
        return set(self.starts() - self.dones())

    def check(self, published: Iterable[object]) -> Check:
        """Join the file with the ids whose publish succeeded."""
        wanted = {str(task) for task in published}
        starts, dones = self.starts(), self.dones()
        return Check(
            ok=frozenset(wanted & set(dones)),
            lost=frozenset(wanted - set(dones)),
            duplicated={task: times for task, times in dones.items() if times > 1},
            restarted={task: times for task, times in starts.items() if times > 1},
            unexpected=frozenset(set(starts) - wanted),
        )
