"""What settings and command line together want of the pool; what makes no sense is refused here, at start."""

from __future__ import annotations

from dataclasses import dataclass

from greenq import hostinfo
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.pools import table
from greenq.pools.base import PoolOptions
from greenq.worker.options import WorkerOptions

PROCESSES = frozenset({"prefork"})  # pools whose slots are child processes

# What a remote command may grow a pool to; whoever starts the worker may ask for more. A slot of a green pool
# costs ten kilobytes, a child process ten megabytes.
MOST_SLOTS = 50_000
USUAL_MULTIPLIER = 4
MOST_CHILDREN, MOST_CHILDREN_PER_CPU = 64, 32


@dataclass(frozen=True, slots=True)
class Size:
    """How many slots a pool begins with, the bounds when it scales, and why, for people."""

    first: int
    most: int  # what prefetch is reckoned from
    least: int
    words: str
    scales: bool = False


def size_of(options: WorkerOptions, conf: Settings) -> Size:
    """Work out the size: --autoscale, else -c, else worker_concurrency, else what suits the pool.

    Raises:
        ConfigError: the pool cannot scale, or not so far.
    """
    name = options.pool
    if options.autoscale is not None:
        most, least = bounds(options.autoscale)
        if name == "solo":
            raise ConfigError(
                "the solo pool has exactly one slot, so --autoscale means nothing to it: "
                "use -P gevent, -P eventlet or -P prefork, or leave --autoscale out"
            )
        if name in PROCESSES and most > (bound := table.load(name).MOST_SLOTS):
            raise ConfigError(f"the {name} pool has at most {bound} children: --autoscale={most},{least} is too much")
        return Size(least, most, least, f"{least} to {_slots(name, most)} (autoscale)", scales=True)
    wanted = options.concurrency or conf.worker_concurrency
    if wanted and wanted != "auto":
        return Size(wanted, wanted, wanted, _slots(name, wanted))
    default = default_size(name)
    why = " (one per CPU)" if name in PROCESSES else ""
    return Size(default, default, default, _slots(name, default) + why)


def bounds(given: tuple[int, ...]) -> tuple[int, int]:
    """The most and the least of `--autoscale`, in whatever order; one number is the most, and the least is 1.

    Raises:
        ConfigError: for a maximum below 1, or more than two numbers.
    """
    if not 1 <= len(given) <= 2 or min(given) < 0 or max(given) < 1:
        raise ConfigError("--autoscale takes one or two numbers, the most and the least slots: 50,5")
    return max(given), max(1, min(given)) if len(given) == 2 else 1


def default_size(name: str) -> int:
    """The number of slots that suits a pool: as many child processes as CPUs, or what the table says."""
    return hostinfo.cpus() if name in PROCESSES else table.DEFAULT_SIZE[name]


def most_by_command(name: str) -> int:
    """How large a remote command may make the pool."""
    if name in PROCESSES:
        bound: int = table.load(name).MOST_SLOTS
        return min(bound, max(MOST_CHILDREN, MOST_CHILDREN_PER_CPU * hostinfo.cpus()))
    return MOST_SLOTS


def multiplier_of(options: WorkerOptions, conf: Settings) -> int:
    """Messages reserved a slot, the running one included; 0 is no limit."""
    chosen: int = options.prefetch_multiplier or conf.worker_prefetch_multiplier
    return max(0, chosen)


def multiplier_is_chosen(options: WorkerOptions, conf: Settings) -> bool:
    """Did the user say so, rather than leave it to the default?"""
    return bool(options.prefetch_multiplier) or conf.source("worker_prefetch_multiplier") != "default"


def pool_options(options: WorkerOptions, conf: Settings, size: int) -> PoolOptions:
    """What the pool is asked for, but for what only the worker can give it.

    Raises:
        ConfigError: naming the option or setting that makes no sense, and the cure.
    """
    check_limits(conf)
    check_start_method(conf)
    for name in ("worker_max_tasks_per_child", "worker_max_memory_per_child"):
        if (conf[name] or 0) < 0:
            raise ConfigError(f"{name} is {conf[name]} ({conf.source(name)}): write a positive number, or None")
    if options.optimization == "default" and options.pool not in PROCESSES:
        raise ConfigError(
            f"-O default hands a busy child process its next task; the {options.pool} pool has none: "
            "leave -O out, or use -P prefork"
        )
    # "No limit" cannot mean that one child holds the whole queue: then it is what it would be by default.
    ahead = (multiplier_of(options, conf) or USUAL_MULTIPLIER) - 1 if options.optimization == "default" else 0
    return PoolOptions(
        size,
        max_tasks=conf.worker_max_tasks_per_child or None,
        max_memory=conf.worker_max_memory_per_child or None,
        ahead=ahead,
        zygote=options.zygote,
        alive_timeout=conf.worker_proc_alive_timeout,
    )


def check_limits(conf: Settings) -> None:
    """Refuse a soft limit for all tasks that could never be seen.

    Raises:
        ConfigError: if it is above the hard one.
    """
    soft, hard = conf.task_soft_time_limit, conf.task_time_limit
    if soft and hard and soft > hard:
        raise ConfigError(
            f"task_soft_time_limit, {soft:g} s ({conf.source('task_soft_time_limit')}), is above "
            f"task_time_limit, {hard:g} s ({conf.source('task_time_limit')}): no task would ever see it"
        )


def check_start_method(conf: Settings) -> None:
    """Refuse any way to start child processes but the one there is.

    Raises:
        ConfigError: for any word but "fork".
    """
    method = conf.worker_pool_start_method
    if method != "fork":
        raise ConfigError(
            f"worker_pool_start_method is {method!r} ({conf.source('worker_pool_start_method')}): there is only "
            "'fork'. Children are forked from a process without threads or connections, so 'spawn' gains nothing"
        )


def _slots(name: str, count: int) -> str:
    one, many = ("child", "children") if name in PROCESSES else ("slot", "slots")
    return f"{count} {one if count == 1 else many}"
