"""The `greenq` command: patch for the pool first, then read the line.

Exit codes: 0 done; 1 a failure; 2 a mistake in the command line or the configuration; 69 no broker, or no
worker answered; a worker has those of its own stop (0 warm, 1 interrupted).
"""

from __future__ import annotations

import os
import sys

from greenq.cli import scan
from greenq.exceptions import ConfigError


def main() -> None:
    """Run the command line of this process and exit."""
    argv = scan.arrange(sys.argv[1:])
    pool, source, zygote = scan.DEFAULT_POOL, "default", None
    if argv[:1] == ["worker"] and not {"-h", "--help"}.intersection(argv):
        try:
            if "--reload" in argv:
                from greenq.cli import reloading

                sys.exit(reloading.serve(argv, scan.option(argv, "", "--workdir")))
            pool, source = scan.pool_of(argv, os.environ)
            if pool == "prefork":
                from greenq.pools._prefork.zygote import launch

                zygote = launch()
            from greenq.runtime.patching import patch

            patch(pool)
        except ConfigError as error:
            print(f"greenq: {error}", file=sys.stderr)
            sys.exit(2)
    from greenq.cli.root import run

    sys.exit(run(argv, pool, source, zygote))


if __name__ == "__main__":
    main()
