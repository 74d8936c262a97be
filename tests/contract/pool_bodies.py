"""What the tasks of the pool contract do; the same functions in the worker's process and in a pool's children.

A body gets its `Job` and plain arguments. Nothing else crosses into a child process: what a body and its scenario
share lies in one folder, as gate files and a ledger.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from greenq.exceptions import ColdStop, ConfigError, Interrupt, SoftTimeLimitExceeded
from greenq.model import Outcome, Record, Request, Settle, State
from greenq.wire.serializers import Accept

LEDGER = "ledger"
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
FRESH = "contract_fresh"  # a module in the folder, for pools that import code afresh


class Job(NamedTuple):
    """One run as its body sees it."""

    id: str
    folder: str
    note: Callable[[str], None]
    store: Callable[[Record], object]

    def wait(self, gate: str) -> None:
        """Until the scenario opens that gate."""
        path = os.path.join(self.folder, gate)  # noqa: PTH118  (asked hundreds of times a second)
        while not os.path.exists(path):  # noqa: PTH110
            time.sleep(0.005)


class Side:
    """Runs bodies as the executor runs tasks, in the worker's process or as the ChildSide of a child.

    Ledger lines: "child INDEX PID", "started ID PID", "ended ID PID", "left PID". Each is one write to a
    descriptor opened for appending, so those of several processes never mix and outlive a killed writer.
    """

    def __init__(self, folder: str) -> None:
        self.accept = Accept.of(["json"])
        self.folder = folder
        self._ledger = os.open(f"{folder}/{LEDGER}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.store: Callable[[Record], object]

    def start(self, index: int, store: Callable[[Record], object]) -> None:
        """See ChildSide."""
        self.store = store
        self.note(f"child {index} {os.getpid()}")

    def stop(self) -> None:
        """See ChildSide."""
        self.note(f"left {os.getpid()}")

    def close(self) -> None:
        os.close(self._ledger)

    def note(self, line: str) -> None:
        os.write(self._ledger, f"{line}\n".encode())

    def run(self, request: Request) -> Outcome:
        """See ChildSide; the states of `request` change as they do in the executor."""
        request.started = time.time()
        args = json.loads(request.body)[0]
        try:
            request.state = "running"
            self.note(f"started {request.id} {os.getpid()}")
            value = BODIES[request.name](Job(request.id, self.folder, self.note, self.store), *args)
            self.note(f"ended {request.id} {os.getpid()}")
            request.state = "finishing"
        except BaseException as error:
            request.state = "finishing"
            return self.epitaph(request, error)
        record = Record(request.id, State.SUCCESS, json.dumps(value, default=repr).encode())
        return Outcome(request, State.SUCCESS, record=record, value=value)

    def epitaph(self, request: Request, error: BaseException) -> Outcome:
        """See ChildSide. The state is the error's name, unless the message goes back."""
        if request.name == die_again.__name__:
            os._exit(4)
        if isinstance(error, ColdStop):
            return Outcome(request, State.CANCELLED, Settle.REQUEUE)
        return Outcome(request, type(error).__name__, result_text=repr(error))


def fail_to_make(folder: str) -> Side:
    """What a recipe names whose app cannot be loaded."""
    raise ConfigError(f"no app in {folder}")


def make_side(folder: str) -> Side:
    """What a pool's recipe names."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.import_module(FRESH)
    return Side(folder)


class Odd(BaseException):
    """An error of no known kind."""


class Big:
    """Something whose end can be seen, and whose text is not asked for."""


alive: weakref.WeakSet[Big] = weakref.WeakSet()

ERRORS: dict[str, type[BaseException]] = {
    error.__name__: error
    for error in (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, Odd, MemoryError, RecursionError)
}


def nothing(job: Job) -> None:
    """The no-op."""


def echo(job: Job, value: Any) -> Any:
    return value


def process(job: Job) -> int:
    return os.getpid()


def fail(job: Job, name: str) -> None:
    raise ERRORS[name]("on purpose")


def recurse(job: Job) -> None:
    recurse(job)


def gate(job: Job, name: str) -> None:
    job.wait(name)


def sleep(job: Job, seconds: float) -> None:
    time.sleep(seconds)


def receive(job: Job, seconds: float) -> None:
    """Wait on a socket on which nothing ever comes."""
    server = socket.create_server(("127.0.0.1", 0))
    try:
        client = socket.create_connection(server.getsockname())
        try:
            client.settimeout(seconds)
            client.recv(1)
        finally:
            client.close()
    finally:
        server.close()


def compute(job: Job, seconds: float) -> None:
    """Pure Python that never yields."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(1000))


