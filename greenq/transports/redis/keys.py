"""The names of keys in Redis: kombu's own layout, and the few keys greenq adds beside it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greenq.exceptions import ConfigError


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one `global_keyprefix` (wire.md 5.9).

    Added by greenq: `greenq.owners` (zset: owner -> broker time until which its last sign of life holds),
    `greenq.closed` (zset: owners given up for dead, and claim series closed after a lost reply),
    `greenq.delayed` (zset: message -> when it is due), `greenq.revoked.<control_exchange>.ids` and `.stamps`
    (zsets that expire: entry of wire.revoked -> broker time of the revoke), `<queue>.dead` and
    `<queue>.dead.info` (lists, newest first: the messages that were refused, byte for byte, and at the same index
    a JSON object with reason, tag and time).
    """

    prefix: str = ""
    separator: str = "\x06\x16"
    steps: tuple[int, ...] = (0, 3, 6, 9)
    unacked_name: str = "unacked"
    index_name: str = "unacked_index"

    @property
    def unacked(self) -> str:
        return self.prefix + self.unacked_name

    @property
    def index(self) -> str:
        return self.prefix + self.index_name

    @property
    def owners(self) -> str:
        return f"{self.prefix}greenq.owners"

    @property
    def closed(self) -> str:
        return f"{self.prefix}greenq.closed"

    @property
    def delayed(self) -> str:
        return f"{self.prefix}greenq.delayed"

    def revoked(self, namespace: str, kind: str) -> str:
        """The log of what was revoked, of one kind (wire.revoked), for the nodes of one control exchange."""
        return f"{self.prefix}greenq.revoked.{namespace}.{kind}"

    def dead(self, queue: str) -> str:
        """The list of a queue's refused messages."""
        return f"{self.prefix}{queue}.dead"

    def binding(self, exchange: str) -> str:
        """The set of an exchange's bindings."""
        return f"{self.prefix}_kombu.binding.{exchange}"

    def ready(self, queue: str, priority: int = 0) -> str:
        """The list in which a message of that priority waits."""
        step = self.steps[bisect(self.steps, min(max(priority, 0), 9)) - 1]
        return f"{self.prefix}{queue}{self.separator}{step}" if step else self.prefix + queue

    def bands(self, queues: Sequence[str]) -> list[str]:
        """All lists of the queues, most urgent step first, as kombu's BRPOP names them."""
        return [self.ready(queue, step) for step in self.steps for queue in queues]


def keys_from(options: Mapping[str, Any]) -> Keys:
    """Read the key layout from kombu's `broker_transport_options`.

    Raises:
        ConfigError: for priority steps that are not numbers in rising order.
    """
    try:
        steps = tuple(int(step) for step in options.get("priority_steps") or (0, 3, 6, 9))
    except (TypeError, ValueError) as exc:
        raise ConfigError("priority_steps is a list of whole numbers, as in [0, 3, 6, 9]") from exc
    if list(steps) != sorted(set(steps)):
        raise ConfigError(f"priority_steps must rise, as in [0, 3, 6, 9], not {list(steps)}")
    return Keys(
        prefix=str(options.get("global_keyprefix") or ""),
        separator=str(options.get("sep") or "\x06\x16"),
        steps=steps,
        unacked_name=str(options.get("unacked_key") or "unacked"),
        index_name=str(options.get("unacked_index_key") or "unacked_index"),
    )
