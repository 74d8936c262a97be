"""Print docs/reference/cli.md from the commands themselves: `scripts/cli_page.py > docs/reference/cli.md`."""

from __future__ import annotations

import re

import click

from greenq.cli.root import TABLE, make_root
from greenq.cli.state import COMMON, State

_HEAD = """# Command line

Made from the commands by `scripts/cli_page.py`; `greenq COMMAND --help` says the same.

`greenq [OPTIONS] COMMAND [ARGS]...`: options may stand before the command or after it, and options without a command
are those of `greenq worker`. What `inspect` and `control` ask for is described in [commands.md](commands.md); where
else settings may be said, in [configuration](../configuration.md).
"""

_CODES = """
## Exit codes

| code | when |
|---|---|
| 0 | done; a worker: stopped warmly, as asked |
| 1 | failed; a worker: ended by Ctrl-C |
| 2 | a mistake in the line or in the settings; nothing was started |
| 69 | no broker, or no worker answered |
| 70 | a worker that ended itself because part of it broke |
"""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _options(command: click.Command, context: click.Context, *, common: bool = False) -> list[str]:
    sections: dict[str, list[str]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        section = getattr(param, "section", "Options")
        wanted = isinstance(param, click.Option) and param.name != "help" and (section == COMMON) is common
        if record is None or not wanted:
            continue
        names, text = record
        sections.setdefault(section, []).append(f"| `{_cell(names)}` | {_cell(text)} |")
    lines = []
    for title, rows in sections.items():
        lines += ["", f"**{title}**", "", "| option | |", "|---|---|", *rows]
    return lines


def _described(command: click.Command, context: click.Context, level: int) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = ["", f"{'#' * level} {context.command_path}", "", f"`{context.command_path} {usage}`", ""]
    lines += [re.sub(r"[\b]\n", "", command.help or "").strip()]
    lines += _options(command, context)
    return lines


def page() -> str:
    """The whole page as Markdown."""
    root = make_root()
    context = click.Context(root, info_name="greenq", obj=State())
    lines = [_HEAD, "| command | |", "|---|---|"]
    lines += [f"| [{entry.name}](#greenq-{entry.name}) | {_cell(entry.help)} |" for entry in TABLE]
    lines += ["", f"## {COMMON}", *_options(root, context, common=True)[2:]]
    for entry in TABLE:
        command = root.get_command(context, entry.name)
        assert command is not None
        within = click.Context(command, parent=context, info_name=entry.name)
        lines += _described(command, within, 2)
        if isinstance(command, click.Group) and entry.name not in {"inspect", "control"}:
            for name in command.list_commands(within):
                found = command.get_command(within, name)
                assert found is not None
                lines += _described(found, click.Context(found, parent=within, info_name=name), 3)
    return "\n".join(lines) + "\n" + _CODES


if __name__ == "__main__":
    print(page(), end="")
