"""The read-only half of the client: one method for each thing to ask."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Ask = Callable[[str, Mapping[str, Any], "str | Sequence[str] | None"], "list[dict[str, Any]] | None"]
Replies = dict[str, Any] | None


class Inspect:
    """Asks workers about themselves. Every method blocks up to the timeout it was made with.

    They return {node: data}, or None when nobody answered.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def _request(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        nodes: str | Sequence[str] | None = None,
    ) -> Replies:
        found: dict[str, Any] = {}
        for reply in self._ask(command, arguments or {}, nodes) or ():
            for node, data in reply.items():
                if node in found:
                    warnings.warn(f"two live nodes are called {node}: give each its own name with -n", stacklevel=3)
                found[node] = data
        return found or None

    def ask(self, command: str, **arguments: Any) -> Replies:
        """Send any inspect command, such as one of your own."""
        return self._request(command, arguments)

    def ping(self, destination: str | Sequence[str] | None = None) -> Replies:
        """Who is there: {"ok": "pong"}."""
        return self._request("ping", nodes=destination)

    def active(self, safe: bool | None = None) -> Replies:  # noqa: FBT001  (Celery's signature)
        """The tasks that run; `safe` gives their arguments as text."""
        return self._request("active", {"safe": bool(safe)})

    def reserved(self) -> Replies:
        """The tasks received and not running."""
        return self._request("reserved")

    def scheduled(self) -> Replies:
        """The tasks that wait for their ETA."""
        return self._request("scheduled")

    def registered(self, *taskinfoitems: str) -> Replies:
        """The tasks a node knows, with these attributes."""
        return self._request("registered", {"taskinfoitems": list(taskinfoitems)})

    registered_tasks = registered

    def stats(self) -> Replies:
        """Counters, pool, broker and resource usage."""
        return self._request("stats")

    def revoked(self) -> Replies:
        """The revoked ids."""
        return self._request("revoked")

    def query_task(self, *ids: str | Sequence[str]) -> Replies:
        """Where tasks are: {id: [state, info]}."""
        flat = [each for one in ids for each in ([one] if isinstance(one, str) else one)]
        return self._request("query_task", {"ids": flat})

    def active_queues(self) -> Replies:
        """The queues a node consumes from."""
        return self._request("active_queues")

    def clock(self) -> Replies:
        """The logical clock."""
        return self._request("clock")

    def conf(self, with_defaults: bool = False) -> Replies:  # noqa: FBT001, FBT002  (Celery's signature)
        """The settings, secrets hidden."""
        return self._request("conf", {"with_defaults": with_defaults})

    def hello(self, from_node: str, revoked: Sequence[str] | None = None) -> Replies:
        """Exchange revoked ids, in the name of a node."""
        return self._request("hello", {"from_node": from_node, "revoked": list(revoked or ())})

    def report(self) -> Replies:
        """Software, platform and settings as text."""
        return self._request("report")

    def memsample(self) -> Replies:
        """The resident memory."""
        return self._request("memsample")

    def memdump(self, samples: int = 10) -> Replies:
        """The memory as `memsample` has seen it since the last time, and now."""
        return self._request("memdump", {"samples": samples})

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Replies:  # noqa: A002  (Celery's)
        """What keeps objects of a type alive, as the path of a file on the node's machine."""
        return self._request("objgraph", {"num": n, "max_depth": max_depth, "type": type})
