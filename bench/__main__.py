"""Run the bench: `python -m bench`, or scripts/bench."""

from __future__ import annotations

import argparse
import sys

from bench.measure import private_servers
from bench.peers import peers
from bench.plan import Plan
from bench.report import Row, environment, save, table
from bench.rows import ROWS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often each side of a row runs (3)")
    names = list(ROWS)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="ROW", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="one run, a fifth of the messages")
    parser.add_argument("--peers", action="store_true", help="also dramatiq and taskiq, where installed")
    return parser.parse_args()


def main() -> int:
    """Run the chosen rows, print the table, keep the JSON; 1 if a goal is missed or a row fails."""
    options = _arguments()
    plan = Plan(1, 10_000, 1_500, 2_000, 1_000, 5_000) if options.quick else Plan(runs=options.runs)
    print("   ".join(f"{name} {value}" for name, value in environment().items()))
    rows: list[Row] = []
    failed: list[str] = []
    with private_servers() as servers:
        for name in options.only:
            print(f"\n{name}: {(ROWS[name].__doc__ or '').strip()}", flush=True)
            try:
                rows += ROWS[name](servers, plan)
                if options.peers and name == "redis-noop":
                    rows += peers(servers, plan, rows[0])
            except (AssertionError, RuntimeError) as exc:
                # A quarter of an hour of other rows must not go with this one.
                failed.append(name)
                print(f"    failed: {exc}", file=sys.stderr, flush=True)
    print(f"\n{table(rows)}\n\nmedian (smallest-largest) of {plan.runs} runs; kept in {save(rows)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed) or any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
