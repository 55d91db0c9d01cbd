"""The servers redis-py's tests expect, on free ports: one server, or three primaries with a replica each."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

# As in redis-py's own docker-compose.yml.
_CONFIG: Final = {"enable-debug-command": "yes", "enable-module-command": "yes"}
HOT_AT_ONCE: Final = [
    {
        "name": "all",
        "match": {"any": True},
        "levels": [{"metric": "reads", "enter_per_s": 1}],
        "plan": ["local_cache"],
    }
]


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
def running(
    binary: str, *, is_cluster: bool, port: int | None = None, config: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Servers for one run of the tests, gone at its end; a single one listens at `port` if given."""
    config = {**_CONFIG, **(config or {})}
    if is_cluster:
        with EmbeddedCluster(3, 1, config=config, binary=binary) as cluster:
            yield _described(cluster.primaries[0])
    else:
        with EmbeddedServer(config, binary=binary, port=port) as server:
            yield _described(server)


@contextmanager
def through_proxy(server: Server, *, port: int = 0) -> Iterator[Server]:
    """The same server or Cluster behind a proxy, in which every key is hot at once."""
    from keyheat._keyheat import Proxy  # noqa: PLC0415 - only this kind of run needs it built

    settings = {
        "listen": f"127.0.0.1:{port}",
        "log": "error",
        "upstream": {"addresses": [urlsplit(server.url).netloc]},
        "rules": HOT_AT_ONCE,
        "auth": "pass_through",
        "shards": 2,
    }
    proxy = Proxy(json.dumps(settings))
    proxy.start()
    try:
        url = f"redis://localhost:{proxy.listen.rpartition(':')[2]}/0"
        _wait_ready(url)
        yield replace(server, url=url)
    finally:
        proxy.stop()


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.exists("any")
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


def _described(server: EmbeddedServer) -> Server:
    with server.client() as client:
        info: Any = client.info("server")
    product = info.get("server_name", "redis")
    version = info.get(f"{product}_version", info["redis_version"])
    # By name: some tests compare with it.
    return Server(f"redis://localhost:{server.port}/0", f"{product}-{version}")
