"""Where every request is: held, limited, ready or running; the one place that inspect reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from greenq._speedups import Request, Timer

MOST_NAMES = 1_000

MOST_UNACKNOWLEDGED = 10_000


class Ledger:
    """Written on the main hub only; any thread may take a snapshot.

    A snapshot copies a dict's or deque's elements in one step under the interpreter lock: it is never torn,
    and a request that moves between two places meanwhile is seen in one of them.
    """

    def __init__(self) -> None:
        self.held: dict[Request, Timer] = {}  # waits for its ETA
        self.limited: dict[str, deque[Request]] = {}  # waits for its rate, in order, by task name
        self.ready: deque[Request] = deque()  # may run, waits for a slot
        self.running: dict[Request, None] = {}  # in a slot
        self.totals: dict[str, int] = {}  # started, by the name people see
        # Ended here, id -> attempt, until the broker has the ack: lost with its connection, it comes once more.
        self.unacknowledged: dict[str, int] = {}
        self.finished = 0
        self.redelivered_while_running = 0
        self.rejected = 0

    def waiting_for_rate(self) -> list[Request]:
        """What waits for a rate limit."""
        return [request for line in list(self.limited.values()) for request in list(line)]

    def unsettled(self) -> list[Request]:
        """Everything here that the broker still counts as ours, but for what the outbox holds."""
        return [*list(self.held), *self.waiting_for_rate(), *list(self.ready), *list(self.running)]

    def reserved(self) -> list[Request]:
        """Received and not running, but for what waits for its ETA."""
        return [*list(self.ready), *self.waiting_for_rate()]

    def count_waiting(self) -> int:
        """How many are here and not running."""
        return len(self.held) + len(self.ready) + sum(map(len, self.limited.values()))

    def note_start(self, request: Request) -> None:
        """A slot took it."""
        self.running[request] = None
        # A sender may show any name; beyond a bound only the app's own names are counted.
        name = request.display_name if len(self.totals) < MOST_NAMES else request.name
        self.totals[name] = self.totals.get(name, 0) + 1

    def note_end(self, request: Request) -> None:
        """Its slot is free again."""
        self.running.pop(request, None)
        self.finished += 1

    def note_unacknowledged(self, request: Request) -> None:
        """It ended, and the broker is still to hear of it; the newest `MOST_UNACKNOWLEDGED` are remembered."""
        self.unacknowledged[request.id] = request.retries
        if len(self.unacknowledged) > MOST_UNACKNOWLEDGED:
            del self.unacknowledged[next(iter(self.unacknowledged))]

    def note_acknowledged(self, requests: Iterable[Request]) -> None:
        """The broker has heard of them."""
        for request in requests:
            self.unacknowledged.pop(request.id, None)

    def running_with(self, task_id: str) -> Request | None:
        """The running request of that id."""
        for request in list(self.running):
            if request.id == task_id:
                return request
        return None

    def find(self, task_ids: Iterable[str]) -> dict[str, tuple[str, Request]]:
        """Where those ids are: (state of wire.md 3.2, request)."""
        wanted = set(task_ids)
        found: dict[str, tuple[str, Request]] = {}
        for state, requests in (
            ("scheduled", list(self.held)),
            ("reserved", self.reserved()),
            ("active", list(self.running)),
        ):
            for request in requests:
                if request.id in wanted:
                    found[request.id] = (state, request)
        return found
