"""An owner in a process of its own: claims from "q", says its tags, then renews them until it is killed.

python -m tests.contract.store_driver URL OWNER JSON_OPTIONS LIMIT
"""

from __future__ import annotations

import json
import sys
import time

from greenq.broker.stores import open_store


def main(url: str, owner: str, options: str, limit: str) -> None:
    store = open_store(url, owner, json.loads(options))
    tags = [delivery.tag for delivery in store.claim(["q"], int(limit))]
    print(json.dumps(tags), flush=True)
    while True:
        time.sleep(0.1)
        if not store.renew(tags):
            sys.exit("given up for dead, though alive")


if __name__ == "__main__":
    main(*sys.argv[1:])
