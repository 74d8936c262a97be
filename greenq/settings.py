# ruff: noqa: FBT003  (the rows of a table are read by their columns)
"""Every setting in one table: its name, kind, default, meaning, and whether this version honours it.

Names, kinds and defaults are Celery's (wire.md 9) unless the row is one of greenq's own, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple


class Status(Enum):
    """What becomes of a setting that somebody writes down."""

    HONOURED = "honoured"
    MEANINGLESS = "meaningless"  # the thing it steers does not exist here; `reason` says why
    UNSUPPORTED = "unsupported"  # not in this version; `reason` says what happens instead


class Setting(NamedTuple):
    """One row. `kind` is a key of `config.KINDS`; None is allowed wherever the default is None."""

    name: str
    kind: str
    default: Any
    doc: str
    status: Status = Status.HONOURED
    reason: str = ""
    own: bool = False  # greenq's, unknown to Celery


def _moot(name: str, kind: str, default: Any, reason: str) -> Setting:
    return Setting(name, kind, default, "", Status.MEANINGLESS, reason)


def _later(name: str, kind: str, default: Any, reason: str) -> Setting:
    return Setting(name, kind, default, "", Status.UNSUPPORTED, reason)


def _own(name: str, kind: str, default: Any, doc: str) -> Setting:
    return Setting(name, kind, default, doc, own=True)


_S = Setting
_PARTS = "write one broker_url instead"
_RPARTS = "write it into result_backend: redis://user:password@host:port/db"
_FAILOVER = "fail-over between several brokers is not part of this version"
_CONNECTS = "a worker connects again for as long as it takes"
_LOG_FORMAT = "the log has one format in this version; set up your own with logging.config"
_CHORDS = "chords are not part of this version"
_EVENTS = "events are not part of this version"
_BEAT = "the scheduler is not part of this version"
_SIGNED = "signed messages are not part of this version"
_ROOT_LOGGER = "greenq never takes over the root logger or the standard streams"
_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}
_LOG = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
_TASK_LOG = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"

_GENERAL = (
    _S("accept_content", "list", ("json",), "Content types let in, by serializer name or mime type."),
    _S("result_accept_content", "list", None, "Content types let in as results; None means accept_content."),
    _later("enable_utc", "bool", True, "times on the wire are always UTC with an offset"),
    _S("timezone", "str", None, "Zone of times written without one; None means UTC."),
    _S("imports", "list", (), "Modules to import with the app, for the tasks in them."),
    _S("include", "list", (), "More of the same; the two lists are joined."),
)

_BROKER = (
    _S("broker_url", "url", None, "Where the broker is; None means the embedded one."),
    _later("broker_read_url", "url", None, "broker_url serves reading and writing"),
    _later("broker_write_url", "url", None, "broker_url serves reading and writing"),
    _later("broker_transport", "str", None, _PARTS),
    _later("broker_host", "str", None, _PARTS),
    _later("broker_port", "int", None, _PARTS),
    _later("broker_user", "str", None, _PARTS),
    _later("broker_password", "str", None, _PARTS),
    _later("broker_vhost", "str", None, _PARTS),
    _S("broker_transport_options", "dict", {}, "Options of the transport, such as global_keyprefix."),
    _S("broker_use_ssl", "any", False, "True, or a dict of the ssl module's options."),
    _S("broker_login_method", "str", None, "AMQP login method."),
    _later("broker_failover_strategy", "any", None, _FAILOVER),
    _S("broker_connection_timeout", "seconds", 4.0, "Give up connecting after this long."),
    _later("broker_connection_retry", "bool", True, _CONNECTS),
    _later("broker_connection_retry_on_startup", "bool", None, _CONNECTS),
    _later("broker_connection_max_retries", "int", 100, _CONNECTS),
    _moot("broker_channel_error_retry", "bool", False, "a lost channel is always opened again"),
    _S("broker_heartbeat", "int", 120, "AMQP heartbeat, seconds."),
    _moot("broker_heartbeat_checkrate", "float", 3.0, "the service thread checks at its own pace"),
    _moot("broker_pool_limit", "int", 10, "a process has few connections, each with one owner"),
    _moot("broker_pool_acquire_timeout", "seconds", None, "there is no connection pool to wait for"),
    _later(
        "broker_native_delayed_delivery_queue_type",
        "str",
        "quorum",
        "delayed delivery through RabbitMQ's own queues is not part of this version",
    ),
)

_CONTROL = (
    _S("control_exchange", "str", "celery", "Prefix of the control plane's exchanges."),
    _S("control_queue_ttl", "seconds", 300.0, "How long a command may wait in a node's mailbox."),
    _S("control_queue_expires", "seconds", 10.0, "When an unused mailbox is deleted."),
    _S("control_queue_exclusive", "bool", True, "Mailboxes belong to one connection."),
    _S("control_queue_durable", "bool", False, "Mailboxes survive a restart of the broker."),
    _S("event_exchange", "str", "celeryev", "The exchange that events are published to."),
    _later("event_queue_prefix", "str", "celeryev", _EVENTS),
    _later("event_queue_ttl", "seconds", 5.0, _EVENTS),
    _later("event_queue_expires", "seconds", 60.0, _EVENTS),
    _later("event_queue_exclusive", "bool", True, _EVENTS),
    _later("event_queue_durable", "bool", False, _EVENTS),
    _S("event_serializer", "str", "json", "The serializer of events."),
)

_TASK = (
    _S("task_acks_late", "bool", True, "Acknowledge when the task has ended, not before. Celery: False."),
    _S("task_acks_on_failure_or_timeout", "bool", True, "Late-acked tasks that fail are acknowledged too."),
    _S("task_acks_on_failure", "bool", None, "The same for exceptions; None means as the one above."),
    _S("task_acks_on_timeout", "bool", None, "The same for hard time limits."),
    _S(
        "task_reject_on_worker_lost",
        "bool",
        True,
        "A late-acked task whose process died comes back; if False, it fails with WorkerLostError. Celery: False.",
    ),
    _later("task_retry_on_worker_lost", "bool", False, "write task_reject_on_worker_lost instead"),
    _later("task_allow_error_cb_on_chord_header", "bool", False, _CHORDS),
    _S("task_always_eager", "bool", False, "Run tasks at once in the calling process; for tests."),
    _S("task_eager_propagates", "bool", False, "Let the exceptions of eager tasks out."),
    _S("task_store_eager_result", "bool", False, "Store the results of eager tasks."),
    _S("task_annotations", "dict", None, "Task name or '*' to options that override those in the code."),
    _S("task_compression", "str", None, "Compress message bodies: gzip, bzip2, lzma, brotli, zstd."),
    _S("task_create_missing_queues", "bool", True, "Queues not in task_queues may be used."),
    _S("task_create_missing_queue_type", "str", "classic", "Their type on RabbitMQ: classic or quorum."),
    _S(
        "task_create_missing_queue_exchange_type",
        "str",
        None,
        "Their exchange type; None means the default's.",
    ),
    _S("task_default_queue", "str", "celery", "The queue of tasks that nothing else routes."),
    _S("task_default_queue_type", "str", "classic", "Its type on RabbitMQ: classic or quorum."),
    _S("task_default_exchange", "str", None, "Its exchange; None means its name."),
    _S("task_default_routing_key", "str", None, "Its routing key; None means its name."),
    _S("task_default_exchange_type", "str", "direct", "Its exchange's type."),
    _S("task_default_delivery_mode", "delivery_mode", 2, "2 or 'persistent': on disk; 1 or 'transient': not."),
    _S("task_default_priority", "int", None, "Priority of messages that name none, 0 to 9."),
    _S("task_default_rate_limit", "rate", None, "Rate limit of tasks that name none."),
    _S("task_ignore_result", "bool", False, "Do not store results."),
    _S(
        "task_store_errors_even_if_ignored",
        "bool",
        False,
        "Store failures of tasks whose results are ignored.",
    ),
    _S("task_inherit_parent_priority", "bool", False, "A task sent by a task gets its priority."),
    _later("task_protocol", "int", 2, "messages are always sent as protocol 2; 1 and 2 are read"),
    _S("task_publish_retry", "bool", True, "Publish again when the connection fails."),
    _S("task_publish_retry_policy", "dict", _RETRY_POLICY, "How often, and how long between (seconds)."),
    _S(
        "task_queues",
        "queues",
        None,
        "Queues to consume and to route to; a dict, or a list of names or queues.",
    ),
    _S("task_queue_max_priority", "int", None, "x-max-priority of queues that name none (AMQP)."),
    _S(
        "task_routes",
        "any",
        None,
        "Which queue a task goes to: a dict, a function, a path to one, or a list.",
    ),
    _later("task_remote_tracebacks", "bool", False, "tracebacks are stored as text"),
    _later("task_repr_maxlevels", "int", 3, "the nesting of argsrepr is fixed"),
    _later("task_send_sent_event", "bool", False, _EVENTS),
    _S("task_serializer", "str", "json", "Serializer of task messages."),
    _S("task_soft_time_limit", "seconds", None, "Raise SoftTimeLimitExceeded in the task after this long."),
    _S("task_time_limit", "seconds", None, "End the task after this long."),
    _S("task_track_started", "bool", False, "Store the state STARTED."),
)

_RESULT = (
    _S("result_backend", "url", None, "Where results go: redis://, sqlite://, rpc://, disabled://."),
    _S("result_backend_transport_options", "dict", {}, "Options of the store, such as global_keyprefix."),
    _moot("result_backend_always_retry", "bool", False, "storing a result is always tried again"),
    _moot("result_backend_max_retries", "float", float("inf"), "storing a result is tried until it works"),
    _moot("result_backend_base_sleep_between_retries_ms", "int", 10, "pauses between attempts are fixed"),
    _moot("result_backend_max_sleep_between_retries_ms", "int", 10_000, "pauses between attempts are fixed"),
    _later("result_cache_max", "int", -1, "results are not cached in the client"),
    _later("result_chord_join_timeout", "seconds", 3.0, _CHORDS),
    _later("result_chord_retry_interval", "seconds", 1.0, _CHORDS),
    _later("result_chord_expires", "seconds", None, _CHORDS),
    _S("result_failure_expires", "seconds", None, "How long failures are kept; None means result_expires."),
    _S("result_compression", "str", None, "Compress results: gzip, bzip2, lzma, brotli, zstd."),
    _moot("result_exchange", "str", "celeryresults", "results go straight to the caller's queue"),
    _moot("result_exchange_type", "str", "direct", "results go straight to the caller's queue"),
    _S("result_expires", "seconds", 86400.0, "How long results are kept; 0 or None: for ever."),
    _S("result_extended", "bool", False, "Store name, arguments, worker, retries and queue with the result."),
    _S("result_persistent", "bool", None, "rpc: result messages survive a restart of the broker."),
    _S("result_serializer", "str", "json", "Serializer of results."),
    _later("redis_host", "str", None, _RPARTS),
    _later("redis_port", "int", None, _RPARTS),
    _later("redis_db", "int", None, _RPARTS),
    _later("redis_username", "str", None, _RPARTS),
    _later("redis_password", "str", None, _RPARTS),
    _later(
        "redis_backend_use_ssl",
        "dict",
        None,
        "write a rediss:// URL with its ssl_* parameters into result_backend",
    ),
    _moot("redis_max_connections", "int", None, "a process holds one connection to the result store"),
    _later("redis_socket_timeout", "seconds", 120.0, "timeouts to the result store are fixed"),
    _later("redis_socket_connect_timeout", "seconds", None, "timeouts to the result store are fixed"),
    _later("redis_retry_on_timeout", "bool", False, "timeouts to the result store are fixed"),
    _later("redis_socket_keepalive", "bool", False, "timeouts to the result store are fixed"),
    _later("redis_backend_health_check_interval", "seconds", None, "timeouts to the result store are fixed"),
    _later("redis_backend_credential_provider", "any", None, _RPARTS),
    _later("redis_client_name", "str", None, "connections are named by the node"),
    _moot("result_backend_thread_safe", "bool", False, "a store is always safe to share"),
)

_WORKER = (
    _moot("worker_agent", "str", None, "there are no boot steps to add an agent to"),
    _S(
        "worker_autoscaler",
        "str",
        "celery.worker.autoscale:Autoscaler",
        "Class that scales the pool with --autoscale, a subclass of greenq.Autoscaler; the default is that itself.",
    ),
    _later(
        "worker_cancel_long_running_tasks_on_connection_loss",
        "bool",
        False,
        "running tasks go on when the connection is lost, and are not started a second time here",
    ),
    _S("worker_concurrency", "concurrency", None, "Slots of the pool; -c wins."),
    _moot("worker_consumer", "str", "celery.worker.consumer:Consumer", "there is no class to replace"),
    _later("worker_deduplicate_successful_tasks", "bool", False, "a redelivered task runs again"),
    _later("worker_detect_quorum_queues", "bool", True, "quorum queues are always told from classic ones"),
    _later("worker_direct", "bool", False, "a queue for each node is not part of this version"),
    _later("worker_disable_prefetch", "bool", False, "write worker_prefetch_multiplier = 1 instead"),
    _S("worker_disable_rate_limits", "bool", False, "Ignore every rate limit."),
    _moot(
        "worker_enable_prefetch_count_reduction",
        "bool",
        True,
        "a task that runs here is not started again after a reconnect",
    ),
    _S("worker_enable_remote_control", "bool", True, "Listen to commands."),
    _later("worker_enable_soft_shutdown_on_idle", "bool", False, "soft shutdown is not part of this version"),
    _later("worker_soft_shutdown_timeout", "seconds", 0.0, "soft shutdown is not part of this version"),
    _later("worker_eta_task_limit", "int", None, "a limit on held tasks is not part of this version"),
    _moot("worker_hijack_root_logger", "bool", True, _ROOT_LOGGER),
    _later("worker_log_color", "bool", None, _LOG_FORMAT),
    _later("worker_log_format", "str", _LOG, _LOG_FORMAT),
    _later("worker_log_datefmt", "str", None, _LOG_FORMAT),
    _later("worker_task_log_format", "str", _TASK_LOG, _LOG_FORMAT),
    _later("worker_task_log_datefmt", "str", None, _LOG_FORMAT),
    _moot("worker_lost_wait", "seconds", 10.0, "the death of a child process is noticed at once"),
    _S("worker_max_memory_per_child", "int", None, "prefork: KiB a child may have needed before it is replaced."),
    _S("worker_max_tasks_per_child", "int", None, "prefork: tasks of a child before it is replaced."),
    _S("worker_pool", "str", None, "The pool: gevent, eventlet, prefork or solo; -P wins. Celery: prefork."),
    _moot("worker_pool_putlocks", "bool", True, "a pool has no queue to lock"),
    _S("worker_pool_restarts", "bool", False, "Obey the command pool_restart, which imports modules it names."),
    _S("worker_pool_start_method", "str", "fork", "prefork: how children start; there is only fork."),
    _S(
        "worker_prefetch_multiplier",
        "int",
        4,
        "Tasks reserved a slot, the running one included; 0: no limit. Redis and SQLite, unless it is set: as much "
        "as lasts 50 ms, and what then waits for a second goes back.",
    ),
    _S("worker_proc_alive_timeout", "seconds", 4.0, "prefork: seconds a child may take to be ready."),
    _moot("worker_redirect_stdouts", "bool", True, _ROOT_LOGGER),
    _moot("worker_redirect_stdouts_level", "str", "WARNING", _ROOT_LOGGER),
    _S("worker_send_task_events", "bool", False, "Send an event for each step of each task; -E."),
    _S("worker_state_db", "str", None, "File that keeps revoked ids over restarts; %n, %h as in --statedb."),
    _moot("worker_timer", "str", None, "there is one timer heap"),
    _moot("worker_timer_precision", "float", 1.0, "timers fire when they are due"),
    _later("worker_logfile", "str", None, "logs go to standard error"),
    _later("worker_pidfile", "str", None, "pid files are not part of this version"),
    _later("worker_uid", "any", None, "start the worker as the user it shall run as"),
    _later("worker_gid", "any", None, "start the worker as the group it shall run as"),
    _later("worker_umask", "any", None, "set the umask before the worker starts"),
    _later("worker_executable", "str", None, "the worker does not detach itself in this version"),
)

_OTHERS = (
    _later("beat_schedule", "dict", {}, _BEAT),
    _later("beat_scheduler", "str", "celery.beat:PersistentScheduler", _BEAT),
    _later("beat_schedule_filename", "str", "celerybeat-schedule", _BEAT),
    _later("beat_max_loop_interval", "float", 0, _BEAT),
    _later("beat_sync_every", "int", 0, _BEAT),
    _later("beat_cron_starting_deadline", "int", None, _BEAT),
    _later("beat_enable_remote_control", "bool", False, _BEAT),
    _later("beat_remote_control_max_tick_age", "float", None, _BEAT),
    _later("security_key", "str", None, _SIGNED),
    _later("security_key_password", "any", None, _SIGNED),
    _later("security_certificate", "str", None, _SIGNED),
    _later("security_cert_store", "str", None, _SIGNED),
    _later("security_digest", "str", "sha256", _SIGNED),
)

_OWN = (
    _own("broker_lease", "seconds", 20.0, "Redis: a silent worker's tasks come back after this long."),
    _own(
        "worker_control_profile",
        "profile",
        "full",
        "Which commands a worker obeys: full, standard, read, or off; see control-security.md.",
    ),
    _own("worker_control_allow", "list", None, "Names of the commands a worker obeys, instead of the profile's."),
    _own(
        "worker_control_keys",
        "keys",
        {},
        "Key ids and secrets. If there are any, clients sign with the first and workers obey only what is signed.",
    ),
    _own(
        "worker_hub_stall_seconds",
        "seconds",
        1.0,
        "Name a task that lets nothing else run for so long; 0: never. At least 0.3.",
    ),
    _own("worker_revokes_max", "int", 50_000, "Revoked ids that are remembered; beyond it the oldest goes."),
    _own("worker_revoke_expires", "seconds", 10_800.0, "How long a revoked id or stamp is remembered."),
)

TABLE: Mapping[str, Setting] = MappingProxyType(
    {row.name: row for row in (*_GENERAL, *_BROKER, *_CONTROL, *_TASK, *_RESULT, *_WORKER, *_OTHERS, *_OWN)}
)

OTHER_STORES = (
    "arangodb_", "azureblockblob_", "cache_", "cassandra_", "cosmosdbsql_", "couchbase_",
    "database_", "dynamodb_", "elasticsearch_", "gcs_", "mongodb_", "s3_",
)  # fmt: skip
"""How the names of the settings of Celery's other result stores begin."""
