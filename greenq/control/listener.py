"""The listener: reads commands from the node's mailbox and answers them, whatever the pool is doing.

It lives in the service thread, with a connection of its own, and never dies: a bad frame is counted, a
failing command is an error reply, a lost broker is waited for.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from greenq.broker.mailbox import NodeMailbox
from greenq.config import Settings
from greenq.control.panel import Accepted, Panel
from greenq.control.registry import Command, Registry
from greenq.exceptions import BrokerError, ControlError
from greenq.log import printable
from greenq.runtime.base import Runtime
from greenq.wire.control import BadFrame, ControlFrame

logger = logging.getLogger(__name__)

_IDLE = 0.2  # seconds a read may wait; bounds how late a stop or a deferred reply is noticed
_BUSY = 0.01  # the same while commands run beside the listener
_BEAT = 1.0  # seconds between looks at the connection's health
_MAX_PAUSE = 5.0  # seconds between two attempts to connect
_MIN_PAUSE = 0.1
_MAX_RUNNING = 64  # commands that may run beside the listener


class Listener:
    """One node's ear.

    `connected`, `handled` and `rejected` (kind of fault -> how many) may be read from any thread.
    """

    def __init__(
        self, conf: Settings, url: str, hostname: str, registry: Registry, panel: Panel, runtime: Runtime
    ) -> None:
        self.connected = False
        self.handled = 0
        self.rejected: Counter[str] = Counter()
        self._conf = conf
        self._url = url
        self._hostname = hostname
        self._registry = registry
        self._panel = panel
        self._runtime = runtime
        self._running = 0
        # Fibers of the same hub (or threads, with the solo pool) append; only the listener pops and sends.
        self._answers: deque[tuple[ControlFrame, object]] = deque()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Listen until `stopped()`, asked several times a second. Blocks; call it in the service thread."""
        failures = 0
        while not stopped():
            try:
                self._session(stopped)
                failures = 0
            except BrokerError as exc:
                failures = 0 if self.connected else failures
                failures += 1
                if failures == 1:
                    logger.warning("The control plane waits for the broker: %s", exc)
            except (Exception, SystemExit):
                failures += 1
                logger.exception("The control listener starts again after an error.")
            self.connected = False
            if not stopped():
                self._pause(stopped, failures)

    def _pause(self, stopped: Callable[[], bool], failures: int) -> None:
        # Jitter: a fleet that lost its broker at one moment must not come back at one moment.
        longest = min(_MAX_PAUSE, _MIN_PAUSE * 2 ** min(failures, 10))
        until = time.monotonic() + random.uniform(_MIN_PAUSE, longest)  # noqa: S311
        while not stopped() and (left := until - time.monotonic()) > 0:
            self._runtime.sleep(min(left, _IDLE))

    def _session(self, stopped: Callable[[], bool]) -> None:
        mailbox = NodeMailbox(self._url, self._conf, self._hostname, self._panel.clock, self._reject)
        try:
            mailbox.open()
            self.connected = True
            beaten = time.monotonic()
            while not stopped():
                for frame in mailbox.read(_BUSY if self._running or self._answers else _IDLE):
                    self._handle(frame)
                self._send_answers(mailbox)
                if time.monotonic() - beaten >= _BEAT:
                    mailbox.beat()
                    beaten = time.monotonic()
        finally:
            mailbox.close(forget=stopped())

    def _send_answers(self, mailbox: NodeMailbox) -> None:
        while self._answers:
            # Taken off first: an answer whose sending cuts the connection is not worth a second try.
            frame, data = self._answers.popleft()
            mailbox.reply(frame, data)

    def _handle(self, frame: ControlFrame) -> None:
        self.handled += 1
        try:
            command = self._registry.get(frame.method)
        except ControlError as exc:
            self._note("unknown", exc)
            self._answer(frame, {"error": repr(exc)})
            return
        if command.instant:
            self._answer(frame, self._result(command, frame), command)
        elif self._running >= _MAX_RUNNING:
            self._answer(frame, {"error": f"{_MAX_RUNNING} commands are running already; ask again"}, command)
        else:
            self._running += 1
            try:
                self._runtime.spawn(self._beside, command, frame, name=f"command-{command.name}")
            except BaseException:
                self._running -= 1
                raise

    def _beside(self, command: Command, frame: ControlFrame) -> None:
        try:
            self._answer(frame, self._result(command, frame), command)
        finally:
            self._running -= 1

    def _answer(self, frame: ControlFrame, data: object, command: Command | None = None) -> None:
        if frame.reply_key and (command is None or command.replies):
            self._answers.append((frame, data))

    def _result(self, command: Command, frame: ControlFrame) -> Any:
        try:
            return command.ask(self._panel, frame.arguments)
        except Accepted as accepted:
            return {"ok": str(accepted)}
        except ControlError as exc:
            self._note("refused", exc)
            return {"error": repr(exc)}
        except (Exception, SystemExit) as exc:
            logger.exception("Command %s failed.", command.name)
            return {"error": repr(exc)}

    def _reject(self, fault: BadFrame) -> None:
        self._note(fault.kind, fault.detail)

    def _note(self, kind: str, detail: object) -> None:
        self.rejected[kind] += 1
        # Once a kind: whoever floods the control plane may not flood the log as well.
        level = logging.WARNING if self.rejected[kind] == 1 else logging.DEBUG
        logger.log(level, "Command refused (%s): %s", kind, printable(str(detail)[:300]))
