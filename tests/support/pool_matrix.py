"""The pool matrix: what each pool keeps, measured, beside what Celery's does; `python -m` of this writes the page."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.support import pool_experiments as do
from tests.support.node import ROOT
from tests.support.pool_scene import Finding, Scene
from tests.support.services import RedisServer

PAGE = ROOT / "docs" / "pool-matrix.md"
POOLS = ("gevent", "eventlet", "prefork", "solo")
AT_ONCE = 6  # workers under measurement; most of the time they wait
SLOTS = 4

Experiment = Callable[[Scene], Finding]
F = TypeVar("F")


class Row(NamedTuple):
    """One feature; Celery's values are in the order of POOLS. The rest says what is behind a value."""

    title: str
    experiment: Experiment
    celery: str
    why: str = ""  # Celery's
    ours: str = ""


ROWS = (
    Row(
        "hard time limit: message, task, `--time-limit`",
        do.hard_limit,
        "yes no yes no",
        "gevent: a timeout exception, which `except BaseException` swallows; eventlet and solo drop the limit",
    ),
    Row(
        "hard time limit of a task that computes",
        do.hard_limit_computing,
        "no no yes no",
        "gevent: the timeout waits for a switch that never comes",
    ),
    Row("soft time limit", do.soft_limit, "no no yes no"),
    Row(
        "`time_limit` command takes effect",
        do.time_limit_command,
        "no no no no",
        "the reply is ok; limits were captured when the worker started",
    ),
    Row(
        "terminate, `revoke(terminate=True)`",
        do.terminate,
        "yes yes yes no",
        "gevent, eventlet: a `task-succeeded` follows; solo cannot read the command while it is busy",
    ),
    Row(
        "terminate tells the task which signal",
        do.signal_name,
        "no no yes no",
        ours="prefork sends the signal; elsewhere its number is the argument of the `Killed` that ends the task, "
        "whatever the signal",
    ),
    Row("`--autoscale`", do.autoscale, "part part yes no", "gevent, eventlet: one slot a second"),
    Row("`pool_grow`", do.pool_grow, "yes yes yes no"),
    Row(
        "`pool_shrink`",
        do.pool_shrink,
        "part part part no",
        "gevent, eventlet: no floor, the size can become negative; prefork: idle children only",
    ),
    Row(
        "`pool_restart` really restarts",
        do.pool_restart,
        "no no yes no",
        "elsewhere the reply is ok, modules are loaded again, the pool is as before",
    ),
    Row("`--max-tasks-per-child`", do.max_tasks, "no no yes no", "elsewhere it is ignored (read in the source)"),
    Row("`--max-memory-per-child`", do.max_memory, "no no yes no", "as above"),
    Row("control while tasks wait", do.control_while_waiting, "yes yes yes no", "solo runs tasks where it listens"),
    Row(
        "control while the pool is full",
        do.control_while_full,
        "part part yes no",
        "gevent, eventlet: ping answers, but what changes the consumer waits for a free slot",
    ),
    Row("control while a task computes", do.control_while_computing, "no no yes no"),
    Row(
        "prefetch beyond the pool's size, in `reserved`",
        do.reserved,
        "no no yes no",
        "gevent, eventlet: one message waits, blocking the consumer",
        "only where tasks are short, for 50 ms of work, and at most a `worker_prefetch_multiplier` that was chosen; "
        "behind long tasks messages stay in the broker, or go back there, for whoever is free",
    ),
    Row("warm shutdown", do.warm_shutdown, "yes yes yes yes", "gevent: up to 2 s late"),
    Row("remote `shutdown`", do.remote_shutdown, "yes yes yes yes", "solo: after its task"),
    Row(
        "cold shutdown keeps `acks_late` messages",
        do.cold_shutdown,
        "no no yes no",
        "gevent, eventlet: acknowledged and lost; solo: stored as FAILURE",
    ),
    Row(
        "soft shutdown, `worker_soft_shutdown_timeout`",
        do.soft_shutdown,
        "no no yes no",
        "gevent, eventlet: exit 1 at once; solo: fails the task it waits for",
    ),
    Row("USR1 dumps the stacks of tasks", do.stack_dump, "no no yes yes", "gevent, eventlet: the hub's stack only"),
    Row("events in batches", do.events, "no no yes yes", "gevent, eventlet: one by one"),
    Row("`processes` in stats", do.processes, "no no yes yes"),
    Row(
        "`child_start` hook",
        do.child_start,
        "no no yes yes",
        "Celery's name for it is the signal `worker_process_init`",
    ),
    Row(
        "embedded beat, `-B`",
        do.beat,
        "refused refused yes yes",
        "all but gevent were read in the source",
    ),
    Row("ETA and countdown", do.eta, "yes yes yes yes"),
    Row("rate limits", do.rate_limit, "yes yes yes yes"),
    Row("revoke", do.revoke, "yes yes yes yes"),
    Row("expires", do.expires, "yes yes yes yes"),
    Row("priority", do.priority, "yes yes yes yes"),
    Row("retries", do.retries, "yes yes yes yes"),
    Row("chords", do.chords, "yes yes yes yes"),
    Row(
        "`election` on one node",
        do.election,
        "no no no no",
        "the worker crashes; eventlet and solo were read in the source",
    ),
)


