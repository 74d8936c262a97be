"""Patch first: make the standard library cooperative before anything else is imported."""

from __future__ import annotations


def patch(pool: str) -> None:
    """Patch for the runtime of that pool; does nothing for pools that run in plain threads.

    Call it before any other import of the process: a module that has kept an original of `socket` or
    `time.sleep` blocks the hub for ever after.
    """
    if pool == "gevent":
        from gevent import monkey

        monkey.patch_all()
