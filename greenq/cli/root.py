"""The top of the command line: the table of sub-commands, its help, and errors as one line."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from greenq import __version__
from greenq.cli.state import UNAVAILABLE, State, common_options, format_sections, suggestion
from greenq.exceptions import BadArgument, BrokerError, ConfigError, GreenqError, NoReply, UnknownCommand

USAGE = 2
# A group named without a command: its message is its help. Before click 8.2 the help was printed, and that was all.
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Entry(NamedTuple):
    """One sub-command: where it is, under which heading it is listed, and its line of help."""

    name: str
    where: str  # "module:attribute", imported when it is asked for
    section: str
    help: str


TABLE = (
    Entry("worker", "greenq.cli.running:worker", "Run", "Run a worker."),
    Entry("status", "greenq.cli.asking:status", "Ask and steer", "Show which workers answer."),
    Entry("inspect", "greenq.cli.asking:inspect", "Ask and steer", "Ask workers what they do."),
    Entry("control", "greenq.cli.asking:control", "Ask and steer", "Change what workers do."),
    Entry("call", "greenq.cli.sending:call", "Tasks and queues", "Send a task."),
    Entry("result", "greenq.cli.sending:result", "Tasks and queues", "Wait for a task's result and print it."),
    Entry("purge", "greenq.cli.sending:purge", "Tasks and queues", "Delete what waits in queues."),
)

EPILOG = """\b
Examples:
  greenq -A proj worker -P gevent -c 500
  greenq -A proj call proj.add -a '[2, 2]'
  greenq -A proj inspect active

\b
Exit codes: 0 done, 1 failed, 2 wrong line or settings, 69 no broker or no worker answered."""


class Root(click.Group):
    """Loads a sub-command when it is asked for, so that help costs nothing but click."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return [entry.name for entry in TABLE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        for entry in TABLE:
            if entry.name == cmd_name:
                module, _, attribute = entry.where.partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        known = self.list_commands(ctx)
        if args and args[0] not in known:
            near = suggestion(args[0], known)
            raise click.UsageError(f"no command {args[0]!r}{near or '; there are ' + ', '.join(known)}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for entry in TABLE:
            sections.setdefault(entry.section, []).append((entry.name, entry.help))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        format_sections(self, ctx, formatter)


def make_root() -> Root:
    """Build the top command."""
    root = Root(
        "greenq",
        help="A task-queue worker on green threads that speaks Celery's wire protocols.",
        epilog=EPILOG,
        params=list(common_options()),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(__version__, message="greenq %(version)s")(root)


def run(argv: Sequence[str], pool: str, pool_source: str, zygote: Any = None) -> int:
    """Run a command line and return its exit code; errors are one line on standard error.

    Args:
        argv: arranged by `scan.arrange`.
        pool: what this process is patched for, if the command is `worker`.
        pool_source: where that was said.
        zygote: forked before anything was patched, if the pool is prefork.
    """
    state = State(pool=pool, pool_source=pool_source, zygote=zygote, no_color=bool(os.environ.get("NO_COLOR")))
    try:
        code = make_root().main(
            args=list(argv),
            prog_name="greenq",
            standalone_mode=False,
            obj=state,
            color=False if state.no_color else None,
        )
    except (click.ClickException, click.Abort, GreenqError) as exc:
        if isinstance(exc, _NO_ARGUMENTS):
            click.echo(exc.format_message(), err=True)
            return USAGE
        if state.traceback:
            traceback.print_exc()
        text, number = explain(exc)
        start = "\n" if isinstance(exc, click.Abort) else ""  # a prompt was left in the middle of its line
        click.echo(f"{start}greenq: {text}", err=True)
        return number
    return code if isinstance(code, int) else 0


def explain(exc: Exception) -> tuple[str, int]:
    """Say an error in one line, with its exit code."""
    if isinstance(exc, click.UsageError):
        path = exc.ctx.command_path if exc.ctx else "greenq"
        return f"{_plain(exc.format_message())} (see {path} --help)", USAGE
    if isinstance(exc, click.ClickException):
        return _plain(exc.format_message()), exc.exit_code
    if isinstance(exc, click.Abort):
        return "aborted", 1
    if isinstance(exc, BrokerError):
        return f"{exc}. Is the broker running, and is the URL right?", UNAVAILABLE
    if isinstance(exc, NoReply):
        return str(exc), UNAVAILABLE
    if isinstance(exc, (ConfigError, BadArgument, UnknownCommand)):
        return str(exc), USAGE
    return str(exc) or type(exc).__name__, 1


def _plain(message: str) -> str:
    """Click's sentence as ours: one line, a small letter in front, no full stop."""
    line = " ".join(message.split()).rstrip(".")
    return line[:1].lower() + line[1:] if line[1:2].islower() else line
