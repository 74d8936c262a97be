"""`greenq worker`: run a worker in this process."""

from __future__ import annotations

from typing import Any

import click

from greenq.cli.state import Choice, Names, SectionCommand, SectionOption, State, Word, with_common_options
from greenq.exceptions import ConfigError

POOLS = ("gevent", "solo")
LATER = ("eventlet", "prefork", "processes", "threads")
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


def _run(**given: Any) -> int:
    state = click.get_current_context().ensure_object(State)
    pool = given.pop("pool") or state.pool
    if pool != state.pool:
        raise ConfigError(
            f"the process is ready for the pool {state.pool} ({state.pool_source}), not {pool}: say it once"
        )
    app = state.load_app()
    if include := given.pop("include"):
        from greenq.app.loader import load_tasks

        app.conf.update(include=(*app.conf.include, *include), source="-I")
        load_tasks(app)
    wanted = app.conf.worker_pool
    if wanted and wanted != pool and state.pool_source == "default":
        raise ConfigError(
            f"the settings say worker_pool={wanted!r}, but the pool has to be known before they are "
            f"read: write -P {wanted}, GREENQ_POOL={wanted}, or pool under [tool.greenq] in pyproject.toml"
        )
    from greenq import naming
    from greenq.pools.table import DEFAULT_SIZE
    from greenq.worker.options import WorkerOptions
    from greenq.worker.worker import Worker

    node = naming.node_name(given.pop("hostname"))
    options = {name: value for name, value in given.items() if value not in (None, ())}
    if options.get("concurrency") == "auto":
        options["concurrency"] = DEFAULT_SIZE[pool]
    if "logfile" in options:
        options["logfile"] = naming.expand(options["logfile"], node)
    return Worker(
        app,
        WorkerOptions(pool=pool, hostname=node, quiet=state.quiet, **options),
    ).run()


def _option(*names: str, section: str, **attributes: Any) -> click.Option:
    return SectionOption(list(names), section=section, **attributes)


worker = with_common_options(
    SectionCommand(
        "worker",
        callback=_run,
        help="Run a worker.",
        epilog="Example: greenq -A proj worker -P gevent -c 500",
        params=[
            _option(
                *("-P", "--pool"),
                type=Choice(POOLS, LATER),
                section="Common",
                help="Where tasks run; also GREENQ_POOL, or pool under [tool.greenq] in pyproject.toml. "
                "[default: gevent]",
            ),
            _option(
                *("-c", "--concurrency"),
                type=Concurrency(),
                section="Common",
                help="Tasks at once; 'auto' is what suits the pool, 0 what the settings say. "
                "[default: worker_concurrency]",
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
            _option("--purge", is_flag=True, section="Tasks", help="Delete what waits in the queues first."),
        ],
    )
)
