"""The experiments of the pool matrix: each takes a running worker and says what it saw, or fails."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
from functools import partial

import redis
from celery import Celery, chord

from tests.support.pool_scene import APP, BY_ITSELF, SECONDS, Finding, Scene, answered, error_of, said_no, yes
from tests.support.processes import wait_for


def hard_limit(scene: Scene) -> Finding:
    """Of the command line, of a message, of the task: each ends a task that waits and swallows every Exception."""
    return _hard(scene, "sleep")


def hard_limit_computing(scene: Scene) -> Finding:
    return _hard(scene, "compute")


def _hard(scene: Scene, how: str) -> Finding:
    took = {}
    for source, name, options in (
        ("option 0.8", "stubborn", {}),
        ("message 0.5", "stubborn", {"time_limit": 0.5}),
        ("task 0.5", "stubborn_limited", {}),
    ):
        began = time.monotonic()
        error = error_of(scene.send(name, how, **options))
        assert error == "TimeLimitExceeded", f"{source}: {error or 'success'}"
        took[source] = time.monotonic() - began
        assert took[source] < BY_ITSELF / 2
    assert scene.send("add", 1, 1).get(timeout=SECONDS) == 2, "the slot is free again"
    return _times(took)


def soft_limit(scene: Scene) -> Finding:
    """Each can be caught in the task, whether it waits or computes."""
    took = {}
    for how in ("sleep", "compute"):
        for source, name, options in (
            (f"option 0.4, {how}", "tidy", {}),
            (f"message 0.2, {how}", "tidy", {"soft_time_limit": 0.2}),
            (f"task 0.3, {how}", "tidy_limited", {}),
        ):
            began = time.monotonic()
            assert scene.send(name, how, **options).get(timeout=SECONDS) == "tidied up", source
            took[source] = time.monotonic() - began
    return _times(took)


def _times(took: dict[str, float]) -> Finding:
    return yes("; ".join(f"{source}: {seconds:.2f} s" for source, seconds in took.items()))


def time_limit_command(scene: Scene) -> Finding:
    assert scene.ask("time_limit", task_name=f"{APP}.tidy", soft=0.3, hard=20) == _LIMITS_SET
    assert scene.send("tidy", "sleep").get(timeout=SECONDS) == "tidied up"
    assert scene.ask("time_limit", task_name=f"{APP}.stubborn", hard=0.4) == _LIMITS_SET
    assert error_of(scene.send("stubborn", "sleep")) == "TimeLimitExceeded"
    return yes("a soft and a hard one")


_LIMITS_SET = {"ok": "time limits set successfully"}


def terminate(scene: Scene) -> Finding:
    others = [scene.nap(f"bystander{number}", 1.0) for number in range(scene.slots - 1)]
    victim = scene.nap("victim", BY_ITSELF)
    began = time.monotonic()
    assert scene.ask("revoke", task_id=victim.id, terminate=True) == {"ok": f"terminate: {victim.id}"}
    assert error_of(victim) == "TaskRevokedError"
    seconds = time.monotonic() - began
    assert [each.get(timeout=SECONDS) for each in others] == [f"bystander{n}" for n in range(scene.slots - 1)]
    assert max(scene.ledger.starts().values()) == 1, "a bystander was hit"
    assert victim.state == "REVOKED" and "victim" not in scene.ledger.dones()
    assert not re.search(rf"{victim.id}\] succeeded", scene.node.output()), "ended, and yet a success"
    return yes(f"REVOKED after {seconds:.2f} s")


def signal_name(scene: Scene) -> Finding:
    sent = scene.send("signalled", "signal")
    scene.wait_started("signal")
    assert "error" in scene.ask("terminate", signal="NOSUCH", task_id=sent.id)
    assert scene.ask("terminate", signal="USR2", task_id=sent.id) == {"ok": f"terminate: {sent.id}"}
    assert error_of(sent) == "TaskRevokedError"
    scene.wait_done(f"signal-{signal.SIGUSR2.value}")
    return yes("USR2 was seen in the task as USR2, NOSUCH refused")


def autoscale(scene: Scene) -> Finding:
    def current() -> int:
        return int(scene.ask("stats")["autoscaler"]["current"])

    assert current() == 2
    began = time.monotonic()
    names = [f"scaled{number}" for number in range(12)]
    for name in names:
        scene.send("nap", name, 1.0)
    wait_for(lambda: current() == 6, SECONDS, lambda: f"6 slots: there are {current()}")
    grown = time.monotonic() - began
    assert scene.ask("pool_grow")["error"].startswith("pool_grow is not supported with autoscale")
    assert scene.ask("autoscale", max=5, min=2) == {"ok": "autoscale now max=5 min=2"}
    scene.wait_done(*names)
    assert max(scene.ledger.starts().values()) == 1
    wait_for(lambda: current() == 2, SECONDS, lambda: f"2 slots again: there are {current()}")
    return yes(f"from 2 to 6 slots in {grown:.2f} s, and back")


def pool_grow(scene: Scene) -> Finding:
    refusal = answered(scene.ask("pool_grow", n=2))
    if refusal is not None:
        return refusal
    names = [f"grown{number}" for number in range(scene.slots + 2)]
    sent = [scene.send("nap", name, BY_ITSELF) for name in names]
    scene.wait_started(*names)
    scene.end(*sent)
    return yes(f"{len(names)} tasks at once")


def pool_shrink(scene: Scene) -> Finding:
    size = scene.ask("stats")["pool"]["max-concurrency"]
    names = [f"shrunk{number}" for number in range(size)]
    for name in names:
        scene.nap(name, 1.5)
    refusal = answered(scene.ask("pool_shrink", n=max(1, size - 1)))
    if refusal is not None:
        return refusal
    assert "error" in scene.ask("pool_shrink", n=1), "there is one slot"
    scene.wait_done(*names)
    assert max(scene.ledger.starts().values()) == 1, "a running task was cut short"
    alone = scene.nap("alone", BY_ITSELF)
    pool = scene.ask("stats")["pool"]
    assert (pool["max-concurrency"], pool["running"], pool["free"]) == (1, 1, 0)
    scene.end(alone)
    return yes(f"from {size} slots to 1, not to 0, and nothing that ran was cut short")


def pool_restart(scene: Scene) -> Finding:
    first = scene.send("word").get(timeout=SECONDS)
    before = scene.ask("stats")["pool"].get("processes", [])
    (scene.folder / "matrix_word.py").write_text(f'WORD = "{first} and another"\n')
    running = scene.nap("restarted", 1.0)
    refusal = answered(scene.ask("pool_restart", modules=["matrix_word"], reload=True))
    assert running.get(timeout=SECONDS) == "restarted"
    assert scene.ledger.starts()["restarted"] == 1
    if refusal is not None:
        assert scene.send("word").get(timeout=SECONDS) == first, "refused, and yet there is new code"
        return refusal
    wait_for(lambda: scene.send("word").get(timeout=SECONDS) != first, SECONDS, "new code")
    wait_for(lambda: not {*before} & {*scene.ask("stats")["pool"]["processes"]}, SECONDS, "new processes only")
    return yes("new processes with new code; what ran went on")


def max_tasks(scene: Scene) -> Finding:
    """Started with 3."""
    pids = [scene.send("where").get(timeout=SECONDS)["pid"] for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1], pids
    return yes("7 tasks in 3 processes")


def max_memory(scene: Scene) -> Finding:
    """Started with 150 MB."""
    first = scene.send("where").get(timeout=SECONDS)["pid"]
    assert scene.send("swallow", 1).get(timeout=SECONDS) == first, "replaced too early"
    assert scene.send("swallow", 200).get(timeout=SECONDS) == first
    assert scene.send("where").get(timeout=SECONDS)["pid"] != first, "200 MB, and not replaced"
    return yes("replaced after a task of 200 MB, not after one of 1 MB")


def control_while_waiting(scene: Scene) -> Finding:
    sent = scene.nap("waits", BY_ITSELF)
    slowest = scene.pings()
    assert [each["id"] for each in scene.ask("active")] == [sent.id]
    reply = scene.ask("rate_limit", task_name=f"{APP}.add", rate_limit="1000/s")
    assert reply == {"ok": "new rate limit set successfully"}
    scene.end(sent)
    return yes(f"slowest of 5 pings: {slowest * 1000:.0f} ms")


def control_while_full(scene: Scene) -> Finding:
    """What changes something takes effect at once too, and does not wait for a slot."""
    running = scene.fill("full")
    waiting = scene.send("nap", "behind", BY_ITSELF)
    slowest = scene.pings()
    assert {each["id"] for each in scene.ask("active")} == {each.id for each in running}
    assert scene.ask("time_limit", task_name=f"{APP}.add", hard=60) == _LIMITS_SET
    scene.end(running[0])
    scene.wait_started("behind")
    scene.end(*running[1:], waiting)
    return yes(f"slowest of 5 pings: {slowest * 1000:.0f} ms")


def control_while_computing(scene: Scene) -> Finding:
    sent = scene.send("compute", "computes", BY_ITSELF)
    scene.wait_started("computes")
    slowest = scene.pings()
    assert [each["id"] for each in scene.ask("active")] == [sent.id]
    began = time.monotonic()
    scene.end(sent)
    assert "computes" not in scene.ledger.dones()
    return yes(f"slowest of 5 pings: {slowest * 1000:.0f} ms; terminated in {time.monotonic() - began:.2f} s")


def reserved(scene: Scene) -> Finding:
    """A backlog of short tasks, held ahead, and then long ones: what waits behind these goes back."""
    for number in range(scene.slots):
        scene.nap(f"plug{number}", 1.0)
    for number in range(300):
        scene.send("nap", f"short{number}", 0.005)
    long = [scene.send("nap", f"long{number}", BY_ITSELF) for number in range(scene.slots)]
    waiting = [scene.send("nap", f"waiting{number}", 0) for number in range(4 * scene.slots)]
    most, behind = 0, {f"long{number}" for number in range(scene.slots)}
    while not behind <= set(scene.ledger.starts()):
        most = max(most, len(scene.ask("reserved")))
    assert most > 0
    wait_for(lambda: not scene.ask("reserved") and scene.length() == len(waiting), SECONDS, "an empty reserve")
    assert scene.ask("stats")["prefetch_count"] == 4 * scene.slots
    scene.end(*waiting, *long)
    return yes(f"up to {most} held while tasks took 5 ms, none behind long ones")


def priority(scene: Scene) -> Finding:
    """What was sent before the worker started: on Redis 0 is the most urgent, as for Celery."""
    names = [f"priority{level}" for level in (0, 3, 9)]
    scene.wait_done(*names)
    assert [name for name in scene.ledger.starts() if name in names] == names
    return yes("first 0, then 3, then 9, though sent the other way round")


def send_by_priority(scene: Scene) -> None:
    """Before the worker starts."""
    for level in (9, 3, 0):
        scene.send("nap", f"priority{level}", 0, priority=level)


def warm_shutdown(scene: Scene) -> Finding:
    scene.send("nap", "held", 0, countdown=BY_ITSELF)
    wait_for(lambda: scene.ask("scheduled"), SECONDS, "one that is held here")
    running = scene.nap("last", 1.0)
    scene.send("nap", "waiting", 0)
    scene.node.signal(signal.SIGTERM)
    assert scene.node.wait(SECONDS) == 0
    assert running.get(timeout=1) == "last"
    lag = time.time() - (scene.folder / "ledger").stat().st_mtime
    assert scene.length() == 2, "what had not started goes back"
    assert not {"held", "waiting"} & set(scene.ledger.starts())
    return yes(f"exit 0, {lag:.2f} s after its last task; what had not started went back")


def remote_shutdown(scene: Scene) -> Finding:
    """With every slot busy."""
    running = [scene.nap(f"goodbye{number}", 0.7) for number in range(scene.slots)]
    assert scene.ask("shutdown", timeout=0.3) is None, "a shutdown is never answered"
    assert scene.node.wait(SECONDS) == 0
    assert [each.get(timeout=1) for each in running] == [f"goodbye{number}" for number in range(scene.slots)]
    return yes("exit 0, no reply")


def cold_shutdown(scene: Scene) -> Finding:
    sent = scene.fill("cold")
    began = time.monotonic()
    scene.node.signal(signal.SIGQUIT)
    assert scene.node.wait(SECONDS) == 0
    seconds = time.monotonic() - began
    assert scene.length() == scene.slots, f"{scene.length()} of {scene.slots} messages came back"
    assert {each.state for each in sent} == {"PENDING"}, "cut short, and yet a result"
    return yes(f"{scene.slots} back in the broker after {seconds:.2f} s, exit 0")


def soft_shutdown(scene: Scene) -> Finding:
    """With a timeout of 5 s, a task of 1 s should be waited for."""
    scene.nap("soft", 1.0)
    scene.node.signal(signal.SIGQUIT)
    assert scene.node.wait(SECONDS) == 0
    if "soft" in scene.ledger.dones():
        return yes("what ran was waited for")
    warning = re.search(r"setting (worker_soft_shutdown_timeout) \(\S+\) (.*)", scene.node.output())
    assert warning, "the setting was accepted, and the running task was cut short"
    return said_no(f"{warning[1]} {warning[2]}")


def stack_dump(scene: Scene) -> Finding:
    scene.nap("dumped", BY_ITSELF)
    scene.node.signal(signal.SIGUSR1)
    wait_for(lambda: not scene.node.running or "in nap" in scene.node.output(), 3.0, "a dump that shows the task")
    if scene.node.running:
        return yes("the task's own line is in it")
    assert scene.node.wait() == -signal.SIGUSR1
    return Finding("later", said="USR1 ends the worker, as it does any process that has no use for it")


def processes(scene: Scene) -> Finding:
    used = {scene.send("where").get(timeout=SECONDS)["pid"] for _ in range(8)}
    listed = scene.ask("stats")["pool"].get("processes")
    assert listed is not None and used <= set(listed), f"tasks ran in {used}, stats says {listed}"
    return yes(f"{len(listed)}")


def child_start(scene: Scene) -> Finding:
    assert all(scene.send("where").get(timeout=SECONDS)["ready"] for _ in range(8))
    return yes("once in each process, before its first task")


def beat(scene: Scene) -> Finding:
    raise AssertionError("-B is accepted: measure here what the scheduler sends")


def events(scene: Scene) -> Finding:
    """What a watcher of the channel of batches reads, while fifty tasks run."""
    scene.ask("enable_events")
    with redis.Redis.from_url(scene.app.broker.url) as client, client.pubsub() as watcher:
        watcher.psubscribe("*celeryev/task.multi")
        for sent in [scene.send("add", number, 1) for number in range(50)]:
            sent.get(timeout=SECONDS)
        read = partial(watcher.get_message, ignore_subscribe_messages=True)
        message = wait_for(read, SECONDS, "a batch of events")
    scene.ask("disable_events")
    batch = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    assert len(batch) > 1
    return yes(f"{len(batch)} in one message")


def election(scene: Scene) -> Finding:
    """The action is a task whose result somebody waits for."""
    began = time.monotonic()
    action = scene.app.signature(f"{APP}.add", (1, 1), task_id="elected")
    assert scene.ask("election", id="1", topic="task", action=action.plain()) is None
    assert scene.app.AsyncResult("elected").get(timeout=SECONDS) == 2
    return yes(f"the action's result came after {time.monotonic() - began:.2f} s")


def eta(scene: Scene) -> Finding:
    began = time.time()
    sent = scene.send("nap", "due", 0, countdown=0.7)
    wait_for(lambda: [each["request"]["id"] for each in scene.ask("scheduled")] == [sent.id], 0.6, "it to be held")
    scene.wait_started("due")
    waited = time.time() - began
    assert waited >= 0.7
    return yes(f"a countdown of 0.7 s took {waited:.2f} s")


def rate_limit(scene: Scene) -> Finding:
    sent = [scene.send("limited") for _ in range(4)]
    moments = sorted(each.get(timeout=SECONDS) for each in sent)
    assert moments[-1] - moments[0] >= 0.55, moments
    return yes(f"4 tasks at 5/s took {moments[-1] - moments[0]:.2f} s")


def revoke(scene: Scene) -> Finding:
    sent = scene.send("nap", "revoked", 0, countdown=BY_ITSELF)
    wait_for(lambda: scene.ask("scheduled"), SECONDS, "it to be held")
    assert "ok" in scene.ask("revoke", task_id=sent.id)
    began = time.monotonic()
    assert error_of(sent) == "TaskRevokedError"
    assert not scene.ask("scheduled") and "revoked" not in scene.ledger.starts()
    return yes(f"{time.monotonic() - began:.2f} s later, long before its ETA")


def expires(scene: Scene) -> Finding:
    assert error_of(scene.send("nap", "stale", 0, expires=-1)) == "TaskRevokedError"
    assert "stale" not in scene.ledger.starts()
    return yes()


def retries(scene: Scene) -> Finding:
    assert scene.send("retried").get(timeout=SECONDS) == 2
    return yes("2")


def chords(scene: Scene) -> Finding:
    """Of a Celery producer; greenq's own refuse to be written down."""
    for part in _send_chord(scene.url):
        scene.app.AsyncResult(part).get(timeout=SECONDS)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if "total-6" in scene.ledger.dones():
            return yes("the body got the results of the header")
        time.sleep(0.05)
    told = re.search(r"\bchords? .*", scene.node.output())
    assert told, "a chord's header runs, its body never does, and nobody is told"
    return said_no(told[0])


def _send_chord(url: str) -> list[str]:
    """The ids of its header."""
    with Celery("producer", broker=url, backend=url, set_as_current=False) as producer:
        # A result that is collected unsubscribes, and may do so when the server is gone.
        producer.backend.remove_pending_result = lambda result: result
        header = [producer.signature(f"{APP}.add", (number, 1)) for number in range(3)]
        sent = chord(header, producer.signature(f"{APP}.total"), app=producer).apply_async()
        return [part.id for part in sent.parent]
