"""`greenq inspect`, `greenq control` and `greenq status`: built from the command registry."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from greenq.cli.state import (
    UNAVAILABLE,
    SectionCommand,
    SectionOption,
    State,
    common_options,
    format_sections,
    remembered,
    suggestion,
    with_common_options,
)
from greenq.cli.tables import as_json, render
from greenq.control.arguments import Parameter, describe
from greenq.control.client import Control, Reply
from greenq.control.registry import Command, Kind, default_registry
from greenq.exceptions import GreenqError, NoReply
from greenq.log import printable

ASKING = "Asking"
OWN = "The app's own"
_RESERVED = frozenset({"app", "broker", "config", "destination", "json", "quiet", "strict", "timeout", "workdir"})


def asking_options() -> list[click.Option]:
    """The options of everything that asks workers."""
    return [
        remembered(
            *("-d", "--destination"),
            multiple=True,
            metavar="NODE,...",
            section=ASKING,
            help="Ask these nodes only; may be given more than once.",
        ),
        remembered(
            *("-t", "--timeout"),
            type=float,
            metavar="SECONDS",
            section=ASKING,
            help="Wait this long. [default: 1.0]",
        ),
        remembered("-j", "--json", is_flag=True, section=ASKING, help="Print JSON."),
        remembered("--strict", is_flag=True, section=ASKING, help="Exit 1 on an error reply or a silent node."),
    ]


class Asker(click.Group):
    """`inspect` or `control`: a sub-command for each command of the registry, the app's own included."""

    def __init__(self, kind: Kind, summary: str) -> None:
        listing = click.Option(
            ["--list"],
            is_flag=True,
            expose_value=False,
            callback=self._list,
            help="List the commands.",
        )
        super().__init__(kind, help=summary, params=[*asking_options(), listing, *common_options()])
        self.kind: Kind = kind

    def commands_here(self, ctx: click.Context, *, of_app: bool) -> list[Command]:
        """The visible commands of this kind; `of_app` imports the app for its own."""
        if of_app:
            ctx.ensure_object(State).load_app(bare=True)
        return [command for command in default_registry().of(self.kind) if command.visible]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click. An app that was named is imported, since it may bring commands."""
        of_app = bool(ctx.ensure_object(State).app or os.environ.get("GREENQ_APP"))
        return [command.name for command in self.commands_here(ctx, of_app=of_app)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click. The app is imported only for a name that is not built in."""
        name = cmd_name.replace("-", "_")
        for of_app in (False, True):
            for command in self.commands_here(ctx, of_app=of_app):
                if name in (command.name, command.alias):
                    return _as_click(command)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        name = args[0]
        try:
            found = self.get_command(ctx, name)
        except GreenqError:
            # The name may be the app's; where there is no app, a near built-in one is the likelier cure.
            found = None
            if not self._near(name):
                raise
        if found is None:
            other: Kind = "control" if self.kind == "inspect" else "inspect"
            if any(command.name == name for command in default_registry().of(other)):
                raise click.UsageError(f"{name!r} is of the other kind: greenq {other} {name}", ctx)
            raise click.UsageError(f"no {self.kind} command {name!r}{self._near(name)}", ctx)
        return name, found, args[1:]

    def _near(self, name: str) -> str:
        return suggestion(name, [command.name for command in default_registry().of(self.kind) if command.visible])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click. The commands stand under what they are about, an app's own by themselves."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = default_registry().get(name)
            sections.setdefault(_topic(command), []).append((name, command.help))
        for title in sorted(sections, key=lambda title: (title == OWN, title)):
            with formatter.section(title):
                formatter.write_dl(sections[title])
        format_sections(self, ctx, formatter)

    def _list(self, ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value:
            for name in self.list_commands(ctx):
                command = default_registry().get(name)
                click.echo(f"{name} {_usage(command)}".rstrip())
            ctx.exit(0)


def _topic(command: Command) -> str:
    """What a built-in command is about: the module it stands in says so."""
    return OWN if command.own else command.run.__module__.rpartition(".")[2].capitalize()


def _usage(command: Command) -> str:
    if command.signature is not None:
        return command.signature
    words = []
    for parameter in command.positional():
        word = parameter.name.upper() + ("..." if parameter.name == command.variadic else "")
        words.append(word if parameter.required else f"[{word}]")
    return " ".join(words)


class CommandLine(SectionCommand):
    """The sub-command that sends `command`."""

    command: Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        rows = [(each.name.upper(), _described(each, self.command)) for each in self.command.positional()]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def _described(parameter: Parameter, command: Command) -> str:
    if parameter.name == command.variadic:
        return "one or more" if parameter.required else "any number"
    kind = describe(parameter.kind)
    return kind if parameter.required or parameter.default is None else f"{kind} [default: {parameter.default}]"


def _as_click(command: Command) -> click.Command:
    words = click.Argument(["words"], nargs=-1, metavar=_usage(command) or "")
    options: list[click.Parameter] = []
    for parameter in command.named():
        flag = f"{'arg-' if parameter.name in _RESERVED else ''}{parameter.name}".replace("_", "-")
        attributes: dict[str, Any] = {"is_flag": True} if parameter.is_flag else {"metavar": "VALUE"}
        wanted = "" if parameter.is_flag else describe(parameter.kind)
        options.append(SectionOption([f"--{flag}", parameter.name], help=wanted, default=None, **attributes))

    def callback(words: Sequence[str] = (), **named: Any) -> int:
        arguments = command.read_words(words)
        for parameter in command.named():
            value = named.get(parameter.name)
            if value is not None and value is not False:
                try:
                    arguments[parameter.name] = value if value is True else parameter.read(value)
                except (TypeError, ValueError) as exc:
                    raise click.BadParameter(str(exc), param_hint=f"--{parameter.name}") from None
        return ask(command, arguments)

    takes_words = [words] if command.positional() else []
    made = CommandLine(
        command.name,
        callback=callback,
        help=command.help,
        params=[*takes_words, *options, *asking_options(), *common_options()],
    )
    made.command = command
    return made


def _nodes(state: State) -> list[str]:
    """The nodes that were named, each once, however often and with however many commas."""
    words = (name.strip() for words in state.destination for name in words.split(","))
    return list(dict.fromkeys(name for name in words if name))


def ask(command: Command, arguments: dict[str, Any]) -> int:
    """Send a command, print what comes back, and return the exit code.

    Raises:
        NoReply: when nobody answered.
    """
    state = click.get_current_context().ensure_object(State)
    app = state.load_app(bare=True)
    nodes = _nodes(state)
    timeout = command.default_timeout if state.timeout is None else state.timeout
    with Control(app) as client:
        if command.replies:
            shown = None if state.json else lambda reply: _print_reply(command.name, reply)
            replies = client.broadcast(
                command.name, arguments, destination=nodes, reply=True, timeout=timeout, callback=shown
            )
        else:
            replies = _tell(client, command, arguments, nodes, timeout, state)
        answered = [node for reply in replies or () for node in reply]
        if state.json:
            _print_json(command, replies or [])
        missing, there = _missing(client, nodes, answered, timeout)
    if not answered:
        if there:
            return UNAVAILABLE
        raise NoReply(_nobody(app, timeout))
    if command.kind == "inspect" and not state.json and not state.quiet:
        click.echo(f"\n{_online(len(answered))}")
    failed = any(isinstance(data, dict) and "error" in data for reply in replies or () for data in reply.values())
    return 1 if state.strict and (failed or missing) else 0


def _missing(
    client: Control, nodes: Sequence[str], answered: Sequence[str], timeout: float
) -> tuple[list[str], list[str]]:
    """Say which nodes that were named did not answer, and what they may be called: (those, all that are there)."""
    missing = [node for node in nodes if node not in answered]
    there = [node for reply in client.ping(timeout=timeout) for node in reply] if missing else []
    for node in missing if there else ():
        click.echo(f"greenq: no reply from {printable(node)}{_near_node(node, there)}", err=True)
    return missing, there


def _tell(
    client: Control,
    command: Command,
    arguments: dict[str, Any],
    nodes: list[str],
    timeout: float,
    state: State,
) -> list[Reply]:
    """Send a command that nobody answers, to those who answer a ping: the sender learns whom it reached."""
    there = [node for reply in client.ping(nodes, timeout=timeout) for node in reply]
    if there:
        client.broadcast(command.name, arguments, destination=nodes)
    replies: list[Reply] = [{node: {"ok": f"{command.name} sent"}} for node in there]
    if not state.json:
        for reply in replies:
            _print_reply(command.name, reply)
    return replies


def _print_reply(name: str, reply: Reply) -> None:
    for node, data in reply.items():
        bad = isinstance(data, dict) and "error" in data
        mark = click.style("ERROR", fg="red") if bad else click.style("OK", fg="green")
        click.echo(f"->  {printable(node)}: {mark}")
        text = render(name, data, _width())
        if text:
            click.echo(text)


def _width() -> int | None:
    """The columns of the terminal; None where a file or a pipe takes what is printed."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_json(command: Command, replies: list[Reply]) -> None:
    merged = {node: data for reply in replies for node, data in reply.items()}
    click.echo(as_json(merged if command.kind == "inspect" else replies))


def _near_node(node: str, there: Sequence[str]) -> str:
    short = [each for each in there if each.partition("@")[0] == node.partition("@")[0]]
    near = short[:1] or difflib.get_close_matches(node, there, 1)
    if near and near[0] != node:
        return f"; did you mean {near[0]!r}?"
    return f"; there {'is' if len(there) == 1 else 'are'} {', '.join(sorted(there))}"


def _nobody(app: Any, timeout: float) -> str:
    exchange = app.conf.control_exchange
    return (
        f"no worker answered within {timeout:g} s on {app.broker.shown} (control_exchange {exchange!r}). "
        "Is one running there? A longer --timeout waits longer"
    )


def _online(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'} online."


def _status() -> int:
    state = click.get_current_context().ensure_object(State)
    app = state.load_app(bare=True)
    nodes = _nodes(state)
    timeout = 1.0 if state.timeout is None else state.timeout
    printed: Callable[[Reply], object] | None = None if state.json else _print_status
    with Control(app) as client:
        replies = client.ping(nodes, timeout=timeout, callback=printed)
        missing, there = _missing(client, nodes, [node for reply in replies for node in reply], timeout)
    found = {node: data for reply in replies for node, data in reply.items()}
    if state.json:
        click.echo(as_json(found))
    if not found:
        if there:
            return UNAVAILABLE
        raise NoReply(_nobody(app, timeout))
    if not state.quiet:
        # On standard error with --json, so that what is on standard output stays JSON.
        click.echo(f"\n{_online(len(found))}", err=state.json)
    return 1 if state.strict and missing else 0


def _print_status(reply: Reply) -> None:
    for node in reply:
        click.echo(f"{printable(node)}: {click.style('OK', fg='green')}")


inspect = Asker("inspect", "Ask workers what they do.")
control = Asker("control", "Change what workers do.")
status = with_common_options(
    SectionCommand("status", callback=_status, help="Show which workers answer.", params=list(asking_options()))
)
