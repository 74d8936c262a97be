"""What an experiment of the pool matrix works with: one running worker, a client, and how its answer is judged."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self

from greenq import AsyncResult, GreenQ
from greenq.exceptions import TaskError
from tests.support.ledger import Ledger
from tests.support.matrix_tasks import SETTINGS
from tests.support.node import Node
from tests.support.processes import wait_for

APP = "tests.support.matrix_tasks"
SECONDS = 15.0  # for anything to happen on a busy machine
BY_ITSELF = 30.0  # how long a task goes on that nothing ends

Verdict = Literal["yes", "refused", "later", "no"]
_LATER = re.compile(r"no such option|no command|not part of this version|not supported yet")
_CURE = re.compile(r"[:;,] (or )?(use|run|restart|start|leave|write|send) ")


@dataclass(frozen=True, slots=True)
class Finding:
    """One cell. `said` is the worker's own sentence, where it says no; `seen` is for people and differs each time."""

    verdict: Verdict
    seen: str = ""
    said: str = ""


def yes(seen: str = "") -> Finding:
    """It was seen to do what was asked for."""
    return Finding("yes", seen)


def said_no(text: str) -> Finding:
    """It was refused in so many words: for good, with what to do instead, or as not there yet."""
    quoted = re.fullmatch(r"""\w+\((['"])(.*)\1\)""", text.strip(), re.DOTALL)
    said = (quoted[2] if quoted else text).strip()
    if _LATER.search(said):
        return Finding("later", said=said)
    assert _CURE.search(said), f"it says no, but not what to do instead: {said}"
    return Finding("refused", said=said)


def answered(reply: object) -> Finding | None:
    """The finding of an error reply; None for any other."""
    error = reply.get("error") if isinstance(reply, dict) else None
    return said_no(str(error)) if error is not None else None


class Scene:
    """One worker of one pool with a database of the private Redis to itself. As a context manager it always ends."""

    def __init__(
        self,
        pool: str,
        url: str,
        folder: Path,
        *,
        slots: int | None,
        options: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.pool = pool
        self.slots = slots or 1
        self.folder = folder
        self.url = url
        self.ledger = Ledger(folder / "ledger")
        self.app = GreenQ("matrix", broker=url, backend=url)
        # A child may take its time: the machine is shared with all the other workers under measurement.
        wanted = {"worker_proc_alive_timeout": 20, **(settings or {})}
        self.node = Node(
            APP,
            cwd=folder,
            pool=pool,
            concurrency=slots,
            options=options,
            env={"GREENQ_BROKER_URL": url, "GREENQ_RESULT_BACKEND": url, SETTINGS: json.dumps(wanted), **(env or {})},
            ledger=self.ledger,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.node.kill()
        self.app.close()

    def start(self) -> Finding | None:
        """Start the worker and wait until it is ready; what it says if it ends instead."""
        self.node.start()
        wait_for(lambda: not self.node.running or " ready." in self.node.output(), 40, "ready, or a refusal")
        if self.node.running:
            return None
        assert self.node.wait() != 0, "it refuses, and says that all went well"
        last = self.node.output().strip().splitlines()[-1]
        assert last.startswith("greenq: "), self.node.output()
        return said_no(re.sub(r" \(see greenq worker --help\)$", "", last.removeprefix("greenq: ")))

    def send(self, name: str, *args: object, **options: Any) -> AsyncResult[Any]:
        """Publish a task by its short name."""
        return self.app.send_task(f"{APP}.{name}", args, {}, **options)

    def nap(self, what: str, seconds: float, **options: Any) -> AsyncResult[Any]:
        """Send a nap and wait until it has begun."""
        sent = self.send("nap", what, seconds, **options)
        self.wait_started(what)
        return sent

    def fill(self, what: str) -> list[AsyncResult[Any]]:
        """Have a long nap in every slot."""
        return [self.nap(f"{what}{number}", BY_ITSELF) for number in range(self.slots)]

    def wait_started(self, *names: str) -> None:
        """Wait until the tasks with these first arguments have begun."""
        wait_for(lambda: set(names) <= set(self.ledger.starts()), SECONDS, lambda: f"{names} to begin")

    def wait_done(self, *names: str) -> None:
        """Wait until they are done."""
        wait_for(lambda: set(names) <= set(self.ledger.dones()), SECONDS, lambda: f"{names} to be done")

    def ask(self, command: str, *, timeout: float = 5.0, **arguments: object) -> Any:
        """What the worker replies to a command; None if it does not."""
        replies = self.app.control.broadcast(
            command, arguments, destination=[self.node.name], reply=True, timeout=timeout
        )
        return replies[0][self.node.name] if replies else None

    def end(self, *sent: AsyncResult[Any]) -> None:
        """Terminate tasks, running or waiting, and wait until each has its end."""
        self.ask("revoke", task_id=[each.id for each in sent], terminate=True)
        for each in sent:
            assert error_of(each) == "TaskRevokedError", f"{each.id} is {each.state}"

    def clear(self) -> None:
        """After an experiment that failed: nothing of it is left for the next."""
        self.app.control.purge()
        left = self.ask("active") + self.ask("reserved") + [each["request"] for each in self.ask("scheduled")]
        self.ask("revoke", task_id=[each["id"] for each in left], terminate=True)

    def pings(self, count: int = 5) -> float:
        """Ping so often; seconds the slowest answer took."""
        slowest = 0.0
        for _ in range(count):
            began = time.monotonic()
            assert self.ask("ping") == {"ok": "pong"}, "no answer to a ping within 5 s"
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    def length(self) -> int:
        """Messages that wait in the broker."""
        return self.app.producer.publisher().length("celery")


def error_of(sent: AsyncResult[Any]) -> str:
    """What a task ended with: the name of the error its result carries, or "" if it succeeded."""
    try:
        sent.get(timeout=SECONDS)
    except TaskError as error:
        return type(error).__name__
    return ""
