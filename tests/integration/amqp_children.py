"""Start the children of the AMQP tests and read what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.node import ROOT
from tests.support.processes import Process, ended, wait_for


class Child(Process):
    """One scenario in a process of its own."""

    def facts(self) -> list[dict[str, Any]]:
        """What it has said so far."""
        lines = [line for line in self.output().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_fact(self, name: str, timeout: float = 20.0, count: int = 1) -> Any:
        """The value of the `count`th fact of that name."""

        def found() -> list[Any]:
            values = [facts[name] for facts in self.facts() if name in facts]
            assert len(values) >= count or self.running, f"it ended without {name}:\n{self.output()}"
            return values if len(values) >= count else []

        return wait_for(found, timeout, lambda: f"{name} from the child:\n{self.output()}")[count - 1]


@contextmanager
def child(runtime: str, scenario: str, url: str, directory: Path, **arguments: Any) -> Iterator[Child]:
    """A running child, ended on the way out."""
    argv = [
        sys.executable,
        "-m",
        "tests.integration.amqp_driver",
        runtime,
        scenario,
        url,
        json.dumps(arguments),
    ]
    process = Child(argv, output=directory / f"{scenario}.log", cwd=ROOT)
    with ended(process):
        yield process


def outcome(runtime: str, scenario: str, url: str, directory: Path, **arguments: Any) -> dict[str, Any]:
    """Run a scenario to its end and return the last thing it said."""
    with child(runtime, scenario, url, directory, **arguments) as process:
        assert process.wait(60) == 0, process.output()
        return process.facts()[-1]
