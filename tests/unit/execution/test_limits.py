"""Clocks of time limits: whose limit counts, who is struck, and who is not any more."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from greenq import GreenQ
from greenq.exceptions import HardTimeLimit, SoftTimeLimitExceeded
from greenq.execution import limits as module
from greenq.execution.limits import Limits
from greenq.model import Request
from tests.support.panel import make_request
from tests.support.processes import wait_for

Ending = HardTimeLimit | SoftTimeLimitExceeded


class Service:
    """The service thread with an app of its own, and what it had struck."""

    def __init__(self) -> None:
        self.app = GreenQ("limits", broker_url="memory://")
        self.task = self.app.task(name="t")(lambda: None)
        self.limits = Limits(self.app.conf)
        self.struck: list[tuple[Request, Ending]] = []
        self.chased = False
        self.over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self.limits.serve(self._kill, lambda: self.chased, time.sleep, lambda: self.over)

    def _kill(self, request: Request, ending: Ending) -> None:
        self.struck.append((request, ending))

    def begin(self, hard: float | None = None, soft: float | None = None) -> Request:
        request = make_request("1", name="t", timelimit=[hard, soft])
        self.limits.begin(self.task, request)
        return request

    def stop(self) -> None:
        self.over = True
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


def struck_by(service: Service, count: int) -> list[tuple[type, float]]:
    wait_for(lambda: len(service.struck) >= count, 5, f"{count} endings")
    return [(type(ending), ending.args[0]) for _, ending in service.struck]


def test_the_message_goes_before_the_task_and_the_task_before_the_settings(service: Service) -> None:
    service.app.conf.task_soft_time_limit, service.app.conf.task_time_limit = 0.01, 0.02
    service.begin()
    assert struck_by(service, 2) == [(SoftTimeLimitExceeded, 0.01), (HardTimeLimit, 0.02)]
    service.task.soft_time_limit, service.task.time_limit = 0.03, 0.04
    service.begin()
    assert struck_by(service, 4)[2:] == [(SoftTimeLimitExceeded, 0.03), (HardTimeLimit, 0.04)]
    service.begin(soft=0.05)
    assert struck_by(service, 6)[4:] == [(HardTimeLimit, 0.04), (SoftTimeLimitExceeded, 0.05)]
    service.task.soft_time_limit = service.task.time_limit = None
    service.begin(hard=0.06)
    assert struck_by(service, 8)[6:] == [(SoftTimeLimitExceeded, 0.01), (HardTimeLimit, 0.06)]


def test_who_has_ended_is_not_struck(service: Service) -> None:
    ended = [service.begin(hard=0.1, soft=0.08) for _ in range(50)]
    for request in ended:
        service.limits.end(request)
        service.limits.end(request)  # legal: a pool of processes and the executor both say it
    still = service.begin(hard=0.15)
    struck_by(service, 1)
    assert [request for request, _ in service.struck] == [still]


def test_a_run_without_limits_costs_no_clock(service: Service) -> None:
    request = service.begin()
    assert not service.limits._clocks
    service.limits.end(request)


def test_who_swallows_a_hard_limit_is_struck_again_and_named_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "INSIST_EVERY", 0.05)
    caplog.set_level(logging.WARNING)
    request = service.begin(hard=0.02, soft=0.01)
    kinds = [kind for kind, _ in struck_by(service, 4)]
    assert kinds == [SoftTimeLimitExceeded, HardTimeLimit, HardTimeLimit, HardTimeLimit]
    service.limits.end(request)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Soft time limit (0.01s) exceeded for t[1]"),
        ("ERROR", "Hard time limit (0.02s) exceeded for t[1]"),
    ]
    assert not service.limits._clocks


def test_the_lock_goes_round_faster_only_while_somebody_is_chased(service: Service) -> None:
    patience = sys.getswitchinterval()
    service.chased = True
    wait_for(lambda: sys.getswitchinterval() < patience / 10, 5, "haste")
    service.chased = False
    wait_for(lambda: sys.getswitchinterval() == pytest.approx(patience), 5, "patience")
    service.chased = True
    wait_for(lambda: sys.getswitchinterval() < patience / 10, 5, "haste")
    service.stop()
    assert sys.getswitchinterval() == pytest.approx(patience)
