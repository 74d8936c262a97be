"""Patch first: make the standard library cooperative before anything else is imported."""

from __future__ import annotations

import os
import warnings

from greenq.runtime.originals import Originals


def patch(pool: str) -> None:
    """Patch for the runtime of that pool; does nothing for pools that run in plain threads.

    Call it before any other import of the process: a module that has kept an original of `socket` or
    `time.sleep` blocks the hub for ever after.

    Raises:
        ConfigError: a module has; it is named, with the original and the cure.
    """
    patcher = PATCHERS.get(pool)
    if patcher is not None:
        originals = Originals()
        patcher()
        originals.check(pool)


def _patch_gevent() -> None:
    from gevent import monkey

    from greenq.runtime.gevent_threads import share_locks

    share_locks()
    monkey.patch_all()


def _patch_eventlet() -> None:
    # Its own resolver asks the servers of /etc/resolv.conf, where the system may be told to ask elsewhere.
    systems_resolver = os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes").lower() == "yes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five lines on its retirement; the banner says it in one
        import eventlet
    import logging

    from greenq.runtime.eventlet_threads import resolve_in_threads, share_locks

    share_locks()
    if systems_resolver:
        resolve_in_threads()
    before = logging.root.manager.disable
    # It tells its users of re-entrant locks it could not replace; they belong to native threads, and greenlets pass.
    logging.disable(logging.CRITICAL)
    try:
        eventlet.monkey_patch()
    finally:
        logging.disable(before)


PATCHERS = {"gevent": _patch_gevent, "prefork": _patch_gevent, "eventlet": _patch_eventlet}
