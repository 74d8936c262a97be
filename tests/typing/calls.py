"""Checked by mypy, never run: each mistake below is one mypy must report, or it reports its unused ignore."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from greenq import (
    AsyncResult,
    ChildInfo,
    EagerResult,
    GreenQ,
    Retry,
    Signature,
    Task,
    TaskContext,
    TaskEnd,
    WorkerInfo,
    group,
    shared_task,
)

app = GreenQ("proj", broker="redis://", task_acks_late=True)


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(name="mail", queue="mail", max_retries=5, autoretry_for=(OSError,), rate_limit="10/m")
def mail(to: str, *, subject: str) -> str:
    return to + subject


@app.task(bind=True, soft_time_limit=5)
def fetch(self: Task[..., bytes], url: str, timeout: float = 1.0) -> bytes:
    if self.request.retries:
        raise self.retry(countdown=5)
    return url.encode()


@shared_task
def double(x: float) -> float:
    return 2 * x


@shared_task(bind=True, ignore_result=True)
def note(self: Task[..., None], text: str) -> None: ...


@app.hooks.worker_start
def begin() -> int:
    return 1


@app.hooks.worker_stop
def end(worker: WorkerInfo) -> None: ...


@app.hooks.child_start()
def connect(child: ChildInfo) -> int:
    return child.index


@app.hooks.after_task
@app.hooks.before_task
def count(request: TaskContext) -> str:
    return str(request.id)


@app.hooks.after_task
def measure(request: TaskContext, end: TaskEnd) -> float:
    return end.runtime


# What fits.
assert_type(begin(), int)
assert_type(connect(ChildInfo("w@h", "solo", 0)), int)
app.hooks.child_stop(lambda child: child.index)
assert_type(add(1), int)
assert_type(add.delay(1, y=2), AsyncResult[int])
assert_type(add.delay(1).get(), int)
assert_type(add.apply_async((1,), countdown=5, queue="q"), AsyncResult[int])
assert_type(add.apply((1,)), EagerResult[int])
assert_type(mail.delay("a", subject="b").get(timeout=1), str)
assert_type(fetch("https://example.org"), bytes)
assert_type(fetch.delay("https://example.org", timeout=2.0), AsyncResult[bytes])
assert_type(double.delay(1.5).get(), float)
assert_type(note.delay("x"), AsyncResult[None])
assert_type(add.s(1), Signature)
assert_type(fetch.retry(exc=OSError()), Retry)
assert_type(app.send_task("any"), AsyncResult[Any])
group(add.s(i) for i in range(3)).delay().get()
app.send_tasks([(add, (1,)), add.s(2)])
add.max_retries = None

# What does not.
add.delay()  # type: ignore[call-arg]
add.delay("1")  # type: ignore[arg-type]
add.delay(1, 2, 3)  # type: ignore[call-arg]
add.delay(1, z=2)  # type: ignore[call-arg]
add("1")  # type: ignore[arg-type]
mail.delay("a", "b")  # type: ignore[call-arg]
mail.delay("a")  # type: ignore[call-arg]
mail.delay(to=1, subject="b")  # type: ignore[arg-type]
fetch.delay()  # type: ignore[call-arg]
fetch.delay(b"https://example.org")  # type: ignore[arg-type]
fetch.delay("https://example.org", timeout="1")  # type: ignore[arg-type]
double.delay("1.5")  # type: ignore[arg-type]
note.delay()  # type: ignore[call-arg]
number: str = add.delay(1).get()  # type: ignore[assignment]
text: int = mail.delay("a", subject="b").get()  # type: ignore[assignment]
add.apply_async((1,), cuntdown=5)  # type: ignore[call-arg]
add.apply_async((1,), countdown="5")  # type: ignore[arg-type]
add.apply_async((1,), priority="high")  # type: ignore[arg-type]
app.task(max_retry=3)(len)  # type: ignore[call-overload]
app.task(rate_limit=[])(len)  # type: ignore[call-overload]
app.task(name=3)(len)  # type: ignore[call-overload]
GreenQ(main=3)  # type: ignore[arg-type]
app.send_task(add)  # type: ignore[arg-type]
app.hooks.child_start(end)  # type: ignore[arg-type]
app.hooks.before_task(measure)  # type: ignore[arg-type]
app.hooks.befor_task(begin)  # type: ignore[attr-defined]
add.nonsense()  # type: ignore[attr-defined]
