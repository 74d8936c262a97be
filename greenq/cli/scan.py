"""Read the command line before anything is imported: which sub-command, and for a worker which pool.

The pool has to be known first, since patching the standard library after other imports is too late. Nothing
that keeps a socket, a lock or a sleep may be imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from greenq import configfile

DEFAULT_POOL = "gevent"
COMMANDS = ("worker", "status", "inspect", "control", "call", "result", "purge")
_POOL_VARIABLES = ("GREENQ_POOL", "GREENQ_WORKER_POOL", "CELERY_WORKER_POOL")
_PRINTS = frozenset({"-h", "--help", "--version"})
_FLAGS = frozenset({"-C", "--no-color", "-q", "--quiet", "--traceback", "--purge", "--reload", *_PRINTS})
# Options that take a value and may be written before the sub-command: those of a worker, and everybody's.
_WORKERS = frozenset(
    [
        "-P",
        "--pool",
        "-c",
        "--concurrency",
        "-n",
        "--hostname",
        "-Q",
        "--queues",
        "-X",
        "--exclude-queues",
        "-I",
        "--include",
        "-l",
        "--loglevel",
        "--logfile",
        "--prefetch-multiplier",
        "--autoscale",
        "--time-limit",
        "--soft-time-limit",
        "--max-tasks-per-child",
        "--max-memory-per-child",
        "-O",
        "--optimization",
        "--reload-dir",
    ]
)
_VALUED = _WORKERS | {"-A", "--app", "-b", "--broker", "--result-backend", "--workdir", "--config"}


def arrange(argv: Sequence[str]) -> list[str]:
    """Put the sub-command first, wherever it was written; options without one mean `worker`."""
    line = list(argv)
    position = 0
    while position < len(line):
        word = line[position]
        if not word.startswith("-") or word == "-":
            return [word, *line[:position], *line[position + 1 :]]
        if word in _VALUED:
            position += 2
        elif word in _FLAGS or _carries_value(word):
            position += 1
        else:
            return _with_a_stranger(line)
    if not line or _PRINTS.intersection(line):
        return line
    return ["worker", *line]


def _with_a_stranger(line: list[str]) -> list[str]:
    """A line with an option nobody knows, put so that the parser of the right sub-command complains about it."""
    named = next((word for word in line if word in COMMANDS), "")
    if named:
        line.remove(named)
        return [named, *line]
    of_worker = any(word in _WORKERS or _carries_value(word) for word in line)
    return ["worker", *line] if of_worker else line


def _carries_value(word: str) -> bool:
    if word.startswith("--"):
        return "=" in word and word.partition("=")[0] in _VALUED
    return word[:2] in _VALUED and len(word) > 2


def pool_of(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, str]:
    """Find the pool of a worker's line, and where it was said: "-P", "GREENQ_POOL", a file, or "default".

    Raises:
        ConfigError: a configuration file cannot be read.
    """
    said = option(argv, "-P", "--pool")
    if said:
        return said, "-P"
    for variable in _POOL_VARIABLES:
        if environ.get(variable):
            return environ[variable], variable
    folder = Path(option(argv, "", "--workdir") or ".").resolve()
    config = option(argv, "", "--config") or environ.get("GREENQ_CONFIG", "")
    tables = [configfile.nearest(folder)]
    if configfile.is_file(config):
        tables.insert(0, (folder / config, configfile.read(folder / config)))
    for path, table in filter(None, tables):
        if pool := table.get("pool") or table.get("worker_pool"):
            return str(pool), str(path)
    return DEFAULT_POOL, "default"


def option(argv: Sequence[str], short: str, long: str) -> str:
    """The value an option was last given in `argv`, in any of its spellings; "" if it was not."""
    value = ""
    words = iter(argv)
    for word in words:
        if word == "--":
            break
        if word == long or (short and word == short):
            value = next(words, "")
        elif word.startswith(long + "="):
            value = word[len(long) + 1 :]
        elif short and word.startswith(short) and not word.startswith("--"):
            value = word[len(short) :].removeprefix("=")
        elif word in _VALUED:
            next(words, None)
    return value
