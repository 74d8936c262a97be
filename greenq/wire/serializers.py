"""Which content is let in, and how values become bytes and bytes become values (wire.md 5.2, 5.5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from kombu.exceptions import EncodeError as KombuEncodeError
from kombu.exceptions import SerializerNotInstalled
from kombu.serialization import registry
from kombu.utils import json as kombu_json

from greenq._speedups import load_json, plain_json
from greenq.exceptions import ConfigError, ContentRefused, EncodeError, MalformedMessage

JSON = "application/json"
PICKLE = "application/x-python-serialize"

# kombu registers these whether or not their library is there, with a coder that fails when it is called.
_LIBRARIES = {"application/x-yaml": ("yaml", "PyYAML"), "application/x-msgpack": ("msgpack", "msgpack")}


@dataclass(frozen=True, slots=True)
class Accept:
    """The content types a worker decodes; whatever is not in it is refused before any decoder is entered."""

    content_types: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Accept:
        """Build it from `accept_content`: serializer names or mime types known to kombu's registry.

        Raises:
            ConfigError: nothing given, no serializer of that name, or its library is not installed.
        """
        if isinstance(names, str):
            raise ConfigError(f"accept_content must be a list of names, not a text: use [{names!r}].")
        types = frozenset(mime_type(name, "accept_content") for name in names)
        if not types:
            raise ConfigError("accept_content is empty, so no message could ever run; use ['json'].")
        return cls(types)

    @property
    def unsafe(self) -> bool:
        """Whether pickle is let in, by whatever name: then whoever can publish can run code here."""
        return PICKLE in self.content_types

    def check(self, content_type: str) -> None:
        """Refuse what is not let in.

        kombu lets application/data and text types through unasked ("trusted"); here they are refused like any
        other, because nothing that speaks the task protocol sends them.

        Raises:
            ContentRefused: the type is not let in.
        """
        if content_type not in self.content_types:
            known = ", ".join(sorted(self.content_types))
            raise ContentRefused("content_type", f"{content_type[:80]!r} is not in accept_content ({known})")


def dumps(value: Any, serializer: str = "json") -> tuple[bytes, str, str]:
    """Serialize to (bytes, content type, content encoding).

    JSON is always what kombu's encoder writes, so that a Celery worker receives the same types: msgspec and
    its like turn datetime, UUID and Decimal into plain strings without calling a hook.

    Raises:
        EncodeError: the value cannot be written so.
        ConfigError: there is no such serializer.
    """
    if serializer in ("json", JSON):
        return dumps_json(value), JSON, "utf-8"
    try:
        name = registry.type_to_name.get(serializer, serializer)
        content_type, encoding, data = registry.dumps(value, name)
    except SerializerNotInstalled:
        mime_type(serializer, "serializer")
        raise ConfigError(f"The serializer {serializer!r} can only be read, not written.") from None
    except KombuEncodeError as exc:
        raise EncodeError(f"Cannot serialize {type(value).__name__} as {serializer}: {exc}") from exc
    return data.encode() if isinstance(data, str) else data, content_type, encoding


def dumps_json(value: Any) -> bytes:
    """Serialize as kombu does.

    Raises:
        EncodeError: the value cannot be written so.
    """
    text = plain_json(value)
    if text is None:
        try:
            text = kombu_json.dumps(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise EncodeError(f"Cannot serialize {type(value).__name__} as json: {exc}") from exc
        except Exception as exc:
            # A __json__ of the user's: whatever it raises, the value cannot be written.
            kind = type(exc).__name__
            raise EncodeError(f"Cannot serialize {type(value).__name__} as json: its __json__ raised {kind}") from exc
    return text.encode()  # type: ignore[no-any-return,unused-ignore]  # kombu is untyped


def loads(data: bytes | str, content_type: str, accept: Accept) -> Any:
    """Decode, if the content type is let in.

    The content encoding is not needed: every decoder knows its own, and kombu would use it only for types
    that have no decoder, which are never let in.

    Raises:
        ContentRefused: it is not let in; no decoder was entered.
        MalformedMessage: `body_decode`, whatever the decoder raised.
    """
    accept.check(content_type)
    return loads_checked(data, content_type)


def loads_checked(data: bytes | str, content_type: str) -> Any:
    """Decode what `Accept.check` has let in already.

    Raises:
        MalformedMessage: as `loads`.
    """
    try:
        if content_type == JSON:
            return load_json(data.encode() if isinstance(data, str) else data)
        return registry.loads(data, content_type, "binary", accept=(content_type,))
    except Exception as exc:
        raise MalformedMessage("body_decode", f"{type(exc).__name__}: {str(exc)[:120]}") from exc


def mime_type(name: str, setting: str = "serializer") -> str:
    """Resolve a serializer's name or mime type to its mime type; `setting` is named in the error.

    Raises:
        ConfigError: there is none of that name, or its library is not installed.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{setting}: a serializer is a name, not {type(name).__name__}.")
    known: dict[str, str] = registry.name_to_type
    content_type = name if name in registry.type_to_name else known.get(name)
    if content_type is None:
        near = get_close_matches(name, [*known, *registry.type_to_name], 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        every = ", ".join(sorted(known))
        raise ConfigError(f"{setting}: there is no serializer {name!r}.{hint} Known: {every}.")
    module, package = _LIBRARIES.get(content_type, ("", ""))
    if module and find_spec(module) is None:
        raise ConfigError(f"{setting}: {name!r} needs {package}, which is not installed.")
    return content_type
