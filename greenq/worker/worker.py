"""One worker: what it is made of, and in which order that starts and stops."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time

from greenq import naming
from greenq.app.base import GreenQ
from greenq.app.hooks import ChildInfo, WorkerInfo
from greenq.broker.events import EventLink
from greenq.broker.mailbox import NodeMailbox
from greenq.broker.opening import open_consumer
from greenq.broker.stores import keeps_revoked
from greenq.control import default_registry
from greenq.control.listener import Listener
from greenq.control.permissions import is_off
from greenq.conversion import mask_url
from greenq.events.dispatcher import Dispatcher
from greenq.events.tasks import TaskEvents
from greenq.exceptions import GreenqError
from greenq.execution.executor import Executor
from greenq.execution.limits import Limits
from greenq.gates.eta import eta_gate
from greenq.gates.expiry import expiry_gate
from greenq.gates.rate import RateGate
from greenq.log import configure
from greenq.model import Outcome, Request, Settle
from greenq.pools import table
from greenq.pools.base import Pool
from greenq.rates import parse_rate
from greenq.runtime.base import Runtime
from greenq.runtime.timers import Timers
from greenq.wire.control import LogicalClock
from greenq.wire.serializers import Accept
from greenq.worker.accounts import Accounts
from greenq.worker.announcer import Announcer
from greenq.worker.autoscale import autoscaler_class
from greenq.worker.banner import banner
from greenq.worker.catching_up import CatchingUp
from greenq.worker.children import Children
from greenq.worker.choices import (
    PROCESSES,
    most_by_command,
    multiplier_is_chosen,
    multiplier_of,
    pool_options,
    size_of,
)
from greenq.worker.elections import Elections
from greenq.worker.intake import Intake
from greenq.worker.ledger import Ledger
from greenq.worker.lineup import Lineup
from greenq.worker.losses import Losses
from greenq.worker.mingle import Mingle
from greenq.worker.options import WorkerOptions
from greenq.worker.outbox import Outbox
from greenq.worker.panel import WorkerPanel
from greenq.worker.queues import queues_to_start_with
from greenq.worker.revokes import Revocations
from greenq.worker.service import Keeper, ServiceThread
from greenq.worker.signals import Signals
from greenq.worker.sizing import Sizing
from greenq.worker.stall import StallWatch
from greenq.worker.stopping import Stopping
from greenq.worker.supervised import Supervised
from greenq.worker.unstarted import Unstarted

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 2.0
LISTENING_SECONDS = 2.0


class Worker:
    """A running worker. Build it and call `run` in the main thread; it returns the exit code."""

    def __init__(self, app: GreenQ, options: WorkerOptions) -> None:
        self.app = app.finalize()
        self.options = options
        self.hostname = options.hostname or naming.node_name(None)
        self.queues = queues_to_start_with(app, options)
        self.started = time.time()
        configure(options.loglevel, options.logfile)
        self._make_pool()
        self._make_broker_side()
        self._make_user_side()
        self._make_path()
        self._make_service_side()

    def _make_pool(self) -> None:
        options, conf = self.options, self.app.conf
        pools = table.load(options.pool)
        self.size = size_of(options, conf)
        wanted = pool_options(options, conf, self.size.first)
        self.children = Children(self)
        if options.pool in PROCESSES:
            wanted = self.children.complete(wanted)
        self.runtime: Runtime = pools.make_runtime()
        self.runtime.attach()
        self.pool: Pool = pools.make_pool(wanted, self.runtime)
        self.timers = Timers(self.runtime)
        self.ledger = Ledger()

    def _make_broker_side(self) -> None:
        app = self.app
        self.results = app.results
        self.publisher = app.producer.publisher()
        prefetch = self.size.most * multiplier_of(self.options, app.conf)
        self.consumer = open_consumer(app.broker.url, app.conf, self.queues, prefetch, self.runtime)
        in_c = self.results.name == "sqlite"
        sides = (self.consumer, self.publisher, self.results, self.runtime)
        self.outbox = Outbox(*sides, self.ledger.note_acknowledged, offload=in_c)

    def _make_user_side(self) -> None:
        self.accept = Accept.of(self.app.conf.accept_content)
        self.limits = Limits(self.app.conf)
        keeps = self.results.name != "disabled"
        self.executor = Executor(
            self.app, self.hostname, self.accept, self.limits, keep_results=keeps, store=self.outbox.put
        )
        self.clock = LogicalClock()
        self.events = Dispatcher(self.hostname, tasks=self.app.conf.worker_send_task_events)
        self.task_events = TaskEvents(self.events)
        self.accounts = Accounts(self.executor, self.outbox, self.app.tasks, self.task_events)
        self.losses = Losses(lambda request: self.app.tasks[request.name].reject_on_worker_lost, self.consumer)

    def _make_path(self) -> None:
        """The way of a message: intake, gates, line-up, pool, and back by way of the outbox."""
        self.revocations = Revocations(self.app.conf, self.hostname, self.clock, self.runtime)
        self.unstarted = Unstarted(self)
        self.rate = RateGate()
        self.lineup = Lineup(
            self.pool,
            (self.revocations.gate, expiry_gate, eta_gate),
            self.rate,
            self.timers,
            self.ledger,
            self.outbox,
            self.accounts.dropped,
            revoked=self.revocations.gate,
            room=self.consumer,
            events=self.task_events,
            acks_late=self._acks_late,
            lock=contextlib.nullcontext() if self.runtime.green else threading.RLock(),
        )
        self._make_sizing()
        self.intake = Intake(
            self.consumer,
            self.lineup,
            self.ledger,
            self.outbox,
            self.pool,
            self.runtime,
            self.accept,
            self.accounts.rejected,
            self.accounts.known,
            self.sizing,
            self._knows_what_is_revoked,
        )

    def _make_sizing(self) -> None:
        conf, size = self.app.conf, self.size
        autoscaler = None
        if size.scales:
            chosen = autoscaler_class(conf.worker_autoscaler)
            autoscaler = chosen(self.pool, size.most, size.least, worker=self)
        self.sizing = Sizing(
            self.pool,
            self.consumer,
            self.timers,
            self._resized,
            multiplier=multiplier_of(self.options, conf),
            chosen=multiplier_is_chosen(self.options, conf),
            most=max(size.most, most_by_command(self.options.pool)),
            autoscaler=autoscaler,
        )

    def _resized(self) -> None:
        """There are more slots, or fewer: fill what is new, and ask for as much as there is room for."""
        self.lineup.fill()
        self.intake.room()

    def _make_service_side(self) -> None:
        self.stopping = Stopping(self.intake, self.lineup, self.ledger, self.outbox, self.pool, self.runtime)
        self.stall = StallWatch(self.runtime, self.app.conf.worker_hub_stall_seconds)
        self.service = ServiceThread(self.runtime)
        self.signals = Signals()
        self.supervised = Supervised()
        self.announcer = self._make_announcer()
        self.elections = Elections(self)
        self.panel = WorkerPanel(self)
        self.listener: Listener | None = None
        self.mingle = None if self.options.without_mingle else Mingle(self)
        self.catching_up: CatchingUp | None = None

    def _make_announcer(self) -> Announcer:
        conf, url = self.app.conf, self.app.broker.url
        return Announcer(
            self.events,
            self.clock,
            lambda: EventLink(url, conf, self.hostname),
            lambda: (len(self.ledger.running), self.ledger.finished + len(self.ledger.running)),
            self.runtime,
            beat_every=self.options.heartbeat_interval,
        )

    def run(self) -> int:
        """Start everything, serve until stopped, and let go; returns the exit code (wire.md 1.6)."""
        self.set_rates()
        if self.options.purge:
            self._purge()
        self.runtime.failed = self.stopping.broken
        os.register_at_fork(after_in_child=self.runtime.alone)
        with contextlib.ExitStack() as undo:
            undo.callback(self._let_go)
            self._run_hooks(undo)
            self._start()
            self.pool.serve()
        return self.stopping.exit_code

    def _run_hooks(self, undo: contextlib.ExitStack) -> None:
        """Call the start hooks now, and have the stop hooks called at the end if these went well."""
        hooks, options = self.app.hooks, self.options
        worker = WorkerInfo(self.hostname, options.pool, self.pool.size, tuple(self.queues))
        hooks.worker_start.run(worker)
        undo.callback(hooks.worker_stop.run, worker)
        if not self.pool.can.survives_crash:  # else tasks run in child processes, each with these hooks of its own
            child = ChildInfo(self.hostname, options.pool, 0)
            hooks.child_start.run(child)
            undo.callback(hooks.child_stop.run, child)

    def _start(self) -> None:
        self.pool.start(self.executor.run, self._done)
        # Not before the start hooks, those of child processes included: who waits for one in vain can say Ctrl-C.
        self.signals.install()
        self._fill_service()
        self.timers.start()
        self.outbox.start()
        self.revocations.start()
        self.intake.start()
        self.sizing.start()
        self.stall.start()
        self.service.start()
        if not self.options.quiet:
            print(self._banner(), flush=True)
        self.runtime.spawn(self._say_ready, name="ready")

    def _fill_service(self) -> None:
        service, conf = self.service, self.app.conf
        keeper = Keeper(self.consumer, self.ledger.unsettled, self._tick, self.runtime)
        service.add("keeper", lambda: keeper.serve(service.stopped))
        service.add("limits", self._serve_limits)
        service.add("events", lambda: self.announcer.serve(service.stopped))
        if not self.elections.off:
            service.add("elections", lambda: self.elections.serve(service.stopped))
        service.add("signals", lambda: self.signals.serve(self.stopping.signalled, service.stopped))
        if not is_off(conf):
            self.listener = listener = self._make_listener()
            service.add("control", lambda: listener.run(service.stopped))

    def _make_listener(self) -> Listener:
        conf, url, registry = self.app.conf, self.app.broker.url, default_registry()
        opened_by = self.mingle.open if self.mingle is not None else NodeMailbox.open
        if not keeps_revoked(url):
            return Listener(conf, url, self.hostname, registry, self.panel, self.runtime, opened_by=opened_by)
        self.catching_up = catching_up = CatchingUp(self, registry, opened_by)
        self.service.add("revokes", lambda: catching_up.serve(self.service.stopped))
        return Listener(
            *(conf, url, self.hostname, registry, self.panel, self.runtime),
            opened_by=catching_up.open,
            obeyed=catching_up.obeyed,
        )

    def _knows_what_is_revoked(self) -> bool:
        """Has this worker caught up, from the broker and from its neighbours? Asked before anything is fetched."""
        caught_up = self.catching_up is None or self.listener is None or self.listener.connected
        return caught_up and (self.mingle is None or self.mingle.fresh)

    def _serve_limits(self) -> None:
        self.limits.serve(self.pool.kill, self.pool.nudge, self.runtime.sleep, self.service.stopped)

    def _tick(self) -> None:
        self.stall.look()
        self.stopping.watch()
        self.supervised.tell(
            stopping=self.stopping.stopping,
            running=len(self.ledger.running),
            stalled_for=self.stall.stalled_for(),
        )

    def _say_ready(self) -> None:
        """Ready is: consuming, and listening to commands, unless that takes long."""
        self.intake.wait_ready(None)
        until = time.monotonic() + LISTENING_SECONDS
        while not self._hears() and time.monotonic() < until:
            self.runtime.sleep(0.005)
        logger.info("%s ready.", self.hostname)
        self.supervised.ready()

    def _hears(self) -> bool:
        listens = self.listener is None or self.listener.connected
        return listens and (self.elections.connected or bool(self.elections.off))

    def _done(self, request: Request, outcome: Outcome) -> None:
        """The pool's answer: hand the outcome over, fill the slot, ask for more."""
        self.limits.end(request)
        self.losses.ended(request, outcome)
        if outcome.how is Settle.ACK and not request.acked:
            self.ledger.note_unacknowledged(request)
        self.accounts.ended(request, outcome)
        self.lineup.ended(request)
        self.intake.room()
        # Last, since it may wait, and what waits may be struck by what the task left behind.
        self.accounts.say(request, outcome)

    def _acks_late(self, request: Request) -> bool:
        late: bool = self.app.tasks[request.name].acks_late
        return late

    def set_rates(self) -> None:
        if self.app.conf.worker_disable_rate_limits:
            return
        for name, task in self.app.tasks.items():
            self.rate.set_rate(name, parse_rate(task.rate_limit))
            self.lineup.release(name)

    def _purge(self) -> None:
        erased = sum(self.publisher.purge(queue) for queue in self.queues)
        print(f"purge: Erased {erased} messages from the queue{'s' if len(self.queues) > 1 else ''}.")

    def _banner(self) -> str:
        broker, conf = self.app.broker, self.app.conf
        return banner(
            hostname=self.hostname,
            app=self.app.main or self.app.module,
            broker=broker.shown,
            reason=broker.reason,
            backend=mask_url(self.app.backend) if self.app.backend else "disabled",
            pool=self.options.pool,
            size=self.size.words,
            queues=self.queues,
            tasks=sorted(name for name in self.app.tasks if not name.startswith("greenq.")),
            warnings=conf.warnings,
        )

    def _let_go(self) -> None:
        self.service.stop(LEAVE_SECONDS)
        # A worker with nothing to finish has stopped before the service thread has looked.
        self.supervised.tell(stopping=True, running=len(self.ledger.running), stalled_for=0.0)
        self.stall.stop()
        self.timers.stop()
        self.revocations.stop(LEAVE_SECONDS)
        for closing in (self.consumer.close, self.publisher.close, self.results.close):
            try:
                closing()
            except (GreenqError, OSError) as error:
                # The broker may be the reason for leaving: letting go never talks anybody out of it.
                logger.warning("Closing a connection failed: %s", error)
        self.signals.close()
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a task may have closed or replaced it
            sys.stdout.flush()


