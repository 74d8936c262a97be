"""Check the arguments of a call against the task's function before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class ArgumentCheck:
    """The parameters of one task's function, without the leading `self` of a bound task."""

    def __init__(self, name: str, function: Callable[..., Any], *, bound: bool) -> None:
        self._name = name
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        if bound:
            if not parameters or parameters[0].kind not in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL):
                raise TypeError(f"task {name}: bind=True passes the task as first argument, but there is none")
            if parameters[0].kind in _POSITIONAL:
                parameters = parameters[1:]
        self._signature = signature.replace(parameters=parameters)
        positional = [each for each in parameters if each.kind in _POSITIONAL]
        required = [each for each in parameters if each.default is each.empty]
        self._most = len(positional)
        self._least = len([each for each in required if each.kind in _POSITIONAL])
        # Only a call whose keywords need no look is counted through; the rest is bound in full, 5 us.
        self._countable = not any(each.kind is each.KEYWORD_ONLY for each in required)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError, naming the task, if the function could not be called with these."""
        if not kwargs and self._countable and self._least <= len(args) <= self._most:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"task {self._name}{self._signature}: {exc}") from None
