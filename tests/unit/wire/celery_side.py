"""An installed Celery to meet: it writes frames for greenq to read, and reads what greenq writes."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from celery import Celery
from celery.backends.base import KeyValueStoreBackend
from celery.worker.request import Request as CeleryRequest
from kombu import Connection, Producer, Queue
from kombu.transport.virtual import Message
from kombu.utils.json import dumps, loads


class Store(KeyValueStoreBackend):  # type: ignore[misc]
    """Celery's own coding of results over a dict."""

    supports_result_compression = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[bytes, Any] = {}

    def get(self, key: bytes) -> Any:
        return self.kept.get(key)

    def set(self, key: bytes, value: Any) -> None:
        self.kept[key] = value

    def _set_with_state(self, key: bytes, value: Any, state: str) -> None:
        self.kept[key] = value

    def payload(self, task_id: str) -> bytes:
        value = self.kept[self.get_key_for_task(task_id)]
        return value.encode() if isinstance(value, str) else bytes(value)

    def keep(self, task_id: str, payload: bytes) -> None:
        self.kept[self.get_key_for_task(task_id)] = payload


def _add(*args: Any, **kwargs: Any) -> None:
    """Only its name is needed here."""


def celery_app(**conf: Any) -> Celery:
    app = Celery("elsewhere", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    app.backend_cls = Store

    app.task(name="proj.add", shared=False)(_add)
    app.finalize()
    return app


def frame(app: Celery, protocol: int, **options: Any) -> bytes:
    """What kombu's virtual transports would store for a task that Celery sends."""
    made = app.amqp.task_protocols[protocol](
        options.pop("task_id", None) or str(uuid4()),
        options.pop("name", "proj.add"),
        **options.pop("task", {}),
    )
    kept: list[dict[str, Any]] = []
    with Connection("memory://") as connection:
        channel = connection.channel()
        channel._put = lambda queue, message, **_: kept.append(message)
        Queue("celery", channel=channel).declare()
        headers = {**made.headers, **options.pop("headers", {})}
        Producer(channel).publish(
            made.body, routing_key="celery", exchange="", headers=headers, **{**made.properties, **options}
        )
    return str(dumps(kept[0])).encode()


def received(app: Celery, raw: bytes) -> tuple[CeleryRequest, Any]:
    """The request that a Celery worker makes of an envelope, and its decoded body."""
    with Connection("memory://") as connection:
        message = Message(loads(raw), channel=connection.channel())
        message.accept = {"application/json", "application/x-python-serialize"}
        body = message.decode()
        return CeleryRequest(message, app=app, task=app.tasks["proj.add"]), body