def compute_and_yield(job: Job, seconds: float) -> None:
    """As short as a task that ends about when it is killed; an ending meant for another is noted."""
    try:
        compute(job, seconds)
        time.sleep(0)
    except (Interrupt, SoftTimeLimitExceeded) as ending:
        if ending.args[0] not in (int(job.id), TERM):
            job.note(f"wrong {job.id} {ending.args}")
        raise


def stand_by(job: Job, gate: str) -> None:
    """Goes on and on beside those that are killed."""
    try:
        job.wait(gate)
    except BaseException as ending:
        job.note(f"wrong {job.id} {ending!r}")
        raise


def stubborn(job: Job) -> None:
    """Swallows what a task may swallow by accident."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            job.note(f"swallowed {job.id}")


def stubborn_compute(job: Job) -> None:
    while True:
        try:
            compute(job, 1.0)
        except Exception:
            job.note(f"swallowed {job.id}")


def stubborn_utterly(job: Job) -> None:
    """Swallows even what no task should."""
    while True:
        try:
            time.sleep(60)
        except BaseException:
            job.note(f"swallowed {job.id}")


def deaf(job: Job) -> None:
    """Ignores the signal it is told to end by."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def tidy_up(job: Job, body: str, seconds: float) -> str:
    """Overdue, it ends in good order."""
    try:
        BODIES[body](job, seconds)
    except SoftTimeLimitExceeded as limit:
        return f"tidied after {limit.args[0]}"
    return "was never overdue"


def hold_big(job: Job, way: str) -> Big:
    """Leave an object behind in every way there is: as value, in a frame, in an exception, in a reference cycle."""
    big = Big()
    alive.add(big)
    ring: list[object] = [big]
    ring.append(ring)
    if way == "raised":
        raise ValueError(big)
    if way == "waiting":
        time.sleep(60)
    return big


def count_big(job: Job) -> list[int]:
    gc.collect()
    return [os.getpid(), len(alive)]


def announce(job: Job, number: int, length: int) -> None:
    """Hand over records that are not the outcome, one after the other."""
    for n in range(number):
        job.store(Record(job.id, State.STARTED, b"%d " % n + b"x" * length))


def repeat(job: Job, letter: str, length: int) -> str:
    return letter * length


def die(job: Job, how: str) -> None:
    """End the whole process, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how.startswith("exit"):
        os._exit(int(how.removeprefix("exit")))
    if how == "close":
        os.closerange(3, 4096)
        time.sleep(60)
    if how == "segv":
        ctypes.string_at(0)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def die_again(job: Job) -> None:
    """Ends the process, and so does making the outcome of that."""
    os._exit(3)


def hog(job: Job, megabytes: int) -> int:
    """Touch that much memory and give it back."""
    return len(b"x" * (megabytes << 20))


def resident(job: Job) -> int:
    """The peak resident memory of this process in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def version(job: Job) -> int:
    """What was imported before this process began."""
    value: int = importlib.import_module(FRESH).VERSION
    return value


def processes_and_threads(job: Job) -> list[Any]:
    """What ordinary code does: a thread, a program, a program that fails."""
    told: list[str] = []
    thread = threading.Thread(target=told.append, args=("thread",))
    thread.start()
    thread.join()
    codes = [subprocess.run(["sh", "-c", f"exit {code}"], check=False).returncode for code in (0, 7)]
    return [*told, *codes]


def started_program(job: Job) -> list[int]:
    """The signals that a program finds ignored and blocked, as masks."""
    said = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    return masks(said)


def masks(status: str) -> list[int]:
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return [int(fields[name], 16) for name in ("SigIgn", "SigBlk")]


def forked_process(job: Job) -> list[int]:
    """The signals that end a process which the task has forked."""
    ended_by = []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        ready, up = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(up, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.read(ready, 1)
        os.close(ready)
        os.close(up)
        os.kill(pid, number)
        ended_by.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
    return ended_by


def parent(job: Job) -> int:
    return os.getppid()


BODIES: dict[str, Callable[..., Any]] = {
    body.__name__: body
    for body in (
        announce,
        compute,
        compute_and_yield,
        count_big,
        deaf,
        die,
        die_again,
        echo,
        fail,
        forked_process,
        gate,
        hog,
        hold_big,
        nothing,
        parent,
        process,
        processes_and_threads,
        receive,
        recurse,
        repeat,
        resident,
        sleep,
        stand_by,
        started_program,
        stubborn,
        stubborn_compute,
        stubborn_utterly,
        tidy_up,
        version,
    )
}
