"""What is compared: a server alone, replicas behind one proxy, and proxies that cache before one server.

All of them are up at the same time, so that rounds can go from one to the next; who is not asked costs
nothing.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from compare_bench.load import Workload, value
from keyheat.server import child
from keyheat.server.binary import find_binary
from keyheat.server.embedded import HOST, EmbeddedServer
from proxy_bench.launch import launch_keyheat

COUNTS: Final = (1, 2, 4)
_TIMEOUT_S: Final = 20.0
_FILL_BATCH: Final = 500


@dataclass
class Setup:
    """Servers, proxies, and where clients connect."""

    name: str
    port: int
    servers: list[EmbeddedServer]
    proxies: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def is_cached(self) -> bool:
        """Whether its proxies answer hot keys."""
        return self.name.startswith("cache")

    @property
    def primary(self) -> EmbeddedServer:
        """Where writes go."""
        return self.servers[0]

    def pids(self, kind: str) -> list[int]:
        """Process ids of `servers` or of `proxies`."""
        if kind == "servers":
            return [server.pid for server in self.servers]
        return [proxy.pid for proxy in self.proxies]


def names() -> list[str]:
    """All setups, in the order in which they are shown."""
    replicas = [f"{count} replica{'s' if count > 1 else ''}" for count in COUNTS]
    proxies = [f"cache on {count} prox{'ies' if count > 1 else 'y'}" for count in COUNTS]
    return ["server alone", "proxy, no cache", *replicas, *proxies]


def start(stack: contextlib.ExitStack, folder: Path, work: Workload) -> list[Setup]:
    """Start all of them, with the values of `work`."""

    def server() -> EmbeddedServer:
        # One thread each: what a process costs is to be seen.
        return stack.enter_context(EmbeddedServer({"io-threads": "1"}, binary=find_binary(prefer_wheel=True)))

    alone = server()
    fill(alone, work)
    shown = names()
    setups = [Setup(shown[0], alone.port, [alone])]

    def add(name: str, servers: list[EmbeddedServer], proxies: int, **settings: object) -> None:
        port, started = 0, []
        for number in range(proxies):
            made, listens = launch(folder / f"{len(setups)}-{number}.log", servers[0], port, settings)
            stack.callback(child.end, made)
            port = listens
            started.append(made)
        setups.append(Setup(name, port, servers, started))

    add(shown[1], [alone], 1, local_cache=False)
    for count, name in zip(COUNTS, shown[2:], strict=False):
        servers = [server() for _ in range(count + 1)]
        fill(servers[0], work)
        for replica in servers[1:]:
            replicate(replica, servers[0])
        add(name, servers, 1, local_cache=False, read_from="prefer-replica")
    for count, name in zip(COUNTS, shown[2 + len(COUNTS) :], strict=True):
        add(name, [alone], count)
    return setups


def launch(
    log: Path, upstream: EmbeddedServer, port: int, settings: dict[str, object]
) -> "tuple[subprocess.Popen[bytes], int]":
    """A proxy of one shard that shares its address, and its port."""
    whole = {
        "listen": f"{HOST}:{port}",
        "upstream": {"addresses": [upstream.address]},
        "log": "warn",
        "shards": 1,
        "reuse_port": True,
        **settings,
    }
    launched = launch_keyheat(whole, log)
    if launched is None:
        raise RuntimeError(f"a proxy did not start: {log.read_text()[-300:]}")
    return launched


def fill(server: EmbeddedServer, work: Workload) -> None:
    """Give a server all values."""
    with server.client() as client:
        for first in range(0, len(work.keys), _FILL_BATCH):
            some = range(first, min(first + _FILL_BATCH, len(work.keys)))
            client.mset({work.keys[index]: value(work.sizes[index]) for index in some})


def replicate(replica: EmbeddedServer, primary: EmbeddedServer) -> None:
    """Make it a replica, and wait until it has everything."""
    with replica.client(decode_responses=True) as client:
        client.execute_command("REPLICAOF", HOST, primary.port)
        wait_until(lambda: client.info("replication").get("master_link_status") == "up")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Poll."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {_TIMEOUT_S:g} s")
        time.sleep(0.02)
