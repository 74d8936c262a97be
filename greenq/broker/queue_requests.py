"""A queue that somebody asks a running worker to consume from: is it one, and does it fit what is known?"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kombu import Queue

from greenq.broker.topology import Declarations
from greenq.exceptions import ConfigError

LONGEST_NAME = 255  # bytes; AMQP's limit, which keeps names the same on every broker
TYPES = frozenset({"direct", "topic", "fanout", "headers"})  # plug-ins of RabbitMQ add some that begin with x-

_TEXT = (str,)
_FLAG = (bool,)
_COUNT = (int,)
_SECONDS = (int, float)
_TABLE = (dict,)

# The keywords of kombu's Queue.from_dict, which Celery's command passes on (wire.md 3.3).
OPTIONS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("exchange", "exchange_type", "routing_key", "binding_key"), _TEXT),
        **dict.fromkeys(("durable", "queue_durable", "exchange_durable"), _FLAG),
        **dict.fromkeys(("auto_delete", "queue_auto_delete", "exchange_auto_delete"), _FLAG),
        **dict.fromkeys(("queue_arguments", "exchange_arguments"), _TABLE),
        **dict.fromkeys(("binding_arguments", "consumer_arguments"), _TABLE),
        **dict.fromkeys(("expires", "message_ttl"), _SECONDS),
        **dict.fromkeys(("max_length", "max_length_bytes", "max_priority"), _COUNT),
        "delivery_mode": (int, str),
    }
)
_NEVER = {
    "exclusive": "other connections could not declare it, and so not send to it",
    "no_ack": "what a crash cuts short could not come back",
    "no_declare": "a queue that does not exist would cost the worker its connection",
}
_NAMES = ("exchange", "routing_key", "binding_key")
_BOTH = ("durable", "auto_delete")  # each stands for queue_... and exchange_...


def asked_queue(
    declarations: Declarations, name: str, options: Mapping[str, Any], consumed: Queue | None = None
) -> Any:
    """The queue meant by a request; an option that is None counts as not given.

    A bare name means the queue of the settings, else the one that producers make up: who asks for it by hand
    needs no `task_create_missing_queues`. Celery's client always names the type "direct", which by itself
    therefore says nothing. `consumed` is the queue of that name that is consumed already, if one is.

    Raises:
        ConfigError: the name or an option cannot be, or contradicts what is known of that queue.
    """
    check_name("queue", name)
    given = _checked(name, options)
    if "exchange" not in given and given.get("exchange_type") == "direct":
        del given["exchange_type"]
    known = consumed or declarations.known(name)
    if known is None:
        if not given:
            return declarations.missing(name)
        return declarations.make(name, {"exchange": name, "exchange_type": "direct", **given})
    queue = declarations.make(name, {**_options_of(known), **given})
    now, then = _options_of(known), _options_of(queue)
    for option, value in now.items():
        if (value or None) != (then[option] or None):
            cure = "cancel it first" if consumed else "ask for it by its name alone"
            where = "consumed" if consumed else "in the settings"
            raise ConfigError(f"queue {name!r} is {where} with {option} {value!r}, not {then[option]!r}: {cure}")
    return known


def check_name(what: str, name: str) -> None:
    """Refuse a name that no broker takes, or that means something else to one.

    Raises:
        ConfigError: naming it.
    """
    if not name or len(name.encode("utf-8", "replace")) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(
            f"{what} {name[:LONGEST_NAME]!r}: a name has 1 to {LONGEST_NAME} bytes, and no control characters"
        )


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something, those that stand for two taken apart."""
    given = {option: value for option, value in options.items() if value is not None and value != ""}
    for option, value in given.items():
        _check_option(name, option, value)
    for option in _NEVER:
        given.pop(option, None)
    for option in _BOTH:
        if option in given:
            value = given.pop(option)
            given.setdefault(f"queue_{option}", value)
            given.setdefault(f"exchange_{option}", value)
    if "binding_key" in given:
        given.setdefault("routing_key", given.pop("binding_key"))
    return given


def _check_option(name: str, option: str, value: Any) -> None:
    if option in _NEVER:
        if value is not False:
            raise ConfigError(f"queue {name!r} cannot be consumed with {option}: {_NEVER[option]}")
        return
    kinds = OPTIONS.get(option)
    if kinds is None:
        raise ConfigError(f"queue {name!r}: there is no option {option!r}; there are: {', '.join(sorted(OPTIONS))}")
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not _FLAG):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"queue {name!r}: {option} must be {wanted}, not {value!r:.100}")
    if kinds in (_COUNT, _SECONDS) and not 0 <= value < 2**31:
        raise ConfigError(f"queue {name!r}: {option} cannot be {value!r:.100}")
    if option in _NAMES:
        check_name(option, value)
    if option == "exchange_type" and value not in TYPES and not value.startswith("x-"):
        types = ", ".join(sorted(TYPES))
        raise ConfigError(f"queue {name!r}: exchange_type must be one of {types}, not {value!r:.100}")


def _options_of(queue: Any) -> dict[str, Any]:
    """The options that make this queue."""
    exchange = queue.exchange
    shared = ("routing_key", "queue_arguments", "binding_arguments", "consumer_arguments")
    limits = ("expires", "message_ttl", "max_length", "max_length_bytes", "max_priority")
    return {
        **{name: getattr(queue, name) for name in (*shared, *limits)},
        "exchange": exchange.name,
        "exchange_type": exchange.type,
        "delivery_mode": exchange.delivery_mode,
        **{f"exchange_{name}": getattr(exchange, name) for name in ("durable", "auto_delete", "arguments")},
        **{f"queue_{name}": getattr(queue, name) for name in _BOTH},
    }

