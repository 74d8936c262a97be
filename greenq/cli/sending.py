"""`greenq call`, `greenq result` and `greenq purge`: one task out, one result in, queues emptied."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import click

from greenq.cli.state import Names, SectionCommand, SectionOption, State, Word, with_common_options
from greenq.cli.tables import plain
from greenq.exceptions import ResultTimeout

WHEN = "When"
WHERE = "Where"


class JsonValue(Word):
    """JSON of one kind."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            read = json.loads(value) if isinstance(value, str) else value
        except ValueError as exc:
            self.fail(f"{value!r} is not {self.name}: {exc}", param, ctx)
        if not isinstance(read, self.kind):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return read


class Moment(Word):
    """A moment in ISO 8601; with `seconds`, a number of seconds from now too."""

    name = "moment"

    def __init__(self, *, seconds: bool = False) -> None:
        self.seconds = seconds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if not isinstance(value, str):
            return value
        if self.seconds:
            with contextlib.suppress(ValueError):  # what is no number has to be a moment
                return float(value)
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            wanted = "seconds or a moment" if self.seconds else "a moment"
            self.fail(f"{value!r} is not {wanted} such as 2026-01-31T12:00:00+00:00", param, ctx)


def _call(name: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> None:
    app = click.get_current_context().ensure_object(State).load_app(bare=True)
    given = {option: value for option, value in options.items() if value is not None}
    sent = app.send_task(name, args, kwargs, **given)
    click.echo(sent.id)
    app.close()


def _result(task_id: str, timeout: float | None) -> int:
    state = click.get_current_context().ensure_object(State)
    app = state.load_app(bare=True)
    handle = app.AsyncResult(task_id)
    try:
        handle.get(timeout, propagate=False)
        failed, value, trace = not handle.successful(), handle.result, handle.traceback
        ended = handle.state
    except ResultTimeout:
        click.echo(f"greenq: {task_id} is {handle.state} after {timeout:g} s", err=True)
        return 1
    finally:
        app.close()
    if not failed:
        click.echo(plain(value))
        return 0
    if state.traceback and trace:
        click.echo(trace.rstrip())
    else:
        click.echo(f"{ended}: {type(value).__name__}: {value}")
    return 1


def _purge(queues: tuple[str, ...] | None, exclude_queues: tuple[str, ...] | None, force: bool) -> None:  # noqa: FBT001
    state = click.get_current_context().ensure_object(State)
    app = state.load_app(bare=True)
    from greenq.broker.publisher import open_publisher
    from greenq.control.client import known_queues

    wanted = queues or tuple(known_queues(app.conf))
    names = [name for name in wanted if name not in (exclude_queues or ())]
    if not names:
        raise click.UsageError("no queue is left to purge")
    if not force:
        click.confirm(
            f"Delete all that waits in {', '.join(names)} on {app.broker.shown}? This cannot be undone.",
            abort=True,
            err=True,
        )
    publisher = open_publisher(app.broker.url, app.conf)
    purged = 0
    try:
        with click.progressbar(
            names,
            label="Purging",
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
            item_show_func=lambda name: name or "",
        ) as bar:
            for name in bar:
                purged += publisher.purge(name)
    finally:
        publisher.close()
    click.echo(_purged(purged, len(names)))


def _purged(messages: int, queues: int) -> str:
    known = f"{queues} known task queue{'' if queues == 1 else 's'}"
    if not messages:
        return f"No messages purged from {queues} queue{'' if queues == 1 else 's'}."
    return f"Purged {messages} message{'' if messages == 1 else 's'} from {known}."


def _option(*names: str, section: str, **attributes: Any) -> click.Option:
    return SectionOption(list(names), section=section, **attributes)


call = with_common_options(
    SectionCommand(
        "call",
        callback=_call,
        help="Send a task and print its id. The app need not know the task.",
        epilog="Example: greenq -A proj call proj.add -a '[2, 2]' --countdown 10",
        params=[
            click.Argument(["name"]),
            _option(
                "-a",
                "--args",
                type=JsonValue(list, "a JSON array"),
                default="[]",
                section="Call",
                help="Arguments.",
            ),
            _option(
                *("-k", "--kwargs"),
                type=JsonValue(dict, "a JSON object"),
                default="{}",
                section="Call",
                help="Arguments by name.",
            ),
            _option("--serializer", metavar="NAME", section="Call", help="Serializer. [default: task_serializer]"),
            _option(
                "--countdown",
                type=float,
                metavar="SECONDS",
                section=WHEN,
                help="Not before this many seconds.",
            ),
            _option("--eta", type=Moment(), metavar="ISO8601", section=WHEN, help="Not before this moment."),
            _option(
                "--expires",
                type=Moment(seconds=True),
                metavar="SECONDS|ISO8601",
                section=WHEN,
                help="Not after this.",
            ),
            _option("--queue", metavar="NAME", section=WHERE, help="Queue."),
            _option("--exchange", metavar="NAME", section=WHERE, help="Exchange."),
            _option("--routing-key", metavar="KEY", section=WHERE, help="Routing key."),
        ],
    )
)

result = with_common_options(
    SectionCommand(
        "result",
        callback=_result,
        help="Wait for a task's result and print it; exit code 1 if it failed. --traceback shows why.",
        params=[
            click.Argument(["task_id"]),
            _option("--timeout", type=float, metavar="SECONDS", section="Result", help="Wait no longer than this."),
        ],
    )
)

purge = with_common_options(
    SectionCommand(
        "purge",
        callback=_purge,
        help="Delete what waits in queues; running and reserved tasks stay.",
        params=[
            _option("-f", "--force", is_flag=True, section="Purge", help="Do not ask."),
            _option(
                "-Q",
                "--queues",
                type=Names(),
                metavar="A,B",
                section="Purge",
                help="These. [default: all known]",
            ),
            _option("-X", "--exclude-queues", type=Names(), metavar="A,B", section="Purge", help="But not these."),
        ],
    )
)
