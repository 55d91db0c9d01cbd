"""The servers redis-py's tests expect, on free ports: one server, or three primaries with a replica each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

# As in redis-py's own docker-compose.yml.
_CONFIG: Final = {"enable-debug-command": "yes", "enable-module-command": "yes"}


@dataclass(frozen=True)
class Server:
    """What the tests are told (`url`), and what the results are filed under (`name`)."""

    url: str
    name: str

    @property
    def product(self) -> str:
        """`valkey` or `redis`."""
        return self.name.partition("-")[0]


@contextmanager
def running(binary: str, *, is_cluster: bool) -> Iterator[Server]:
    """Servers for one run of the tests, gone at its end."""
    if is_cluster:
        with EmbeddedCluster(3, 1, config=_CONFIG, binary=binary) as cluster:
            yield _described(cluster.primaries[0])
    else:
        with EmbeddedServer(_CONFIG, binary=binary) as server:
            yield _described(server)


def _described(server: EmbeddedServer) -> Server:
    with server.client() as client:
        info: Any = client.info("server")
    product = info.get("server_name", "redis")
    version = info.get(f"{product}_version", info["redis_version"])
    # By name: some tests compare with it.
    return Server(f"redis://localhost:{server.port}/0", f"{product}-{version}")
