"""What `import greenq` loads, and what using it for the first time does."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "kombu",
    "redis",
    "gevent",
    "eventlet",
    "msgspec",
    "click",
    "celery",
    "amqp",
    "hiredis",
    "psutil",
    "asyncio",
)


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_importing_greenq_loads_nothing_heavy() -> None:
    loaded = loaded_by("import greenq")
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("greenq")} == {"greenq"}


def test_its_exceptions_load_nothing_else() -> None:
    loaded = loaded_by("from greenq import Retry, Ignore, SoftTimeLimitExceeded")
    assert {name for name in loaded if name.startswith("greenq")} == {"greenq", "greenq.exceptions"}


def test_settings_load_nothing_heavy() -> None:
    assert not loaded_by("from greenq.config import Settings; Settings()") & set(HEAVY)


def test_an_app_that_only_exists_opens_no_broker_library() -> None:
    loaded = loaded_by(
        "from greenq import GreenQ\napp = GreenQ('x', broker='redis://h')\n@app.task\ndef f(): pass\napp.finalize()"
    )
    assert not loaded & {"redis", "gevent", "eventlet", "celery", "click", "asyncio"}


def test_importing_greenq_leaves_everything_to_be_patched() -> None:
    before = loaded_by("")
    assert loaded_by("import greenq") - before <= {"greenq", "__future__"}


@pytest.mark.parametrize("name", ["nope", "app_", "Task_"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    import greenq

    with pytest.raises(AttributeError, match=name):
        getattr(greenq, name)


def test_the_public_names_are_pinned() -> None:
    import greenq

    assert sorted(greenq.__all__) == [
        "AsyncResult",
        "Autoscaler",
        "ChildInfo",
        "EagerResult",
        "GreenQ",
        "GreenqError",
        "Ignore",
        "MaxRetriesExceeded",
        "Reject",
        "ResultTimeout",
        "Retry",
        "Signature",
        "SoftTimeLimitExceeded",
        "Task",
        "TaskContext",
        "TaskEnd",
        "TaskRevokedError",
        "TimeLimitExceeded",
        "WorkerInfo",
        "allow_join_result",
        "group",
        "shared_task",
        "signature",
    ]
    assert set(greenq.__all__) < set(dir(greenq))
