"""Private Redis and RabbitMQ servers on free ports in a directory of their own, ended by pid."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from typing_extensions import Self

from tests.support.processes import Process, free_port, listening, run, wait_for

__all__ = [
    "MissingServerError",
    "RabbitServer",
    "RedisServer",
    "find_program",
    "free_port",
    "rabbitmq_version",
    "wait_for",
]

_ATTEMPTS = 3  # a free port can be taken by a program that is no test of ours before the server binds it


class MissingServerError(AssertionError):
    """A server the tests need is not installed. A failure on purpose: a skip would hide half of the suite."""


def find_program(name: str, package: str, *more: str) -> str:
    """The path of a server's program; MissingServerError with the command that installs it."""
    for candidate in (name, *more):
        found = shutil.which(candidate)
        if found:
            return found
    raise MissingServerError(
        f"{name} is not installed; the tests start a private one. Run: sudo apt-get install {package}"
    )


class RedisServer:
    """A private redis-server without persistence, on a free port and on a unix socket.

    Options go to the server as they are: `RedisServer(appendonly="yes", maxmemory="4mb")`.
    """

    def __init__(self, **options: str) -> None:
        self.options = options
        self.port = 0
        self._directory: Path | None = None
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def socket_url(self) -> str:
        """kombu's form of a unix socket URL."""
        return f"redis+socket://{self.socket_path}"

    @property
    def directory(self) -> Path:
        assert self._directory is not None, "the server was not started"
        return self._directory

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers; the port stays the same over stop, kill and start."""
        program = find_program("redis-server", "redis-server")
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="gq-redis-"))
        for _ in range(_ATTEMPTS):
            port = self.port or free_port()
            self._process = Process(self._argv(program, port), output=self.directory / "log")
            self._process.start()
            if self._process.wait_up(partial(_answers, port), 10, "redis-server"):
                self.port = port
                return self
        raise AssertionError(f"redis-server does not start:\n{self.output()}")

    def _argv(self, program: str, port: int) -> list[str]:
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        } | {name.replace("_", "-"): value for name, value in self.options.items()}
        return [program, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def kill(self) -> None:
        """End the server with SIGKILL; its data directory stays for the next start."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop and start on the same port. Without persistence the data are gone."""
        self.shutdown()
        self.start()

    def shutdown(self) -> None:
        """End the server and keep its data directory for the next start."""
        if self._process is not None:
            self._process.stop()

    def stop(self) -> None:
        """End the server and remove its directory. Safe to call twice."""
        self.shutdown()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def output(self) -> str:
        return self._process.output() if self._process is not None else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class RabbitServer:
    """A private RabbitMQ node: own name, ports, epmd, cookie and directories.

    The program of Debian's package is started past its wrapper, which insists on the system's user,
    home and log directory. The node is the only child, so that its pid is the one to signal.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config
        self.port = 0
        self.node = f"gq{secrets.token_hex(4)}@localhost"
        self._epmd_port = 0
        self._dist_port = free_port()
        self._ctl_port = str(free_port())
        self._directory: Path | None = None
        self._server: Process | None = None
        self._epmd: Process | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def vhost_url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    @property
    def directory(self) -> Path:
        assert self._directory is not None, "the server was not started"
        return self._directory

    @property
    def pid(self) -> int:
        assert self._server is not None, "the server was not started"
        return self._server.pid

    def start(self) -> Self:
        """Start the node and wait until it takes connections (3 to 10 s); the port stays over restarts."""
        program = _sbin("rabbitmq-server")
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="gq-rabbit-"))
            self._write_files()
        for _ in range(_ATTEMPTS):
            port = self.port or free_port()
            self._start_epmd()
            output = self.directory / "out"
            self._server = Process([program], output=output, env=self._env(port), cwd=self.directory)
            self._server.start()
            if self._server.wait_up(partial(listening, port), 60, "RabbitMQ"):
                self.port = port
                return self
        raise AssertionError(f"RabbitMQ does not start:\n{self.output()[-4000:]}")

    def _write_files(self) -> None:
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "env.conf").write_text("")
        (self.directory / "rabbitmq.conf").write_text(f"loopback_users = none\n{self.config}\n")

    def _start_epmd(self) -> None:
        # Started here, in the foreground: the one Erlang starts by itself is a daemon of unknown pid.
        if self._epmd is not None and self._epmd.running:
            return
        self._epmd_port = self._epmd_port or free_port()
        argv = [
            find_program("epmd", "rabbitmq-server"),
            "-port",
            str(self._epmd_port),
            "-address",
            "127.0.0.1",
        ]
        self._epmd = Process(argv, output=self.directory / "epmd.log", cwd=self.directory)
        self._epmd.start()
        wait_for(lambda: listening(self._epmd_port), 10, "epmd")

    def _env(self, port: int) -> dict[str, str]:
        home = str(self.directory)
        return {
            "HOME": home,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            # rabbitmqctl is a node too; by default those of all servers share ten ports.
            "RABBITMQ_CTL_DIST_PORT_MIN": self._ctl_port,
            "RABBITMQ_CTL_DIST_PORT_MAX": self._ctl_port,
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{home}/env.conf",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            # Schedulers that spin while idle would take the cores from what is tested.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            # The start script then becomes the node instead of waiting beside it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl against this node and return its output (takes about a second)."""
        env = dict(os.environ) | self._env(self.port)
        argv = [_sbin("rabbitmqctl"), "-n", self.node, *args]
        done = run(argv, env=env, cwd=self.directory)
        assert done.returncode == 0, f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}"
        return done.stdout

    def evaluate(self, expression: str) -> str:
        """Run one Erlang expression inside the node and return its value as text (some 20 ms)."""
        argv = [find_program("erl_call", "rabbitmq-server"), "-sname", self.node, "-c"]
        argv += [(self.directory / ".erlang.cookie").read_text(), "-e"]
        env = dict(os.environ) | self._env(self.port)
        code = f"{expression}\n"
        done = subprocess.run(argv, input=code, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{expression}: {done.stdout}{done.stderr}"
        return done.stdout

    def add_vhost(self, name: str) -> str:
        """Make a virtual host that guest may use; returns its URL."""
        value = self.evaluate(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"tests">>), '
            f'ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, '
            f'<<".*">>, <<".*">>, <<".*">>, <<"tests">>).'
        )
        assert value.strip() == "{ok, ok}", value
        return self.vhost_url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with its queues and connections."""
        self.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"tests">>).')

    def kill(self) -> None:
        """End the node with SIGKILL; durable queues stay on disk for the next start."""
        if self._server is not None:
            self._server.kill()

    def shutdown(self) -> None:
        """End the node in order and keep its data for the next start."""
        if self._server is not None:
            self._server.stop(grace=30)

    def restart(self) -> None:
        """Stop in order and start again on the same port; durable messages stay."""
        self.shutdown()
        self.start()

    def stop(self) -> None:
        """End the node and its epmd and remove their directory. Safe to call twice."""
        # Nothing of a private node is kept, so there is nothing to wait for.
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def output(self) -> str:
        return self._server.output() if self._server is not None else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _answers(port: int) -> bool:
    """Whether a Redis on this port serves; one that asks for a password does, a loading one does not."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(64)[:5] in {b"+PONG", b"-NOAU"}
    except OSError:
        return False


def rabbitmq_version() -> str:
    """The version of the installed RabbitMQ, as its own tool says it."""
    argv = [_sbin("rabbitmqctl"), "version"]
    with tempfile.TemporaryDirectory() as home:  # it writes a cookie to its home
        return subprocess.run(
            argv, env=dict(os.environ) | {"HOME": home}, capture_output=True, text=True, check=True
        ).stdout.strip()


def _sbin(name: str) -> str:
    for pattern in ("rabbitmq_server-*/sbin", "rabbitmq_server-*/bin"):
        found = sorted(Path("/usr/lib/rabbitmq/lib").glob(f"{pattern}/{name}"))
        if found:
            return str(found[-1])
    return find_program(name, "rabbitmq-server", f"/usr/local/sbin/{name}", f"/usr/sbin/{name}")