@dataclass(frozen=True)
class Session:
    """One worker, and the experiments it serves, in order. The last one may end it."""

    experiments: Sequence[Experiment]
    slots: int | None = SLOTS  # of solo 1; None: by its options
    options: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[Scene], None] | None = None  # the worker starts


# The long ones first, so that they do not end alone.
SESSIONS = (
    Session(
        (
            *(do.child_start, do.processes, do.retries, do.expires, do.eta, do.rate_limit, do.revoke),
            *(do.terminate, do.signal_name, do.control_while_waiting, do.control_while_full, do.reserved),
            *(do.control_while_computing, do.time_limit_command, do.events, do.election, do.chords),
            *(do.pool_restart, do.pool_grow, do.pool_shrink, do.remote_shutdown),
        ),
        options=("-I", "matrix_word"),
        settings={"worker_pool_restarts": True},
    ),
    Session(
        (do.hard_limit, do.soft_limit, do.hard_limit_computing, do.stack_dump),
        options=("--time-limit", "0.8", "--soft-time-limit", "0.4"),
    ),
    Session((do.autoscale,), slots=None, options=("--autoscale=6,2",), env={"AUTOSCALE_KEEPALIVE": "1"}),
    Session((do.priority, do.warm_shutdown), slots=1, before=do.send_by_priority),
    Session((do.soft_shutdown,), settings={"worker_soft_shutdown_timeout": 5}),
    Session((do.cold_shutdown,)),
    Session((do.max_tasks,), slots=1, options=("--max-tasks-per-child", "3")),
    Session((do.max_memory,), slots=1, options=("--max-memory-per-child", "150000")),
    Session((do.beat,), options=("-B",)),
)


@dataclass
class Matrix:
    """The findings, by experiment and pool."""

    cells: dict[tuple[Experiment, str], Finding]
    seconds: float

    def overview(self) -> str:
        """The table alone, for people."""
        lines = [f"{f'measured in {self.seconds:.0f} s':55}" + "".join(f"{pool:10}" for pool in POOLS)]
        lines += [
            f"{row.title:55}" + "".join(f"{self.cells[row.experiment, pool].verdict:10}" for pool in POOLS)
            for row in ROWS
        ]
        return "\n".join(line.rstrip() for line in lines)

    def details(self) -> str:
        """Every cell with what was seen, for people."""
        lines = []
        for row in ROWS:
            lines.append(row.title)
            for pool in POOLS:
                cell = self.cells[row.experiment, pool]
                lines.append(f"    {pool:9} {cell.verdict:8} {cell.seen or cell.said}".rstrip())
        return "\n".join(lines)

    def faults(self) -> list[str]:
        """The cells that are neither kept nor refused in so many words: accepted and ignored, or broken."""
        return [
            f"{row.title}, {pool}: {cell.seen}"
            for row in ROWS
            for pool in POOLS
            if (cell := self.cells[row.experiment, pool]).verdict == "no"
        ]

    def page(self) -> str:
        """The whole page as Markdown; nothing in it changes from one measurement to the next."""
        lines = [_HEAD, _DEFECTS if self.faults() else _NO_DEFECT, ""]
        lines += _table(("feature", *POOLS, "Celery"), map(self._line, ROWS))
        lines += ["", "## What is behind greenq's values", "", *self._sentences()]
        lines += ["", "## What is behind Celery's values", ""]
        lines += [f"- {row.title}: {row.why}." for row in ROWS if row.why]
        return "\n".join(lines) + "\n"

    def _line(self, row: Row) -> tuple[str, ...]:
        return (
            row.title,
            *(self.cells[row.experiment, pool].verdict for pool in POOLS),
            " · ".join(row.celery.split()),
        )

    def _sentences(self) -> list[str]:
        lines = []
        for row in ROWS:
            lines += [f"- {row.title}: {row.ours}."] if row.ours else []
            said: dict[str, list[str]] = {}
            for pool in POOLS:
                sentence = self.cells[row.experiment, pool].said.replace(f"the {pool} pool", "the … pool")
                said.setdefault(sentence, []).append(pool)
            lines += [f"- {row.title}, {', '.join(pools)}: {text}" for text, pools in said.items() if text]
        return lines


