"""A real Sentinel beside embedded servers."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from keyheat.server import child
from keyheat.server.embedded import EmbeddedServer, free_ports

SERVICE = "service"


@contextlib.contextmanager
def sentinel(binary: str, primary: EmbeddedServer, directory: Path) -> Iterator[int]:
    """The port of a Sentinel that watches a primary, alone, and calls it dead after half a second."""
    port = free_ports(1)[0]
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"dir {directory}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
        f"sentinel down-after-milliseconds {SERVICE} 500",
        f"sentinel failover-timeout {SERVICE} 3000",
    ]
    config = directory / "sentinel.conf"
    config.write_text("\n".join(lines) + "\n")
    with (directory / "sentinel.log").open("wb") as log:
        process = child.spawn([binary, str(config), "--sentinel"], cwd=str(directory), log=log)
    try:
        with redis.Redis("127.0.0.1", port) as client:
            deadline = time.monotonic() + 10
            while not knows_replicas(client, 2):
                assert time.monotonic() < deadline, (directory / "sentinel.log").read_text()
                time.sleep(0.05)
        yield port
    finally:
        child.end(process)


def knows_replicas(client: redis.Redis, count: int) -> bool:
    """Whether the Sentinel has met that many replicas of the primary."""
    with contextlib.suppress(redis.RedisError):
        found = client.execute_command("SENTINEL", "REPLICAS", SERVICE)
        return len(found) == count
    return False
