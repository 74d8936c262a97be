"""Say what the suite runs with; a missing server is an error."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version

from tests.support.services import find_program, rabbitmq_version


def main() -> None:
    """Print one line of libraries and one of servers."""
    libraries = ("greenq", "celery", "kombu", "gevent", "eventlet", "redis", "hiredis", "msgspec", "pytest")
    print(
        f"python {platform.python_version()}   " + "   ".join(f"{name} {version(name)}" for name in libraries)
    )
    redis = subprocess.run(
        [find_program("redis-server", "redis-server"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("v=")[1]
    print(
        f"redis-server {redis.split()[0]}   rabbitmq-server {rabbitmq_version()}   (private, on free ports)"
    )


if __name__ == "__main__":
    main()
