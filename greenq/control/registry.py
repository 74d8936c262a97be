"""Commands: what they are called, what they take, and how one is asked.

A command is a plain function `(panel, *, typed arguments) -> data`. Its annotations check the request on the
worker, build the sub-command of the CLI and write its help. A user's own is made by `@inspect_command` or
`@control_command`, whose arguments are Celery's (wire.md 3.7).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, SimpleNamespace
from typing import Any, Literal, TypeVar, get_type_hints, overload

from greenq.control.arguments import MISSING, Parameter, check, describe, supported
from greenq.exceptions import BadArgument, ConfigError, UnknownCommand

Kind = Literal["inspect", "control"]
# What obeying a command means to a node, from the harmless up: it shows something; it changes within bounds what
# is limited or will never start; it does anything else.
Access = Literal["read", "limits", "full"]
ACCESS: tuple[Access, ...] = ("read", "limits", "full")
F = TypeVar("F", bound=Callable[..., Any])

# The built-in commands, a module a topic; each has a tuple COMMANDS.
MODULES = (
    "greenq.control.commands.node",
    "greenq.control.commands.tasks",
    "greenq.control.commands.steering",
    "greenq.control.commands.pools",
    "greenq.control.commands.watching",
    "greenq.control.commands.queues",
)


@dataclass(frozen=True, slots=True)
class Command:
    """One remote command.

    `instant` marks one that only reads snapshots: it is run between two messages, others beside the listener.
    `replies` is False for one that never answers. `access` says which profiles allow it (control.permissions), and
    `beyond(panel, checked arguments)` which arguments take the next class up, in a few words, or "".
    `own` marks a user's. `options` names the parameters that the prompt takes
    as `--name` and not by position, `variadic` the one that takes all words that are left.
    """

    name: str
    kind: Kind
    run: Callable[..., Any]
    help: str = ""
    parameters: tuple[Parameter, ...] = ()
    options: frozenset[str] = frozenset()
    variadic: str | None = None
    alias: str | None = None
    signature: str | None = None
    visible: bool = True
    default_timeout: float = 1.0
    extras: bool = False  # takes arguments that it does not name
    instant: bool = False
    replies: bool = True
    access: Access = "full"
    beyond: Callable[[Any, Mapping[str, Any]], str] | None = None
    own: bool = False

    def ask(self, panel: object, arguments: Mapping[str, Any]) -> Any:
        """Check the arguments and run the command.

        Raises:
            BadArgument: naming the argument that is unknown, missing or of another kind.
        """
        return self.run(panel, **self.checked(arguments))

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments to call with. A null for an argument with a default means that default."""
        known = {parameter.name: parameter for parameter in self.parameters}
        given = {name: value for name, value in arguments.items() if self.extras or name in known}
        if unknown := sorted(set(arguments) - set(given)):
            takes = ", ".join(known) or "none"
            raise BadArgument(f"{self.name} has no argument {unknown[0]!r}; it takes: {takes}")
        for name, parameter in known.items():
            value = given.get(name, MISSING)
            if value is MISSING or (value is None and not parameter.required):
                if parameter.required:
                    raise BadArgument(f"{self.name} needs the argument {name!r} ({describe(parameter.kind)})")
                given.pop(name, None)
                continue
            try:
                given[name] = check(parameter.kind, value)
            except TypeError:
                wanted, got = describe(parameter.kind), repr(value)
                raise BadArgument(f"{self.name}: argument {name!r} must be {wanted}, not {got[:200]}") from None
        return given

    def read_words(self, words: Sequence[str]) -> dict[str, Any]:
        """Turn the words typed after the command into its positional arguments.

        Raises:
            BadArgument: for a word that cannot be read, and for one too many.
        """
        rest = list(words)
        arguments: dict[str, Any] = {}
        for parameter in self.positional():
            if parameter.name == self.variadic:
                taken, rest = rest, []
                if taken:
                    arguments[parameter.name] = taken
            elif rest:
                try:
                    arguments[parameter.name] = parameter.read(rest.pop(0))
                except (TypeError, ValueError) as exc:
                    raise BadArgument(f"{self.name}: {parameter.name}: {exc}") from None
            if parameter.required and parameter.name not in arguments:
                raise BadArgument(f"{self.name} needs {parameter.name} ({describe(parameter.kind)})")
        if rest:
            raise BadArgument(f"{self.name}: one word too many: {rest[0]!r}")
        return arguments

    def positional(self) -> list[Parameter]:
        """The parameters that the prompt takes by position, the variadic one last."""
        named = [parameter for parameter in self.parameters if parameter.name not in self.options]
        return sorted(named, key=lambda parameter: parameter.name == self.variadic)

    def named(self) -> list[Parameter]:
        """The parameters that the prompt takes as options; not those that can only be null."""
        return [each for each in self.parameters if each.name in self.options and each.kind is not NoneType]


def make_command(  # noqa: PLR0913  (Celery's keywords)
    run: Callable[..., Any],
    kind: Kind,
    *,
    name: str | None = None,
    alias: str | None = None,
    help: str | None = None,  # noqa: A002  (Celery's name)
    signature: str | None = None,
    args: Iterable[tuple[str, Any]] | None = None,
    variadic: str | None = None,
    visible: bool = True,
    default_timeout: float = 1.0,
    instant: bool = False,
    replies: bool = True,
    access: Access | None = None,
    beyond: Callable[[Any, Mapping[str, Any]], str] | None = None,
    own: bool = False,
) -> Command:
    """Describe a function as a command. Its `access`, if none is given, is "read" for one that inspects, else "full".

    Raises:
        ConfigError: for an annotation that cannot be checked, or metadata about parameters it does not have.
    """
    title = name or run.__name__
    listed = dict(args or ())
    parameters, extras = _parameters(run, title, listed)
    known = {parameter.name for parameter in parameters}
    for wanted in (*listed, *([variadic] if variadic else ())):
        if wanted not in known:
            raise ConfigError(f"command {title}: its function has no parameter {wanted!r}")
    positional = {*listed, variadic} if variadic or args is not None else _by_position(parameters)
    return Command(
        name=title,
        kind=kind,
        run=run,
        help=help or _first_line(run),
        parameters=parameters,
        options=frozenset(p.name for p in parameters if p.is_flag or p.name not in positional),
        variadic=variadic,
        alias=alias,
        signature=signature,
        visible=visible,
        default_timeout=default_timeout,
        extras=extras,
        instant=instant,
        replies=replies,
        access=access or ("read" if kind == "inspect" else "full"),
        beyond=beyond,
        own=own,
    )


