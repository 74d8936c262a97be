"""`greenq worker`: run a worker in this process."""

from __future__ import annotations

from typing import Any

import click

from greenq.cli.state import Choice, Names, SectionCommand, SectionOption, State, Word, with_common_options
from greenq.exceptions import ConfigError
from greenq.pools.table import POOLS

LATER = ("processes", "threads")
# Options that are settings too: they go over the app's, in every process that loads it.
SETTINGS = {
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
    "max_tasks_per_child": "worker_max_tasks_per_child",
    "max_memory_per_child": "worker_max_memory_per_child",
    "task_events": "worker_send_task_events",
    "statedb": "worker_state_db",
    "control_profile": "worker_control_profile",
}
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


class Concurrency(Word):
    """A number of slots, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """See click."""
        if value == "auto":
            return "auto"
        try:
            number = int(value)
        except ValueError:
            number = -1
        if number < 0:
            self.fail(f"{value!r} is neither a number of slots nor 'auto'", param, ctx)
        return number


class Bounds(Word):
    """One or two numbers of slots with a comma between them, in any order."""

    name = "max,min"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """See click."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not one or two numbers of slots: 50,5", param, ctx)
        from greenq.worker.choices import bounds

        try:
            return bounds(numbers)
        except ConfigError as exc:
            return self.fail(str(exc), param, ctx)


def _run(**given: Any) -> int:
    state = click.get_current_context().ensure_object(State)
    pool = given.pop("pool") or state.pool
    if pool != state.pool:
        raise ConfigError(
            f"the process is ready for the pool {state.pool} ({state.pool_source}), not {pool}: say it once"
        )
    if given["autoscale"] and given["concurrency"]:
        raise click.UsageError(
            "--autoscale says how many slots there are, so -c means nothing beside it: leave one of them out"
        )
    settings = {SETTINGS[name]: value for name in SETTINGS if (value := given.pop(name)) is not None}
    source = state.source(given.pop("include") or (), settings)
    app = source.load()
    wanted = app.conf.worker_pool
    if wanted and wanted != pool and state.pool_source == "default":
        if wanted not in POOLS:
            raise ConfigError(f"the settings say worker_pool={wanted!r}; name one of {', '.join(POOLS)} with -P")
        raise ConfigError(
            f"the settings say worker_pool={wanted!r}, but the pool has to be known before they are "
            f"read: write -P {wanted}, GREENQ_POOL={wanted}, or pool under [tool.greenq] in pyproject.toml"
        )
    from greenq import naming
    from greenq.worker.options import WorkerOptions
    from greenq.worker.worker import Worker

    node = naming.node_name(given.pop("hostname"))
    silent = given.pop("without_heartbeat")
    options = {name: value for name, value in given.items() if value not in (None, ())}
    if silent:
        options["heartbeat_interval"] = None
    if "logfile" in options:
        options["logfile"] = naming.expand(options["logfile"], node)
    return Worker(
        app,
        WorkerOptions(
            pool=pool, hostname=node, quiet=state.quiet, source=source, zygote=state.zygote, **options
        ),
    ).run()


def _option(*names: str, section: str, **attributes: Any) -> click.Option:
    return SectionOption(list(names), section=section, **attributes)


