"""What eventlet needs beyond the contract of runtimes: it loses timers, and resolves and forks in its own ways."""

from __future__ import annotations

import subprocess
import sys

SETUP = """
from greenq.runtime.patching import patch
patch("eventlet")
import os, socket, threading, time
from greenq.runtime.eventlet import EventletRuntime
runtime = EventletRuntime()
runtime.attach()
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_switch_that_nobody_asked_for_ends_no_wait() -> None:
    """A signal that raises in the midst of `eventlet.sleep` leaves a timer behind, which switches later."""
    script = """
done, greenlets, lock, event = [], {}, threading.Lock(), runtime.event()

def want(name, wait):
    greenlets[name] = runtime.current()
    wait()
    done.append(name)

lock.acquire()
for name, wait in (("park", runtime.park), ("event", event.wait), ("lock", lock.acquire)):
    runtime.wake(runtime.greenlet(want, name, wait))
runtime.sleep(0.01)
for _ in range(3):
    for greenlet in greenlets.values():
        runtime.call_soon(greenlet.switch)
    runtime.sleep(0.01)
assert not done and lock.locked(), done
runtime.wake(greenlets["park"])
runtime.sleep(0.01)
event.set()
runtime.sleep(0.01)
lock.release()
runtime.sleep(0.01)
print(done)
"""
    assert run(script) == "['park', 'event', 'lock']\n"


def test_a_forked_child_that_waits_takes_no_event_from_its_parent() -> None:
    """The epoll descriptor is one for both until the child lets go of it."""
    script = """
left, right = socket.socketpair()
heard = []
fiber = runtime.spawn(lambda: heard.append(left.recv(10)), name="reader")
runtime.sleep(0.01)
pid = os.fork()
if pid == 0:
    runtime.alone()
    time.sleep(0.05)
    runtime.call_soon(heard.append, "here")
    a, b = socket.socketpair()
    b.send(b"x")
    assert a.recv(1) == b"x"
    time.sleep(0.3)
    os._exit(0 if heard == ["here"] else 1)
runtime.sleep(0.15)
right.send(b"for the parent")
fiber.join(5)
runtime.call_soon(heard.append, "posted")
while "posted" not in heard:
    runtime.sleep(0.01)
print(heard, os.waitpid(pid, 0)[1])
"""
    assert run(script) == "[b'for the pa', 'posted'] 0\n"


def test_names_are_looked_up_beside_the_hub() -> None:
    script = """
before = len(os.listdir("/proc/self/task"))
assert ("127.0.0.1", 80) in [found[4] for found in socket.getaddrinfo("127.0.0.1", 80)]
assert socket.gethostbyname("127.0.0.1") == "127.0.0.1"
try:
    socket.getaddrinfo("::::", 80)
except socket.gaierror:
    print(len(os.listdir("/proc/self/task")) - before)
"""
    assert run(script) == "1\n"


def test_a_lock_can_be_taken_in_the_hub_from_another_thread_but_not_from_its_own_fibers() -> None:
    script = """
lock, said = threading.Lock(), []

def in_hub():
    try:
        with lock:
            said.append("taken")
    except RuntimeError as error:
        said.append(str(error))

def hold():
    with lock:
        time.sleep(0.2)

with lock:
    runtime.call_soon(in_hub)
    runtime.sleep(0.05)
thread = runtime.isolated(hold, name="holder")
while not lock.locked():
    runtime.sleep(0.001)
runtime.call_soon(in_hub)
thread.join(5)
print(said)
"""
    assert run(script) == "['a call made by the hub wants a lock that a greenlet of this hub has', 'taken']\n"