_HEAD = """# What each pool keeps

Made by `scripts/pool-matrix`; `pytest tests/integration/test_pool_matrix.py` measures it anew, with real workers on \
a private Redis, and fails where this page says something else.

- **yes**: an experiment with a running worker has shown it.
- **refused**: the worker does not start, or the command is answered with an error; either says what to do instead.
- **later**: not in this version; what says so stands below the table.

The last column is Celery 5.7 in the same order of pools, measured in the same way unless it says otherwise below.
"""
_NO_DEFECT = "Nothing is accepted and ignored."
_DEFECTS = "**no** is a defect: accepted, and nothing came of it. The test fails for as long as there is one."
def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_cells(heads), "|" + "---|" * len(heads), *map(_cells, rows)]


def _cells(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def measure(folder: Path) -> Matrix:
    """Run every experiment on every pool; takes about a minute."""
    began = time.monotonic()
    jobs = [(pool, session) for session in SESSIONS for pool in POOLS]
    cells: dict[tuple[Experiment, str], Finding] = {}
    with RedisServer(databases=str(len(jobs))) as server, ThreadPoolExecutor(AT_ONCE) as crew:
        base = server.url.removesuffix("/0")

        def run(number: int) -> None:
            pool, session = jobs[number]
            place = folder / f"{number}-{pool}"
            place.mkdir()
            for experiment, finding in _run(session, pool, f"{base}/{number}", place).items():
                cells[experiment, pool] = finding

        for _ in crew.map(run, range(len(jobs))):
            pass
    return Matrix(cells, time.monotonic() - began)


def _run(session: Session, pool: str, url: str, folder: Path) -> dict[Experiment, Finding]:
    (folder / "matrix_word.py").write_text('WORD = "one"\n')
    slots = 1 if session.slots and pool == "solo" else session.slots
    with Scene(
        *(pool, url, folder), slots=slots, options=session.options, settings=session.settings, env=session.env
    ) as scene:
        if session.before is not None:
            session.before(scene)
        refusal = _tried(Scene.start, scene)
        if refusal is not None:
            return dict.fromkeys(session.experiments, refusal)
        return {experiment: _tried(experiment, scene) for experiment in session.experiments}


def _tried(what: Callable[[Scene], F], scene: Scene) -> F | Finding:
    try:
        return what(scene)
    except Exception as error:
        tail = "".join(f"\n        {line[:200]}" for line in scene.node.output().splitlines()[-4:])
        if scene.node.running:
            scene.clear()
        return Finding("no", f"{type(error).__name__}: {error}{tail}")


def main() -> int:
    """Measure, print what was seen, and write the page; 1 if a cell is neither kept nor refused."""
    with tempfile.TemporaryDirectory() as folder:
        matrix = measure(Path(folder))
    print(matrix.overview(), matrix.details(), sep="\n\n")
    PAGE.write_text(matrix.page())
    return int(bool(matrix.faults()))


if __name__ == "__main__":
    sys.exit(main())