def _alone(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError("--reload-dir says what --reload watches: write both, or neither", ctx)


def _development() -> list[click.Option]:
    """What `cli.reloading` has taken out of the line before the worker reads it; here for the help."""
    return [
        _option(
            "--reload",
            is_flag=True,
            expose_value=False,
            section="Development",
            help="Start again, warmly, when a Python or TOML file here changes.",
        ),
        _option(
            "--reload-dir",
            metavar="DIRECTORY",
            expose_value=False,
            callback=_alone,
            section="Development",
            help="Watch this one instead; may be repeated.",
        ),
    ]


def _events() -> list[click.Option]:
    """What those who watch are told."""
    return [
        _option(
            *("-E", "--task-events"),
            is_flag=True,
            default=None,
            section="Events",
            help="Send an event for each step of each task. [default: worker_send_task_events]",
        ),
        _option(
            "--heartbeat-interval",
            type=click.FloatRange(min=0.1),
            metavar="SECONDS",
            section="Events",
            help="Between two events that say that the node lives. [default: 2]",
        ),
        _option("--without-heartbeat", is_flag=True, section="Events", help="Send no such events."),
    ]


def _memory() -> list[click.Option]:
    """What the node knows of revoked tasks when it starts, and what it hears of other nodes."""
    return [
        _option(
            *("-S", "--statedb"),
            metavar="PATH",
            section="Node",
            help="Keep revoked ids over restarts in this file; %n, %h, %p as in --logfile.",
        ),
        _option(
            "--without-mingle",
            is_flag=True,
            section="Node",
            help="Do not ask the other workers at start what is revoked.",
        ),
        _option(
            "--without-gossip",
            is_flag=True,
            section="Node",
            help="Take no part in elections among the workers (the command 'election').",
        ),
    ]


def _limits() -> list[click.Option]:
    """How long a task may take, and how long a child process may live."""
    seconds = click.FloatRange(min=0)
    count = click.IntRange(min=1)
    return [
        _option(
            "--time-limit",
            type=seconds,
            metavar="SECONDS",
            section="Limits",
            help="End a task after this long. [default: task_time_limit]",
        ),
        _option(
            "--soft-time-limit",
            type=seconds,
            metavar="SECONDS",
            section="Limits",
            help="Raise SoftTimeLimitExceeded in it after this long. [default: task_soft_time_limit]",
        ),
        _option(
            "--max-tasks-per-child",
            type=count,
            metavar="N",
            section="Limits",
            help="prefork: replace a child after so many tasks. [default: worker_max_tasks_per_child]",
        ),
        _option(
            "--max-memory-per-child",
            type=count,
            metavar="KIB",
            section="Limits",
            help="prefork: replace a child that has needed more. [default: worker_max_memory_per_child]",
        ),
        _option(
            *("-O", "--optimization"),
            type=Choice(("fair", "default")),
            section="Limits",
            help="prefork: 'default' hands a busy child its next tasks already. [default: fair]",
        ),
    ]


worker = with_common_options(
    SectionCommand(
        "worker",
        callback=_run,
        help="Run a worker.",
        epilog="Example: greenq -A proj worker -P gevent -c 500",
        params=[
            _option(
                *("-P", "--pool"),
                type=Choice(tuple(POOLS), LATER),
                section="Common",
                help="Where tasks run; also GREENQ_POOL, or pool under [tool.greenq] in pyproject.toml. "
                "[default: gevent]",
            ),
            _option(
                *("-c", "--concurrency"),
                type=Concurrency(),
                section="Common",
                help="Tasks at once; 'auto' is what suits the pool: a child for each CPU with prefork, 1 with solo, "
                "else 100; 0 is what the settings say. [default: worker_concurrency, else auto]",
            ),
            _option(
                "--autoscale",
                type=Bounds(),
                metavar="MAX[,MIN]",
                section="Common",
                help="As many slots as the work needs, between these; MIN is 1 unless given.",
            ),
            _option(
                "-Q",
                "--queues",
                type=Names(),
                metavar="A,B",
                section="Common",
                help="Consume from these only.",
            ),
            _option(
                *("-l", "--loglevel"),
                type=Choice(LEVELS, upper=True),
                section="Common",
                help="Log this and above. [default: WARNING]",
            ),
            _option(
                *("-n", "--hostname"),
                metavar="NAME",
                section="Node",
                help="Node name; %h, %n, %d: host name, its first part, the rest. [default: greenq@%h]",
            ),
            _option(
                "--logfile",
                metavar="PATH",
                section="Node",
                help="Log to a file; %n, %h, %p as in the node name.",
            ),
            _option(
                "-X",
                "--exclude-queues",
                type=Names(),
                metavar="A,B",
                section="Tasks",
                help="But not from these.",
            ),
            _option(
                "-I",
                "--include",
                type=Names(),
                metavar="A,B",
                section="Tasks",
                help="Import these modules too.",
            ),
            _option(
                "--prefetch-multiplier",
                type=click.IntRange(min=0),
                metavar="N",
                section="Tasks",
                help="Tasks reserved a slot. [default: worker_prefetch_multiplier]",
            ),
            _option(
                "--control-profile",
                type=Choice(("full", "standard", "read", "off")),
                section="Node",
                help="Which remote commands to obey. [default: worker_control_profile, full]",
            ),
            *_memory(),
            *_limits(),
            *_events(),
            *_development(),
            _option("--purge", is_flag=True, section="Tasks", help="Delete what waits in the queues first."),
        ],
    )
)
