"""The proxies that are measured: how each is started, and with which configuration.

All listen on 127.0.0.1 before the same server, live for the whole run and are ended by their id. The
settings of the peers are their defaults except for what is written here.
"""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyheat.server import child
from keyheat.server.embedded import HOST, free_ports
from proxy_bench.compiled import compile_c
from proxy_bench.install import Program
from proxy_bench.launch import launch_keyheat
from proxy_bench.plan import BARE, FORWARDER

_START_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.02

# What each keyheat of the run is given over its defaults.
KEYHEAT: Final[dict[str, dict[str, object]]] = {
    "keyheat": {},
    "keyheat, local cache off": {"local_cache": False},
    "keyheat, counting off": {"counting": False},
    "keyheat, all cores": {"shards": os.cpu_count()},
}

# `preconnect` and `server_connections` do not change the work per request; mbuf is the default 16 KiB.
_TWEMPROXY: Final = """\
bench:
  listen: 127.0.0.1:{port}
  redis: true
  preconnect: true
  hash: fnv1a_64
  distribution: ketama
  servers:
    - 127.0.0.1:{server}:1
"""

# Bytes are copied, commands are not looked at; every client has an upstream connection of its own.
_HAPROXY: Final = """\
global
  nbthread 1
  maxconn 1000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen redis
  bind 127.0.0.1:{port}
  server one 127.0.0.1:{server}
"""

# `max_buffer_size_before_flush` is left at its default, 0: requests are written upstream as they
# are read. No admin listener, no statistics per command, no access log.
_ENVOY: Final = """\
static_resources:
  listeners:
  - name: redis
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: bench
          settings: {{op_timeout: 5s, enable_command_stats: false}}
          prefix_routes: {{catch_all_route: {{cluster: one}}}}
  clusters:
  - name: one
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: one
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {server}}}}}}}
"""


class PeerError(Exception):
    """A proxy did not start; the message says which and ends with its last words."""


@dataclass(frozen=True)
class Peer:
    """A running proxy."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def counters(self) -> Mapping[str, int]:
        """The proxy's own counters; none if it is not keyheat."""
        if self.process.stdin is None or self.process.stdout is None:
            return {}
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        counters: dict[str, int] = json.loads(self.process.stdout.readline())
        return counters

    def close(self) -> None:
        """End it."""
        child.end(self.process)


def start_keyheat(name: str, server_port: int, folder: Path) -> Peer:
    """A keyheat in a process of its own, with the settings that belong to `name`."""
    settings = {
        "listen": f"{HOST}:0",
        "upstream": {"addresses": [f"{HOST}:{server_port}"]},
        "log": "warn",
        **KEYHEAT[name],
    }
    log = folder / (re.sub(r"\W+", "-", name) + ".log")
    launched = launch_keyheat(settings, log)
    if launched is None:
        raise PeerError(f"{name} did not start: {_last_words(log)}")
    process, port = launched
    return _answering(Peer(name, port, process), log)


def start_twemproxy(program: Program, server_port: int, folder: Path) -> Peer:
    """Debian's nutcracker in the foreground."""
    stats = free_ports(1)[0]
    return _start(
        "twemproxy",
        server_port,
        folder,
        _TWEMPROXY,
        lambda config: [program.path, "-c", config, "-a", HOST, "-s", str(stats)],
    )


def start_haproxy(program: Program, server_port: int, folder: Path) -> Peer:
    """Debian's HAProxy, tcp mode, in the foreground."""
    return _start(
        "haproxy", server_port, folder, _HAPROXY, lambda config: [program.path, "-db", "-f", config]
    )


def start_envoy(program: Program, server_port: int, folder: Path) -> Peer:
    """Envoy with one worker thread."""
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
    return _start("envoy", server_port, folder, _ENVOY, lambda config: [program.path, "-c", config, *options])


def start_bare(target: Path, folder: Path) -> Peer:
    """The bare server of `bare.c`, compiled here."""
    return _start_compiled(BARE, "bare", [], target, folder)


def start_forwarder(target: Path, server_port: int, folder: Path) -> Peer:
    """The bare forwarder of `forwarder.c`, compiled here."""
    return _start_compiled(FORWARDER, "forwarder", [server_port], target, folder)


def start_relay(target: Path, server_port: int, folder: Path) -> Peer:
    """The relay of `relay.c`, compiled here."""
    return _start_compiled("relay", "relay", [server_port], target, folder)


STARTERS: Final[dict[str, tuple[str, Callable[[Program, int, Path], Peer]]]] = {
    "twemproxy": ("nutcracker", start_twemproxy),
    "haproxy": ("haproxy", start_haproxy),
    "envoy": ("envoy", start_envoy),
}


def _start(
    name: str, server_port: int, folder: Path, config: str, command: Callable[[str], list[str]]
) -> Peer:
    port = free_ports(1)[0]
    path = folder / f"{name}.yaml"
    path.write_text(config.format(port=port, server=server_port))
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = child.spawn(command(str(path)), cwd=str(folder), log=out)
    return _answering(Peer(name, port, process), log)


def _start_compiled(name: str, source: str, words: list[int], target: Path, folder: Path) -> Peer:
    port, log = free_ports(1)[0], folder / f"{source}.log"
    try:
        program = compile_c(source, target)
    except OSError as error:
        raise PeerError(str(error)) from error
    with log.open("wb") as out:
        process = child.spawn([str(program), str(port), *map(str, words)], cwd=str(folder), log=out)
    return _answering(Peer(name, port, process), log)


def _answering(peer: Peer, log: Path) -> Peer:
    """Wait until a GET comes back."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while peer.process.poll() is None and time.monotonic() < deadline:
        try:
            if read(peer.port, "nothing-here") is None:
                return peer
        except OSError:
            time.sleep(_POLL_S)
    peer.close()
    raise PeerError(f"{peer.name} did not start: {_last_words(log)}")


def store(port: int, key: str, value: bytes) -> None:
    """SET a key over a fresh connection.

    Raises:
        OSError: There was no connection, or the answer was not OK.
    """
    with socket.create_connection((HOST, port), timeout=5.0) as connection:
        head = f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n"
        connection.sendall(head.encode() + value + b"\r\n")
        if (answer := connection.recv(64)) != b"+OK\r\n":
            raise OSError(f"SET was answered with {answer!r}")


def read(port: int, key: str) -> bytes | None:
    """GET a key over a fresh connection, with no command but that one: not every proxy knows HELLO.

    Raises:
        OSError: There was no connection, or the answer was not a value.
    """
    with socket.create_connection((HOST, port), timeout=5.0) as connection:
        connection.sendall(f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode())
        with connection.makefile("rb") as replies:
            head = replies.readline()
            if not head.startswith(b"$"):
                raise OSError(f"GET was answered with {head!r}")
            size = int(head[1:])
            return None if size < 0 else replies.read(size)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"
