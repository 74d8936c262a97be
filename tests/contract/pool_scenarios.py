"""Every scenario of the pool contract, and what stands for it where a pool has not the capability."""

from __future__ import annotations

from collections.abc import Callable

from tests.contract import pool_endings, pool_life, pool_processes
from tests.contract.pool_rig import Rig

SCENARIOS = {
    scenario.name: scenario
    for module in (pool_life, pool_endings, pool_processes)
    for scenario in module.book.scenarios
}

REFUSALS: dict[str, Callable[[Rig], None]] = {
    "soft_limit": pool_endings.refuses_soft_limit,
    "hard_limit": pool_endings.refuses_hard_limit,
    "kill": pool_endings.refuses_kill,
    "resize": pool_life.refuses_resize,
    "restart": pool_processes.refuses_restart,
    "recycle": pool_processes.refuses_recycle,
    "survives_crash": pool_processes.refuses_survives_crash,
}
