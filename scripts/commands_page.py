"""Print docs/reference/commands.md: `scripts/commands_page.py > docs/reference/commands.md`.

Names, arguments, types and classes come from the registry of commands; what a reply means, and an example of it, from
docs/reference/replies.json, whose examples the tests hold against what workers answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from greenq.control.arguments import Parameter, describe
from greenq.control.registry import Command, default_registry

REPLIES = Path(__file__).parent.parent / "docs" / "reference" / "replies.json"

_HEAD = """# Remote commands

Made from the registry of commands by `scripts/commands_page.py`.

A command is sent to all nodes, to those named by `destination`, or to those whose name matches a `pattern`.
From a program: `app.control.inspect(destination).stats()`, `app.control.rate_limit("proj.fetch", "10/m")`, or
`app.control.broadcast(name, arguments, reply=True)` for any. From the prompt: `greenq inspect NAME`,
`greenq control NAME`.

Every node answers for itself: `{node: reply}`. What could not be done is `{"error": text}`; an argument that is
missing, unknown or of another type is such an error, and named. A command that changes something while a task keeps
the node's main loop from turning is answered `{"ok": "accepted: takes effect when NAME[ID] yields"}`.

**Access** says which profiles of `worker_control_profile` allow a command: `read` all but `off`, `limits` the
profiles `standard` and `full`, `full` only that one. "More with some arguments" means the next of these, then.

## Your own

A function in a module that the app imports. Its annotations, or Celery's `args`, check on the worker what is asked,
and make the sub-command of `greenq inspect` or `greenq control`; the first line of its docstring is the help.

```python
from greenq.control import control_command, inspect_command

@inspect_command
def current_prefetch_count(state):
    return {"prefetch_count": state.consumer.qos.value}

@control_command(args=[("n", int)], signature="[N=1]")
def increase_prefetch_count(state, n=1):
    state.consumer.qos.increment_eventually(n)
    return {"ok": "prefetch count incremented"}

@inspect_command
def waiting(panel, *, name: str, limit: int = 10) -> list[str]:
    '''List the ids of tasks of a name that wait.'''
    return [request.id for request in panel.reserved() if request.name == name][:limit]
```

The first argument is the node's panel, whatever it is called: `app`, `hostname`, `tset`, `consumer.qos`, and all
that `greenq.control.Panel` has. Commands run in a thread of their own, beside tasks: what they read is a snapshot,
and `panel.post(function)` runs something on the main loop.
"""


def page() -> str:
    """The whole page as Markdown.

    Raises:
        SystemExit: naming the commands without a reply in replies.json, or the replies without a command.
    """
    replies = json.loads(REPLIES.read_text())
    commands = {command.name: command for command in default_registry() if not command.own}
    if wrong := sorted(commands.keys() ^ replies.keys()):
        sys.exit(f"{REPLIES} and the registry of commands differ in: {', '.join(wrong)}")
    parts = [_HEAD]
    for kind, title in (("inspect", "Commands that ask"), ("control", "Commands that change something")):
        listed = sorted(name for name, command in commands.items() if command.kind == kind)
        parts += [f"## {title}", ", ".join(f"[{name}](#{name})" for name in listed)]
        parts += [_described(commands[name], replies[name]) for name in listed]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _described(command: Command, reply: dict[str, Any]) -> str:
    facts = [f"**Access** `{command.access}`" + (", more with some arguments" if command.beyond else "")]
    if command.alias:
        facts.append(f"**also called** `{command.alias}`")
    if command.default_timeout != 1.0:
        facts.append(f"**timeout at the prompt** {command.default_timeout:g} s")
    facts.append(f"**at the prompt** `{_line(command)}`" if command.visible else "not offered at the prompt")
    parts = [f"### {command.name}", command.help, " · ".join(facts)]
    if command.parameters:
        rows = [_row(parameter) for parameter in command.parameters]
        parts.append("\n".join(["| argument | type | default |", "|---|---|---|", *rows]))
    if command.extras:
        parts.append("Other arguments are let pass.")
    asked = json.dumps({"method": command.name, "arguments": reply["arguments"]})
    parts += [f"Reply: {reply['reply']}", f"```json\n{asked}\n```"]
    if command.replies:
        parts.append(f"```json\n{json.dumps({'greenq@host': reply['example']}, indent=2)}\n```")
    return "\n\n".join(parts)


def _line(command: Command) -> str:
    words = [f"greenq {command.kind} {command.name}"]
    if command.signature is not None:
        words.append(command.signature)
    else:
        for parameter in command.positional():
            word = parameter.name.upper() + ("..." if parameter.name == command.variadic else "")
            words.append(word if parameter.required else f"[{word}]")
    for parameter in command.named():
        option = f"--{parameter.name.replace('_', '-')}"
        words.append(f"[{option}]" if parameter.is_flag else f"[{option} VALUE]")
    return " ".join(words)


def _row(parameter: Parameter) -> str:
    default = "required" if parameter.required else f"`{json.dumps(parameter.default)}`"
    return f"| `{parameter.name}` | {describe(parameter.kind)} | {default} |"


if __name__ == "__main__":
    print(page(), end="")
