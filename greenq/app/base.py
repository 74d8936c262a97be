"""GreenQ: an application, which is its settings, its tasks, and its way to the broker and the results."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from greenq.app.directory import APPS
from greenq.app.embedded import BrokerChoice, calling_module, choose_backend, choose_broker
from greenq.app.hooks import Hooks
from greenq.app.producer import Producer
from greenq.app.publishing import read_call, zone
from greenq.app.registry import Registry, default_name
from greenq.app.results import AsyncResult
from greenq.app.signature import Signature
from greenq.app.task import Task
from greenq.config import Settings
from greenq.exceptions import ConfigError
from greenq.model import TaskMessage
from greenq.results.base import ResultStore

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from greenq.app.options import TaskOptions

P = ParamSpec("P")
R = TypeVar("R")

# The one name in this room of a room above it: remote control is asked for here and served over the broker.
CONTROL = "greenq.control.client:Control"

Packages = Iterable[str] | Callable[[], Iterable[str]]


class GreenQ:
    """An application.

    Args:
        main: Its name; it also stands for `__main__` in the names of tasks.
        broker: The setting `broker_url`.
        backend: The setting `result_backend`.
        include: Modules with more tasks, imported by the worker.
        config_source: An object, or the name of a module, with settings; as `config_from_object`.
        namespace: The prefix of the settings in it.
        settings: Any other settings.

    Raises:
        ConfigError: a setting is unknown or wrong; the message names all of them.
    """

    def __init__(
        self,
        main: str | None = None,
        *,
        broker: str | None = None,
        backend: str | None = None,
        include: Sequence[str] = (),
        config_source: object = None,
        namespace: str | None = None,
        **settings: Any,
    ) -> None:
        self.main = main
        self.module, self._home = calling_module()
        self.tasks = Registry()
        self.hooks = Hooks()
        self.producer = Producer(self)
        self.discover: list[tuple[Packages, str]] = []  # what `autodiscover_tasks` was told, for the loader
        self._pending: list[tuple[str, str | None]] = []
        self._broker: BrokerChoice | None = None
        self._control: Any = None
        self._conf = Settings()
        given = {"broker_url": broker, "result_backend": backend, "include": include or None}
        settings.update((key, value) for key, value in given.items() if value is not None)
        self._conf.update(settings, source=f"GreenQ(...) in {self.module}")
        self._conf.on_change = self._changed
        APPS.add(self)
        if config_source is not None:
            self.config_from_object(config_source, namespace=namespace)

    @property
    def conf(self) -> Settings:
        """The settings. Reading them the first time imports the modules `config_from_object` named."""
        if self._pending:
            self._load_configuration()
        return self._conf

    def config_from_object(self, obj: object, *, namespace: str | None = None) -> None:
        """Take settings from an object, or from a module (or `module:object`) by name.

        A name is imported when the settings are first needed, so that an app may be made while the module is
        still being imported.

        Raises:
            ConfigError: at once for an object; for a name when it is imported.
        """
        if isinstance(obj, str):
            self._pending.append((obj, namespace))
        else:
            self.conf.from_object(obj, namespace=namespace)

    def _load_configuration(self) -> None:
        pending, self._pending = self._pending, []
        for name, namespace in pending:
            module, _, attribute = name.partition(":")
            try:
                found: Any = importlib.import_module(module)
                found = getattr(found, attribute) if attribute else found
            except (ImportError, AttributeError) as exc:
                raise ConfigError(f"config_from_object({name!r}): {exc}") from exc
            self._conf.from_object(found, namespace=namespace, source=f"module {name}")

    def _changed(self) -> None:
        self.producer.forget()
        self._broker = None
        for task in list(self.tasks.values()):
            task.resolve()

    @property
    def broker(self) -> BrokerChoice:
        """The broker in use: its URL, the same to show, and why it is this one."""
        conf = self.conf
        if self._broker is None or self._broker.configured != conf.broker_url:
            self._broker = choose_broker(conf, self._home, self.main or self.module, os.environ)
        return self._broker

    @property
    def backend(self) -> str | None:
        """The URL of the result store in use, or None."""
        return choose_backend(self.conf, self.broker)

    @property
    def results(self) -> ResultStore:
        """The result store, opened at the first use."""
        return self.producer.results

    @property
    def control(self) -> Any:
        """Remote control of the workers: a `greenq.control.client.Control`."""
        if self._control is None:
            module, _, name = CONTROL.partition(":")
            self._control = getattr(importlib.import_module(module), name)(self)
        return self._control

    def now(self) -> datetime:
        """The time in the app's zone."""
        return datetime.now(zone(self.conf.timezone))

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, /, *, bind: Literal[True], name: str | None = ..., **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
    @overload
    def task(
        self, /, *, bind: Literal[False] = ..., name: str | None = ..., **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function as a task: `@app.task`, or `@app.task(queue="mail", max_retries=5)`.

        With `bind` the task is the function's first argument. The options are listed in `TaskOptions`.

        Raises:
            TypeError: an unknown option, an `async def`, a class.
            ConfigError: an option has a wrong value.
        """
        if function is None:
            return lambda function: self.register(function, options)
        return self.register(function, options)

    def register(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
        """Make a function a task of this app; `options` are those of `task`. See there."""
        if isinstance(function, Task):
            raise TypeError(f"{function!r} is a task already")
        rest = dict(options)
        name, bound = rest.pop("name", None), rest.pop("bind", False)
        name = name or default_name(function, self.main)
        self.producer.forget_plan(name)
        return self.tasks.add(Task(self, function, name, rest, bound=bound))

    def autodiscover_tasks(self, packages: Packages, related_name: str = "tasks") -> None:
        """Have the worker import `<package>.tasks` of each package that has one."""
        if isinstance(packages, str):
            raise TypeError(f"autodiscover_tasks takes a list of packages: [{packages!r}]")
        self.discover.append((packages if callable(packages) else tuple(packages), related_name))

    def finalize(self) -> GreenQ:
        """Find every mistake in settings and tasks now; the worker calls it before it starts.

        Raises:
            ConfigError: what is wrong, and where.
        """
        _ = self.conf
        self._changed()
        for name in self.tasks:
            self.producer.plan(name)
        zone(self.conf.timezone)
        return self

    def set_current(self) -> None:
        """Let shared tasks and unbound results mean this app."""
        APPS.make_current(self)

    def build_message(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskMessage:
        """Make the message of a call without sending it; takes the options of `Task.apply_async`."""
        return self.producer.build(name, args, kwargs or {}, options).message

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a task by its name, which this app need not know. See `Task.apply_async`."""
        task = self.tasks.get(name)
        if task is not None and self.conf.task_always_eager:
            return task.apply_async(args, kwargs, **options)
        outgoing = self.producer.build(name, args or (), kwargs or {}, options)
        self.producer.deliver((outgoing,), options)
        return AsyncResult(outgoing.task_id, self)

    def send_tasks(self, calls: Iterable[Mapping[str, Any] | tuple[Any, ...]]) -> list[AsyncResult[Any]]:
        """Send many tasks in one go, in as few round trips as the broker allows.

        Each call is a signature, or a tuple `(task or name, args, kwargs, options)` of which the last three
        may be left out. All messages are made before the first is sent, so that a wrong call sends nothing.

        Raises:
            TypeError, ConfigError: a call is wrong; nothing was sent.
            BrokerUnreachable: nothing was sent, after the retries the settings allow.
            PublishUncertain: some may have been sent.
        """
        read = [read_call(call) for call in calls]
        for name, args, kwargs, _ in read:
            if name in self.tasks:
                self.tasks[name].check_arguments(args, kwargs)
        if self.conf.task_always_eager:
            return [self.send_task(name, args, kwargs, **options) for name, args, kwargs, options in read]
        outgoing = [self.producer.build(*call) for call in read]
        if outgoing:
            self.producer.deliver(outgoing, {})
        return [AsyncResult(each.task_id, self) for each in outgoing]

    def AsyncResult(self, task_id: str) -> AsyncResult[Any]:  # noqa: N802  (Celery's name)
        """A handle on the result of a task by its id."""
        return AsyncResult(task_id, self)

    def signature(
        self,
        task: str | Mapping[str, Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature:
        """A signature sent by this app."""
        return Signature(task, args, kwargs, options, immutable=immutable, app=self)

    def close(self) -> None:
        """Let go of all connections; the next use opens them again. Closing twice is legal."""
        self.producer.close()
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GreenQ {self.main or self.module}>"
