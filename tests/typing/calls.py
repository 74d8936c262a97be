"""Checked by mypy, never run: a line that ends in `# wrong` must be an error, every other line must not."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from greenq import AsyncResult, EagerResult, GreenQ, Retry, Signature, Task, group, shared_task

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


# What fits.
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
add.delay()  # wrong
add.delay("1")  # wrong
add.delay(1, 2, 3)  # wrong
add.delay(1, z=2)  # wrong
add("1")  # wrong
mail.delay("a", "b")  # wrong
mail.delay("a")  # wrong
mail.delay(to=1, subject="b")  # wrong
fetch.delay()  # wrong
fetch.delay(b"https://example.org")  # wrong
fetch.delay("https://example.org", timeout="1")  # wrong
double.delay("1.5")  # wrong
note.delay()  # wrong
number: str = add.delay(1).get()  # wrong
text: int = mail.delay("a", subject="b").get()  # wrong
add.apply_async((1,), cuntdown=5)  # wrong
add.apply_async((1,), countdown="5")  # wrong
add.apply_async((1,), priority="high")  # wrong
app.task(max_retry=3)(len)  # wrong
app.task(rate_limit=[])(len)  # wrong
app.task(name=3)(len)  # wrong
GreenQ(main=3)  # wrong
app.send_task(add)  # wrong
add.nonsense  # wrong
