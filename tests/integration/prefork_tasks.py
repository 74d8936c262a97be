"""The application under the prefork tests: what user code may do in a process of its own, and how that ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from greenq import GreenQ, SoftTimeLimitExceeded, allow_join_result
from tests.support import bodies
from tests.support.bodies import note, task_of

app = GreenQ(
    "prefork_tasks",
    broker_lease=float(os.environ.get("GREENQ_TEST_LEASE", "20")),
    worker_pool_restarts=True,
)
logger = logging.getLogger(__name__)
held: list[bytearray] = []

PATCHED = socket.socket.__module__ != "socket"  # in the worker's own process, and in no child
if os.environ.get("GREENQ_TEST_CHILDREN_FAIL") and not PATCHED:
    raise RuntimeError("no such library in a child")
if os.environ.get("GREENQ_TEST_SIGNALS"):  # as a library does that was made for a program of its own
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: sys.exit(1))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
if os.environ.get("GREENQ_TEST_THREAD") and not PATCHED:
    threading.Thread(target=time.sleep, args=(600,), name="metrics", daemon=True).start()


@app.hooks.child_stop
def slow_stop() -> None:
    time.sleep(float(os.environ.get("GREENQ_TEST_SLOW_STOP", "0")))


@app.hooks.child_start
def slow_start() -> None:
    time.sleep(float(os.environ.get("GREENQ_TEST_SLOW_START", "0")))


add = task_of(app, __name__, bodies.add)
nap = task_of(app, __name__, bodies.nap)


@app.task
def process() -> int:
    return os.getpid()


@app.task(track_started=True)
def tracked(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


# Ordinary Python.


def square(number: int) -> int:
    return number * number


def in_threads() -> object:
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(square(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ThreadPoolExecutor(2) as pool:
        return sorted(found) == list(pool.map(square, range(4)))


def in_a_loop() -> object:
    async def both() -> list[int]:
        await asyncio.sleep(0.01)
        process = await asyncio.create_subprocess_exec("true")
        return list(await asyncio.gather(asyncio.to_thread(square, 2), process.wait()))

    return asyncio.run(both()) == [4, 0]


def in_processes() -> object:
    child = multiprocessing.Process(target=square, args=(2,))
    child.start()
    child.join()
    with multiprocessing.Pool(2) as pool, ProcessPoolExecutor(2) as other:
        return (child.exitcode, pool.map(square, range(4)), list(other.map(square, range(4)))) == (
            *(0, [0, 1, 4, 9]),
            [0, 1, 4, 9],
        )


def in_a_spawned_process() -> object:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(square, 3).result() == 9


def ending_a_process() -> object:
    """Each of these signals ends it, as it does anywhere."""
    codes = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        child = multiprocessing.Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.1)
        assert child.pid is not None
        os.kill(child.pid, number)
        child.join(3)
        codes.append(child.exitcode)
        child.kill()
    return codes[0] == -signal.SIGTERM and None not in codes


def in_a_program() -> object:
    text = subprocess.run(["/bin/echo", "hello"], capture_output=True, text=True, check=True).stdout
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as program:
        time.sleep(0.2)
        program.send_signal(signal.SIGINT)
        return text == "hello\n" and program.wait(3) != 0


def in_c() -> object:
    ctypes.CDLL(None).usleep(1000)
    return True


def with_an_alarm() -> object:
    struck: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: struck.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    time.sleep(0.1)
    return struck == [signal.SIGALRM]


def by_another_task() -> object:
    with allow_join_result():
        return add.delay(2, 3).get(timeout=20) == 5


def as_a_daemon() -> object:
    """What goes on behind the task's end may not end with it, nor read what is meant for the child."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.5)
            os._exit(0)
        os._exit(0)
    os.wait()
    return True


def as_a_fork_that_returns() -> object:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return True


WAYS = {
    fn.__name__: fn
    for fn in (
        *(in_threads, in_a_loop, in_processes, in_a_spawned_process, ending_a_process, in_a_program, in_c),
        *(with_an_alarm, by_another_task, as_a_daemon, as_a_fork_that_returns),
    )
}


@app.task
def ordinary(way: str) -> object:
    return WAYS[way]()


@app.task
def talks(text: str) -> None:
    print(f"printed {text}")
    logger.info("logged %s", text)


# Ends.


def crash(how: str) -> None:
    if how == "exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "descriptors":
        os.closerange(3, 4096)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def crashes_once(self: Any, what: str, how: str) -> tuple[str, bool]:
    assert bodies.ledger is not None
    first = not bodies.ledger.starts()[what]
    note("start", what)
    if first:
        crash(how)
    note("done", what)
    return what, self.request.delivery_info["redelivered"]


@app.task(reject_on_worker_lost=False)
def crashes_for_good(what: str) -> None:
    note("start", what)
    crash("kill")


@app.task(acks_late=False)
def crashes_early(what: str) -> None:
    note("start", what)
    crash("kill")


@app.task
def told(request: Any, error: object, traceback: str) -> None:
    """An errback."""
    note("done", f"errback-{request.id}-{type(error).__name__}")


@app.task
def told_deadly(request: Any, error: object, traceback: str) -> None:
    """An errback that takes its process along."""
    note("start", f"errback-{request.id}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def told_id(task_id: str) -> None:
    """An errback in the old style."""
    note("done", f"errback-{task_id}")


@app.task
def stubborn(what: str, seconds: float) -> str:
    """Swallows what it can."""
    note("start", what)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.05)
        except BaseException:
            continue
    note("done", what)
    return what


@app.task
def keeps_the_lock(what: str, seconds: float) -> None:
    """C code that holds the interpreter lock."""
    note("start", what)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    note("done", what)


@app.task(soft_time_limit=0.3)
def tidies_up(what: str) -> str:
    note("start", what)
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "never"


@app.task
def grows(megabytes: int) -> tuple[int, int]:
    held.append(bytearray(megabytes << 20))
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@app.task
def version() -> int:
    """Of the module beside it that a test rewrites."""
    import prefork_code  # type: ignore[import-not-found]

    return int(prefork_code.VERSION)


if Path("prefork_code.py").exists():
    import prefork_code  # noqa: F401  (so that it is old when it changes)
