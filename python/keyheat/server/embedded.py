"""One embedded server: started on a free port of 127.0.0.1, gone with this process.

Nothing is written that should last: no snapshots, no append-only file, a private directory that is
removed at the end. A port is asked of the kernel, then given to the server; should another process
take it in between, the server says so and the next port is tried.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from keyheat.errors import EmbeddedServerError
from keyheat.server import child
from keyheat.server.binary import find_binary
from keyheat.server.rundir import RunDir

if TYPE_CHECKING:
    from redis import Redis

HOST: Final = "127.0.0.1"
_START_TIMEOUT_S: Final = 10.0
_ATTEMPTS: Final = 8
_POLL_S: Final = 0.005
_LOG_TAIL_BYTES: Final = 400
_TAKEN: Final = ("already in use", "bind:", "Failed listening")

# One place for what every embedded server gets; each line can be overridden by `config`.
_CONFIG: Final[dict[str, str]] = {
    "bind": HOST,
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "protected-mode": "yes",
    "repl-diskless-sync-delay": "0",
    "shutdown-timeout": "0",
    "databases": "16",
}


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


class EmbeddedServer:
    """A running server; `close()` ends it.

    Args:
        config: Directives of the server's configuration file, over the ones set here.
        binary: The program; by default what `find_binary` finds.
        port: Listen here and nowhere else; by default on a free port.
        clustered: Give it a cluster bus port and switch cluster mode on.
        rundir: Where to put its files; by default a private directory of its own.
        name: Its directory within `rundir`.

    Raises:
        EmbeddedServerError: It did not start; the message ends with its last words.
    """

    def __init__(
        self,
        config: Mapping[str, str] | None = None,
        *,
        binary: str | None = None,
        port: int | None = None,
        clustered: bool = False,
        rundir: RunDir | None = None,
        name: str = "server",
    ) -> None:
        self._binary = binary or find_binary()
        self._config = dict(config or {})
        self._wanted_port = port
        self._clustered = clustered
        self._own_rundir = RunDir() if rundir is None else None
        self._directory = (rundir or self._own_rundir or RunDir()).path / name
        self._directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.bus_port = 0
        try:
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """`redis://host:port`."""
        return f"redis://{self.address}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running().pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def client(self, **options: object) -> "Redis":
        """A redis-py client connected to this server directly."""
        from redis import Redis  # noqa: PLC0415 - not every use of a server needs a client

        return Redis(HOST, self.port, **options)  # type: ignore[arg-type]

    def log(self) -> str:
        """What the server has said so far."""
        path = self._directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def pause(self) -> None:
        """Stop the process (SIGSTOP): it keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process at once (SIGKILL); `restart()` brings it back."""
        process = self._running()
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Start it again on the same port, with its cluster state if it has one."""
        if self.is_running:
            child.end(self._running())
        self._spawn()
        if not self._came_up():
            raise EmbeddedServerError(
                f"the server on port {self.port} did not come back: {self._last_words()}"
            )

    def close(self) -> None:
        """End the server and remove its files; a second call does nothing."""
        if self._process is not None:
            child.end(self._process)
        if self._own_rundir is not None:
            self._own_rundir.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise EmbeddedServerError("the server was never started")
        return self._process

    def _start_on_a_free_port(self) -> None:
        for _ in range(_ATTEMPTS):
            self.port, self.bus_port = free_ports(2)
            self.port = self._wanted_port or self.port
            self._spawn()
            if self._came_up():
                return
            child.end(self._running())
            if self._wanted_port or not any(word in self.log() for word in _TAKEN):
                break
        raise EmbeddedServerError(f"{self._binary} did not start: {self._last_words()}")

    def _spawn(self) -> None:
        directives = {**_CONFIG, "port": str(self.port), "dir": str(self._directory)}
        if self._clustered:
            directives |= {
                "cluster-enabled": "yes",
                "cluster-port": str(self.bus_port),
                "cluster-config-file": "nodes.conf",
            }
        directives |= self._config
        path = self._directory / "server.conf"
        path.write_text("".join(f'{name} "{value}"\n' for name, value in directives.items()))
        path.chmod(0o600)  # it may hold a password
        with (self._directory / "log").open("wb") as log:
            self._process = child.spawn([self._binary, str(path)], cwd=str(self._directory), log=log)

    def _came_up(self) -> bool:
        process = self._running()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if "eady to accept connections" in self.log() and self._answers():
                return True
            time.sleep(_POLL_S)
        return False

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in b"+-"
        except OSError:
            return False

    def _last_words(self) -> str:
        words = self.log()[-_LOG_TAIL_BYTES:].strip().splitlines()
        return " | ".join(words[-3:]) or f"it said nothing (see {Path(self._binary)})"
