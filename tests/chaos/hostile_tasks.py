"""Tasks that do what no task should; the worker under them must not mind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from greenq import GreenQ
from tests.support.ledger import Ledger

app = GreenQ("hostile_tasks")
ledger = Ledger.from_env()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def nap(what: str, seconds: float) -> str:
    ledger.start(what)
    time.sleep(seconds)
    ledger.done(what)
    return what


class Unprintable(Exception):
    """Nothing can be made of it as text."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")


class Leaving(Exception):
    """To print it is to leave."""

    def __repr__(self) -> str:
        raise SystemExit("from a repr")

    __str__ = __repr__


class LeavingValue:
    def __repr__(self) -> str:
        raise SystemExit("from a repr")

    def __json__(self) -> Any:
        raise KeyboardInterrupt("from a serializer")


class Meddling(Exception):
    """Its attributes raise as well."""

    def __init__(self) -> None:
        super().__init__(LeavingValue())

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise SystemExit(name)


class Quiet(str):
    """A string whose repr leaves, so that it encodes well."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise KeyboardInterrupt("from a repr")


def system_exit() -> None:
    raise SystemExit(3)


def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def base_exception() -> None:
    raise BaseException("bare")  # noqa: TRY002


def generator_exit() -> None:
    raise GeneratorExit


def greenlet_exit() -> None:
    from greenlet import GreenletExit

    raise GreenletExit


def memory_error() -> None:
    raise MemoryError


def recursion() -> None:
    recursion()


def unprintable() -> None:
    raise Unprintable


def leaving() -> None:
    raise Leaving


def meddling() -> None:
    raise Meddling


def chained_exceptions() -> None:
    raise ValueError(Unprintable()) from KeyError(Leaving())


def returns_rubbish() -> object:
    return LeavingValue()


def returns_unserialisable() -> object:
    return object()


def returns_a_lock() -> object:
    return {"lock": threading.Lock()}


def returns_itself() -> object:
    value: list[Any] = []
    value.append(value)
    return value


def returns_deep() -> object:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def surrogates() -> object:
    raise ValueError("\ud800", b"\xff".decode("utf-8", "surrogateescape"))


def own_greenlet_killed() -> None:
    import gevent

    gevent.kill(gevent.getcurrent())
    time.sleep(1)


def own_greenlet_thrown() -> None:
    import gevent

    gevent.getcurrent().throw(RuntimeError("thrown by itself"))


def gevent_timeout() -> None:
    import gevent

    with gevent.Timeout(0.05):
        time.sleep(1)


RAISING: dict[str, Callable[[], object]] = {
    fn.__name__: fn
    for fn in (
        system_exit,
        keyboard_interrupt,
        base_exception,
        generator_exit,
        greenlet_exit,
        memory_error,
        recursion,
        unprintable,
        leaving,
        meddling,
        chained_exceptions,
        returns_rubbish,
        returns_unserialisable,
        returns_a_lock,
        returns_itself,
        returns_deep,
        surrogates,
    )
}
GREEN: dict[str, Callable[[], object]] = {
    fn.__name__: fn for fn in (own_greenlet_killed, own_greenlet_thrown, gevent_timeout)
}


@app.task
def misbehave(how: str) -> object:
    return (RAISING | GREEN)[how]()


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def retries_unprintable(self) -> None:  # type: ignore[no-untyped-def]
    raise self.retry(exc=Unprintable())


@app.task(autoretry_for=(Leaving,), max_retries=1, retry_backoff=False, default_retry_delay=0)
def autoretries_leaving() -> None:
    raise Leaving


@app.task
def quiet() -> str:
    return Quiet("quiet")


@app.task
def big(size: int) -> str:
    return "x" * size


@app.task
def late_timeout(seconds: float) -> str:
    """Start a timeout and forget it: it strikes the greenlet when this task is long over."""
    import gevent

    gevent.Timeout(seconds).start()
    return "forgot"


@app.task
def late_kill(seconds: float) -> str:
    import gevent

    gevent.spawn_later(seconds, gevent.kill, gevent.getcurrent())
    return "later"


@app.task
def leak_greenlets(count: int) -> int:
    import gevent

    for _ in range(count):
        gevent.spawn(time.sleep, 60)
    return count


@app.task
def fork_and_exit(how: str) -> int:
    pid = os.fork()
    if pid == 0:
        if how == "hard":
            os._exit(7)
        if how == "soft":
            sys.exit(7)
        if how == "wait":
            time.sleep(1.0)
            os._exit(4)
        if how == "return":
            return 0
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@app.task
def greenlet_exits() -> str:
    import gevent

    gevent.spawn(sys.exit, 5)
    time.sleep(0.2)
    return "stayed"


@app.task
def thread_exit() -> str:
    def leave() -> None:
        sys.exit(9)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    return "stayed"


@app.task
def spoil_logging() -> str:
    import logging

    class Bad(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log")

    logging.getLogger().addHandler(Bad())
    logging.getLogger("greenq").setLevel(logging.DEBUG)
    logging.shutdown()
    return "spoiled"


@app.task
def cut_sockets() -> str:
    """Shut every connection of the process down, as a fire wall would."""
    import socket

    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            with socket.socket(fileno=os.dup(int(entry))) as found:
                if found.family != socket.AF_UNIX:
                    found.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
    return "cut"


@app.task
def change_signals() -> str:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return "changed"


@app.task
def spoil_process() -> str:
    sys.stdout = sys.stderr = None
    os.chdir("/")
    gc.disable()
    return "spoiled"
