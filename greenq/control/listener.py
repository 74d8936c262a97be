"""The listener: reads commands from the node's mailbox and answers them, whatever the pool is doing.

It lives in the service thread, with a connection of its own, and never dies: a bad frame is counted, a
failing command is an error reply, a lost broker is waited for. A flood is read no faster than tasks can bear it,
and what has expired meanwhile is dropped.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from greenq.broker.mailbox import NodeMailbox
from greenq.config import Settings
from greenq.control.allowance import Allowance
from greenq.control.panel import Accepted, Panel
from greenq.control.permissions import Guard, Permissions
from greenq.control.registry import Command, Registry
from greenq.exceptions import BrokerError, CommandRefused, ControlError, UnknownCommand
from greenq.log import printable
from greenq.runtime.base import Runtime
from greenq.wire.control import BadFrame, ControlFrame

logger = logging.getLogger(__name__)

_IDLE = 0.2  # seconds a read may wait; bounds how late a stop or a deferred reply is noticed
_BUSY = 0.01  # the same while commands run beside the listener
_REST = 0.02  # seconds between two looks at an allowance that is spent
_BEAT = 1.0  # seconds between looks at the connection's health
_MAX_PAUSE = 5.0  # seconds between two attempts to connect
_MIN_PAUSE = 0.1
_MAX_RUNNING = 64  # commands that may run beside the listener
_MAX_OF_ONE = 16  # of them, of one name: one that hangs leaves room for the others


class Listener:
    """One node's ear. `connected` and `hearing` may be read from any thread.

    Raises:
        ConfigError: for settings about who may ask that contradict each other.
    """

    def __init__(
        self,
        conf: Settings,
        url: str,
        hostname: str,
        registry: Registry,
        panel: Panel,
        runtime: Runtime,
        *,
        opened_by: Callable[[NodeMailbox], None] = NodeMailbox.open,
        obeyed: Callable[[ControlFrame], None] = lambda _frame: None,
    ) -> None:
        """`opened_by` opens the mailbox of each new connection, and may do what goes with that.

        `obeyed` is told of each of greenq's own commands that was carried out; it must not wait.
        """
        self.connected = False
        self._permissions = Permissions.of(conf, registry)
        self._guard = Guard(conf)
        self.hearing = panel.hearing
        self.hearing.profile = self._permissions.profile
        self.hearing.signed = bool(conf.worker_control_keys)
        self._conf = conf
        self._url = url
        self._hostname = hostname
        self._registry = registry
        self._panel = panel
        self._runtime = runtime
        self._open = opened_by
        self._obeyed = obeyed
        # Names of what runs beside the listener. Fibers and native threads take themselves out; a dict's items
        # come and go whole under the interpreter lock.
        self._running: dict[int, str] = {}
        self._numbers = itertools.count()
        self._begun = 0  # tasks, when they were counted last; the listener only
        # The same append; only the listener pops and sends.
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
            self._open(mailbox)
            self.connected = True
            beaten = time.monotonic()
            allowance = Allowance(self._is_busy)
            while not stopped():
                if allowance.spent(mailbox.behind):
                    self._runtime.sleep(_REST)
                    self._send_answers(mailbox)
                else:
                    began = time.thread_time()
                    for frame in mailbox.read(_BUSY if self._running or self._answers else _IDLE):
                        self._handle(frame)
                    self._send_answers(mailbox)
                    allowance.spend(time.thread_time() - began)
                if time.monotonic() - beaten >= _BEAT:
                    mailbox.beat()
                    beaten = time.monotonic()
        finally:
            mailbox.close(forget=stopped())

    def _is_busy(self) -> bool:
        """Does any task run, or has one begun since this was asked last?

        The service thread often gets its turn when the main thread waits for the broker, between two short tasks.
        """
        begun, self._begun = self._begun, sum(self._panel.totals().values())
        return self._begun != begun or bool(self._panel.active())

    def _send_answers(self, mailbox: NodeMailbox) -> None:
        while self._answers:
            # Taken off first: an answer whose sending cuts the connection is not worth a second try.
            frame, data = self._answers.popleft()
            mailbox.reply(frame, data)

    def _handle(self, frame: ControlFrame) -> None:
        try:
            self._guard.check(frame)
            command = self._registry.get(frame.method)
            self._permissions.check(command, self._panel, frame.arguments)
        except BadFrame as fault:
            why = CommandRefused(f"{frame.method} is not signed as this node wants: {fault}")
            self._refuse(frame, fault.kind, why)
        except UnknownCommand as exc:
            self._refuse(frame, "unknown", exc)
        except CommandRefused as exc:
            self._refuse(frame, "not_allowed", exc)
        except ControlError as exc:
            self._refuse(frame, "refused", exc)
        else:
            self.hearing.handled += 1
            if command.instant and not command.own:
                self._answer(frame, self._result(command, frame), command)
            else:
                self._start(command, frame)

    def _refuse(self, frame: ControlFrame, kind: str, why: ControlError) -> None:
        self._note(kind, why)
        self._answer(frame, {"error": repr(why)})

    def _start(self, command: Command, frame: ControlFrame) -> None:
        """Run a command beside the listener: greenq's own in a fiber, since they wait for the main hub only.

        A user's may do anything, and gets a native thread: one that computes for ever holds up neither the
        listener nor the leases.
        """
        running = list(self._running.values())
        if len(running) >= _MAX_RUNNING or running.count(command.name) >= _MAX_OF_ONE:
            what = f"{running.count(command.name)} of {command.name} and {len(running)} commands in all"
            self._refuse(frame, "too_many", CommandRefused(f"{what} are running already; ask again"))
            return
        number = next(self._numbers)
        self._running[number] = command.name
        name = f"command-{command.name}"
        try:
            if command.own:
                self._runtime.isolated(lambda: self._beside(number, command, frame), name=name)
            else:
                self._runtime.spawn(self._beside, number, command, frame, name=name)
        except BaseException:
            self._running.pop(number, None)
            raise

    def _beside(self, number: int, command: Command, frame: ControlFrame) -> None:
        try:
            self._answer(frame, self._result(command, frame), command)
        finally:
            self._running.pop(number, None)

    def _answer(self, frame: ControlFrame, data: object, command: Command | None = None) -> None:
        if frame.reply_key and (command is None or command.replies):
            self._answers.append((frame, data))

    def _result(self, command: Command, frame: ControlFrame) -> Any:
        try:
            data = command.ask(self._panel, frame.arguments)
        except Accepted as accepted:
            data = {"ok": str(accepted)}
        except ControlError as exc:
            self._note("refused", exc)
            return {"error": repr(exc)}
        except BaseException as exc:  # a user's command may raise even what ends a program
            logger.exception("Command %s failed.", command.name)
            return {"error": repr(exc)}
        if not command.own:
            self._obeyed(frame)
        return data

    def _reject(self, fault: BadFrame) -> None:
        self._note(fault.kind, fault.detail)

    def _note(self, kind: str, detail: object) -> None:
        rejected = self.hearing.rejected
        rejected[kind] += 1
        # Once a kind: whoever floods the control plane may not flood the log as well.
        level = logging.WARNING if rejected[kind] == 1 else logging.DEBUG
        logger.log(level, "Command refused (%s): %s", kind, printable(str(detail)[:300]))
