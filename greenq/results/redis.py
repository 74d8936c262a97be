"""Results in Redis as Celery keeps them: one key a task, written in batches, announced when written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from greenq.exceptions import BrokerError, BrokerUnreachable, ConfigError, ResultError
from greenq.model import Record
from greenq.results.waiting import Waiters
from greenq.transports.redis.connection import Arg, Wire, script
from greenq.transports.redis.endpoint import parse_endpoint

T = TypeVar("T")

CHUNK = 100  # records a script: it blocks Redis for about half a millisecond
READ_CHUNK = 500

# KEYS: one a record. ARGV, three a record: milliseconds to keep it ('' for ever), payload, '1' to write over
# what is no JSON of Celery's. Returns the numbers of the records left out because of such a value.
# SUCCESS is told by how the stored text begins, so nothing is decoded: Celery writes "status" first.
STORE = script("""
local doubtful = {}
for i = 1, #KEYS do
  local keep, payload, force = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 19)
  local stored = type(head) == 'string' and head or '?'
  if stored ~= '{"status": "SUCCESS"' and stored:sub(1, 19) ~= '{"status":"SUCCESS"' then
    if stored == '' or stored:sub(1, 9) == '{"status"' or force == '1' then
      if keep == '' then redis.call('SET', KEYS[i], payload)
      else redis.call('SET', KEYS[i], payload, 'PX', keep) end
      redis.call('PUBLISH', KEYS[i], payload)
    else
      doubtful[#doubtful + 1] = i
    end
  end
end
return doubtful
""")


class RedisResults:
    """`celery-task-meta-<id>` keys (wire.md 6.2), read by Celery's own `AsyncResult` and the other way round.

    At most two connections a process, whoever calls: one for commands, used by one caller after the other, and,
    once somebody waits, one that listens for all of them.

    Options: `global_keyprefix` (with Celery's `_` after it), `socket_timeout` and the other connection options
    of `parse_endpoint`, `ssl`, and `succeeded`, a function that says of a stored payload whether its state is
    SUCCESS; it is asked only about payloads that are not Celery's JSON (compressed, other serializers).
    Without it such payloads are written over.
    """

    name = "redis"
    persistent = True

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None) -> None:
        settings = dict(options or {})
        succeeded = settings.get("succeeded")
        if succeeded is not None and not callable(succeeded):
            raise ConfigError(f"the result option succeeded is a function of the payload, not {succeeded!r}")
        endpoint = parse_endpoint(url, settings)
        self._prefix = _key_prefix(str(settings.get("global_keyprefix") or ""))
        self._succeeded: Callable[[bytes], bool] | None = succeeded
        self._wire = Wire(endpoint)
        self._lock = threading.Lock()
        self._waiters = Waiters(endpoint, self.read, self._key)

    def store(self, records: Sequence[Record]) -> None:
        for start in range(0, len(records), CHUNK):
            self._store_chunk(records[start : start + CHUNK])

    def read(self, task_ids: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(task_ids), READ_CHUNK):
            keys = [self._key(task_id) for task_id in task_ids[start : start + READ_CHUNK]]
            found += self._safely(lambda keys=keys: self._wire.call("MGET", *keys))  # type: ignore[misc]
        return found

    def wait(self, task_id: str, ready: Callable[[bytes], bool], timeout: float | None) -> bytes:
        payload = self.read([task_id])[0]
        if payload is not None and ready(payload):
            return payload
        return self._waiters.wait(task_id, ready, timeout)

    def expect(self, task_ids: Sequence[str]) -> None:
        """Do nothing: `wait` reads the key once it is subscribed, so nothing can be missed before."""

    def forget(self, task_id: str) -> None:
        self._safely(lambda: self._wire.call("UNLINK", self._key(task_id)))

    def close(self) -> None:
        """Let go of both connections; who is still waiting gets a ResultError."""
        self._waiters.close()
        with self._lock:
            self._wire.close()

    def _key(self, task_id: str) -> str:
        return f"{self._prefix}celery-task-meta-{task_id}"

    def _store_chunk(self, records: Sequence[Record]) -> None:
        doubtful = self._write(records, force=self._succeeded is None)
        if not doubtful or self._succeeded is None:
            return
        asked = [records[number - 1] for number in doubtful]
        stored = self.read([record.task_id for record in asked])
        pairs = zip(asked, stored, strict=True)
        again = [record for record, old in pairs if old is None or not self._succeeded(old)]
        if again:
            self._write(again, force=True)

    def _write(self, records: Sequence[Record], *, force: bool) -> list[int]:
        keys = [self._key(record.task_id) for record in records]
        args: list[Arg] = []
        for record in records:
            keep = max(1, int(record.expires * 1000)) if record.expires else ""
            args += (keep, record.payload, "1" if force else "0")
        numbers: list[int] = self._safely(lambda: self._wire.run(STORE, keys, args))
        return numbers

    def _safely(self, step: Callable[[], T]) -> T:
        """Run one exchange on the command connection; once more where it had died while nobody used it.

        Every exchange may be repeated: writing the same record twice leaves what writing it once leaves.
        """
        with self._lock:
            stale = self._wire.socket() is not None
            try:
                try:
                    return step()
                except BrokerUnreachable:
                    if not stale:
                        raise
                    return step()
            except BrokerError as exc:
                raise ResultError(f"the result store failed: {exc}") from exc


def _key_prefix(prefix: str) -> str:
    """Celery puts `_` between its `global_keyprefix` and the key unless the prefix ends in a separator."""
    return prefix if not prefix or prefix[-1] in ":_-." else f"{prefix}_"
