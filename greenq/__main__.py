"""Let `python -m greenq` be the `greenq` command."""

from __future__ import annotations

from greenq.cli.main import main

if __name__ == "__main__":
    main()
