"""Who may ask what: the profile of a node, the commands it allows, and the signatures it wants.

Owned by the service thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from greenq.config import Settings
from greenq.control.panel import Panel
from greenq.control.registry import ACCESS, Access, Command, Registry
from greenq.exceptions import CommandRefused, ConfigError
from greenq.wire.control import ControlFrame
from greenq.wire.signing import Nonces, verify

# What each profile allows, from the least up: everything up to this class of commands. "off" does not listen at all.
PROFILES: Mapping[str, Access] = MappingProxyType({"read": "read", "standard": "limits", "full": "full"})


def is_off(conf: Settings) -> bool:
    """Does a node with these settings listen to nobody?"""
    return not conf.worker_enable_remote_control or conf.worker_control_profile == "off"


@dataclass(frozen=True, slots=True)
class Permissions:
    """Which commands a node obeys: those of its profile, or else those of an explicit list."""

    profile: str
    allowed: frozenset[str] | None  # replaces what the profile allows

    @classmethod
    def of(cls, conf: Settings, registry: Registry) -> Permissions:
        """Read them from the settings.

        Raises:
            ConfigError: both settings are written down, or the list has a name that is no command's.
        """
        listed = conf.worker_control_allow
        if listed is None:
            return cls(conf.worker_control_profile, None)
        if conf.is_set("worker_control_profile"):
            where = conf.source("worker_control_profile")
            raise ConfigError(
                f"worker_control_allow replaces what worker_control_profile allows ({where}): write one of them"
            )
        for name in listed:
            if name not in registry:
                raise ConfigError(f"worker_control_allow names {name!r}, and there is no such command")
        return cls("listed", frozenset(registry.get(name).name for name in listed))

    def check(self, command: Command, panel: Panel, arguments: Mapping[str, Any]) -> None:
        """Refuse a command that is not allowed here, or not with these arguments.

        Raises:
            CommandRefused: naming the command, the profile and the setting that would allow it.
            BadArgument: for arguments that cannot be.
        """
        if self.allowed is not None:
            if command.name not in self.allowed:
                raise CommandRefused(
                    f"{command.name} is not in worker_control_allow of this node: add it there to allow it"
                )
            return
        given = ACCESS.index(PROFILES[self.profile])
        needed = ACCESS.index(command.access)
        why = ""
        if needed == given < len(ACCESS) - 1 and command.beyond is not None:
            why = command.beyond(panel, command.checked(arguments))
            needed += bool(why)
        if needed > given:
            enough = next(name for name in PROFILES if ACCESS.index(PROFILES[name]) >= needed)
            raise CommandRefused(
                f"{f'{command.name} {why}'.strip()} is not allowed by the profile {self.profile!r} of this node: "
                f"write worker_control_profile = {enough!r}, or the command into worker_control_allow, to allow it"
            )


class Guard:
    """Checks that commands are signed, where the settings say with what; one for each listener."""

    def __init__(self, conf: Settings) -> None:
        self._keys: Mapping[str, str] = conf.worker_control_keys
        self._namespace: str = conf.control_exchange
        self._nonces = Nonces(time.time())

    def check(self, frame: ControlFrame) -> None:
        """Let a command pass, once.

        Raises:
            BadFrame: it is not signed, or not rightly, or too late, or for the second time.
        """
        if self._keys:
            now = time.time()
            self._nonces.take(verify(frame.body, self._namespace, self._keys, now), now)

