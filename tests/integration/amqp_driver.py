"""Run one scenario of `amqp_scenarios` in a process of its own, under native threads or gevent.

    python -m tests.integration.amqp_driver threads|gevent SCENARIO URL [JSON arguments]

The argument "settings" goes to the settings, the others to the scenario. What it says goes to standard
output, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> None:
    name, scenario, url = sys.argv[1:4]
    arguments: dict[str, Any] = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    if name == "gevent":
        from gevent import monkey

        monkey.patch_all()
        runtime = importlib.import_module("greenq.runtime.gevent").GeventRuntime()
    else:
        runtime = importlib.import_module("greenq.runtime.threads").ThreadsRuntime()
    runtime.attach()
    scenarios = importlib.import_module("tests.integration.amqp_scenarios")
    stage = scenarios.Stage(url, runtime)
    stage.conf.update(arguments.pop("settings", {}))
    getattr(scenarios, scenario)(stage, **arguments)


if __name__ == "__main__":
    main()
