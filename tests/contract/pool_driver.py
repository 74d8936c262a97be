"""Runs one scenario of the pool contract in a process of its own: `-m tests.contract.pool_driver POOL SCENARIO`.

pytest itself stays unpatched; a green pool needs a patched process, and prefork one that had its zygote before.
A scenario raises when the contract is broken; the process then exits 1 with the traceback. With a third argument
the pool denies that it has this capability. Without a scenario it says what the pool can.
"""

from __future__ import annotations

import sys

zygote = None
if sys.argv[1] == "prefork":
    from greenq.pools._prefork.zygote import launch

    zygote = launch()

from greenq.runtime.patching import patch  # noqa: E402

patch(sys.argv[1])

import json  # noqa: E402
from dataclasses import replace  # noqa: E402

from tests.contract.pool_rig import Rig  # noqa: E402
from tests.contract.pool_scenarios import REFUSALS, SCENARIOS  # noqa: E402


def say_what_it_can(rig: Rig) -> None:
    """Unstarted, so that a pool that does not come up fails in its own scenarios and not for all."""
    print(json.dumps(rig.pool.can.as_dict()), flush=True)
    rig.pool.stop()
    rig.pool.serve()


def main(pool: str, name: str = "", denied: str = "") -> None:
    if not name:
        Rig(pool, 1, zygote).play(say_what_it_can, start=False)
        return
    scenario = SCENARIOS[name]
    rig = Rig(pool, scenario.size, zygote, **scenario.options)
    if denied:
        rig.pool.can = replace(rig.pool.can, **{denied: False})
    if scenario.needs and not getattr(rig.pool.can, scenario.needs):
        rig.play(REFUSALS[scenario.needs])
    elif rig.refusal is not None:
        raise rig.refusal
    else:
        rig.play(scenario.body, start=scenario.start)
    print("kept")


if __name__ == "__main__":
    main(*sys.argv[1:])