def _by_position(parameters: Iterable[Parameter]) -> set[str | None]:
    return {parameter.name for parameter in parameters if parameter.required or not parameter.keyword}


def _parameters(run: Callable[..., Any], title: str, listed: Mapping[str, Any]) -> tuple[tuple[Parameter, ...], bool]:
    declared = list(inspect.signature(run).parameters.values())
    if not declared:
        raise ConfigError(f"command {title}: its function has to take the panel as its first parameter")
    hints = _hints(run, title, declared[1:])
    found, extras = [], False
    for each in declared[1:]:
        if each.kind is each.VAR_KEYWORD:
            extras = True
            continue
        if each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY):
            raise ConfigError(f"command {title}: parameter {each.name!r} has to be callable by its name")
        kind, reader = _kind(title, each.name, hints.get(each.name, Any), listed)
        default = MISSING if each.default is each.empty else each.default
        found.append(Parameter(each.name, kind, default, each.kind is each.KEYWORD_ONLY, reader))
    if extras:
        # Celery lets a command name in `args` what it takes by `**kwargs`.
        known = {parameter.name for parameter in found}
        for name in (name for name in listed if name not in known):
            kind, reader = _kind(title, name, Any, listed)
            found.append(Parameter(name, kind, None, keyword=True, reader=reader))
    return tuple(found), extras


def _hints(run: Callable[..., Any], title: str, parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    """The annotations of the arguments; the panel's and the reply's may be of a type only a checker imports."""
    written = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}
    names = getattr(inspect.unwrap(run), "__globals__", {})
    try:
        return get_type_hints(SimpleNamespace(__annotations__=written), names)
    except NameError as exc:
        raise ConfigError(f"command {title}: an annotation cannot be read: {exc}") from exc


def _kind(title: str, name: str, hint: Any, listed: Mapping[str, Any]) -> tuple[Any, Callable[[str], Any] | None]:
    """The kind of an argument, and what reads it at the prompt: Celery's `args` may name any function for that."""
    kind = listed.get(name, Any) if hint is Any else hint
    if supported(kind):
        return kind, None
    if hint is Any and callable(kind):
        return Any, kind
    raise ConfigError(f"command {title}: values of {name!r} ({kind!r}) cannot be checked")


def _first_line(run: Callable[..., Any]) -> str:
    return (inspect.getdoc(run) or "").partition("\n")[0].strip()


@dataclass(slots=True)
class Registry:
    """Commands by name and by alias."""

    _commands: dict[str, Command] = field(default_factory=dict)
    _aliases: dict[str, str] = field(default_factory=dict)

    def add(self, command: Command) -> Command:
        """Take a command in; a later one of the same name replaces the earlier."""
        self._commands[command.name] = command
        if command.alias:
            self._aliases[command.alias] = command.name
        return command

    def get(self, name: str) -> Command:
        """Find a command by its name or alias.

        Raises:
            UnknownCommand: with the nearest name there is.
        """
        command = self._commands.get(self._aliases.get(name, name))
        if command is None:
            near = difflib.get_close_matches(name, self._commands, 1)
            raise UnknownCommand(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return command

    def of(self, kind: Kind) -> list[Command]:
        """All commands of a kind, by name."""
        return sorted((each for each in self if each.kind == kind), key=lambda each: each.name)

    def __iter__(self) -> Iterator[Command]:
        return iter(list(self._commands.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._commands or name in self._aliases

    def __len__(self) -> int:
        return len(self._commands)


# The one mutable global of this room, on purpose: a decorator in a user's module has nowhere else to write.
user_commands = Registry()


def default_registry() -> Registry:
    """The registry of a worker or a command line: the built-in commands, then the user's own over them."""
    registry = Registry()
    for module in MODULES:
        for command in importlib.import_module(module).COMMANDS:
            registry.add(command)
    for command in user_commands:
        registry.add(command)
    return registry


@overload
def inspect_command(run: F, /) -> F: ...
@overload
def inspect_command(run: None = None, /, **meta: Any) -> Callable[[F], F]: ...
def inspect_command(run: F | None = None, /, **meta: Any) -> F | Callable[[F], F]:
    """Make a function a remote command that reads; bare, or called with keywords of `make_command`."""
    return _decorated("inspect", run, meta)


@overload
def control_command(run: F, /) -> F: ...
@overload
def control_command(run: None = None, /, **meta: Any) -> Callable[[F], F]: ...
def control_command(run: F | None = None, /, **meta: Any) -> F | Callable[[F], F]:
    """Make a function a remote command that acts; bare, or called with keywords of `make_command`."""
    return _decorated("control", run, meta)


def _decorated(kind: Kind, run: F | None, meta: Mapping[str, Any]) -> F | Callable[[F], F]:
    def register(function: F) -> F:
        user_commands.add(make_command(function, kind, own=True, **meta))
        return function

    return register if run is None else register(run)
