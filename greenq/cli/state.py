"""What sub-commands share: the options that may stand anywhere, the app they lead to, typed values."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from greenq.exceptions import AppNotFound

if TYPE_CHECKING:
    from greenq.app.base import GreenQ
    from greenq.app.loader import AppSource


@dataclass(slots=True)
class State:
    """What the line said. Options before and after the sub-command fill the same fields; the last wins."""

    pool: str = "gevent"
    pool_source: str = "default"
    zygote: Any = None  # of prefork: `greenq.pools._prefork.zygote.Zygote`
    app: str | None = None
    broker: str | None = None
    result_backend: str | None = None
    workdir: str | None = None
    config: str | None = None
    no_color: bool = False
    quiet: bool = False
    traceback: bool = False
    destination: tuple[str, ...] = ()
    timeout: float | None = None
    json: bool = False
    strict: bool = False

    def load_app(self, *, bare: bool = False) -> GreenQ:
        """Find and import the app, and lay the line's options over its settings.

        `bare` allows an app without tasks when only a broker was named: enough to ask and to purge.

        Raises:
            AppNotFound: naming what was tried, or the line of the user's code that failed.
        """
        try:
            return self.source().load()
        except AppNotFound:
            if not (bare and self.broker and not self.app):
                raise
        from greenq.app.base import GreenQ

        app = GreenQ("greenq", broker=self.broker)
        self.source().lay_over(app)
        return app

    def source(self, include: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> AppSource:
        """What decides which app is loaded, for this process and for those that are to load the same."""
        if self.broker:
            os.environ["GREENQ_BROKER_URL"] = self.broker
        if self.result_backend:
            os.environ["GREENQ_RESULT_BACKEND"] = self.result_backend
        from greenq.app.loader import AppSource

        config = self.config or os.environ.get("GREENQ_CONFIG") or os.environ.get("CELERY_CONFIG_MODULE")
        return AppSource(self.app, config, tuple(include), dict(settings or {}))


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is None or value is False or value == () or param.name is None:
        return
    state = ctx.ensure_object(State)
    if isinstance(value, tuple):
        value = (*getattr(state, param.name), *value)
    if param.name == "workdir":
        os.chdir(value)
    setattr(state, param.name, value)
    if param.name == "no_color":
        ctx.find_root().color = False


def remembered(*names: str, **attributes: Any) -> click.Option:
    """An option whose value goes into the State."""
    return SectionOption(list(names), expose_value=False, callback=_remember, **attributes)


class SectionOption(click.Option):
    """An option that help lists under a heading of its own."""

    def __init__(self, *args: Any, section: str = "Options", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help groups its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        format_sections(self, ctx, formatter)


def format_sections(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write a command's options under their headings, in the order in which these first appear.

    What it takes by position stands in its usage line.
    """
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and isinstance(param, click.Option):
            sections.setdefault(getattr(param, "section", "Options"), []).append(record)
    for title in sorted(sections, key=lambda title: title == COMMON):
        with formatter.section(title):
            formatter.write_dl(sections[title])


COMMON = "Options of every command"
UNAVAILABLE = 69  # no broker, or nobody answered; EX_UNAVAILABLE, as Celery


def common_options() -> list[click.Option]:
    """The options that may stand before or after the sub-command."""
    path = click.Path(exists=True, file_okay=False)
    return [
        remembered(
            *("-A", "--app"),
            metavar="MODULE[:ATTR]",
            is_eager=True,  # before --help, which lists the commands of the app too
            section=COMMON,
            help="The app; else GREENQ_APP, app under [tool.greenq] in pyproject.toml, or tasks.py, app.py, "
            "celery.py here.",
        ),
        remembered(
            *("-b", "--broker"),
            metavar="URL",
            section=COMMON,
            help="The broker, over GREENQ_BROKER_URL and settings.",
        ),
        remembered("--result-backend", metavar="URL", section=COMMON, help="The result store, likewise."),
        remembered("--workdir", type=path, is_eager=True, section=COMMON, help="Change to this directory first."),
        remembered(
            "--config",
            metavar="FILE.toml|MODULE",
            section=COMMON,
            help="Settings over those of the app and of [tool.greenq] in pyproject.toml; also GREENQ_CONFIG.",
        ),
        remembered("-C", "--no-color", is_flag=True, section=COMMON, help="No colour; NO_COLOR does the same."),
        remembered("-q", "--quiet", is_flag=True, section=COMMON, help="No banner, no closing lines."),
        remembered("--traceback", is_flag=True, section=COMMON, help="Show where an error came from."),
    ]


def with_common_options(command: click.Command) -> click.Command:
    """Add them to a command."""
    command.params.extend(common_options())
    return command


class Word(click.ParamType):  # type: ignore[type-arg]  # it takes an argument only since click 8.4
    """The base of our own kinds of values."""


class Choice(Word):
    """One of several words, with a suggestion for a mistyped one, and a reason for those not offered yet."""

    name = "choice"

    def __init__(self, choices: tuple[str, ...], later: tuple[str, ...] = (), *, upper: bool = False) -> None:
        self.choices = choices
        self.later = later
        self.upper = upper

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """See click."""
        return f"[{'|'.join(self.choices)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        word = str(value).upper() if self.upper else str(value)
        if word in self.choices:
            return word
        if word in self.later:
            self.fail(f"{word} is not in this version yet; there are {', '.join(self.choices)}", param, ctx)
        near = suggestion(word, (*self.choices, *self.later))
        return self.fail(f"{value!r} is none of {', '.join(self.choices)}{near}", param, ctx)


class Names(Word):
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """See click."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


def suggestion(word: str, known: tuple[str, ...] | list[str]) -> str:
    """`; did you mean 'x'?` where something known is near, else nothing."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
