"""What one invalidation costs the engine's thread, with few and with many entries cached."""

import time
from collections.abc import Iterator
from pathlib import Path

import redis

import keyheat
from client_bench.figure import Figure
from keyheat.server.embedded import EmbeddedServer

SIZES = (1_000, 100_000)
ROUNDS = 12_000


def figures() -> Iterator[Figure]:
    """CPU of the engine's thread per invalidation."""
    for size in SIZES:
        with EmbeddedServer() as server:
            yield Figure(
                "invalidation", f"one, with {size:,} entries, CPU", _cost(server.port, size), "us", 50
            )


def _cost(port: int, size: int) -> float:
    client = keyheat.protect(
        redis.Redis(port=port),
        every_key=True,
        cache_entries_max=2 * size,
        cache_bytes=1 << 30,
        hot_keys_max=1,
    )
    other = redis.Redis(port=port)
    keys = [f"key:{i}" for i in range(size)]
    for start in range(0, size, 1_000):
        with other.pipeline(transaction=False) as pipe:
            for key in keys[start : start + 1_000]:
                pipe.set(key, "v" * 64)
            pipe.execute()
    until = time.monotonic() + 120
    while client.keyheat.stats()["cached_entries"] < size:  # type: ignore[attr-defined]
        for key in keys:
            client.get(key)
        if time.monotonic() > until:
            raise RuntimeError("the cache was never filled")
    before = client.keyheat.stats()["invalidations"]  # type: ignore[attr-defined]
    spent = -_tracker_ns()
    victims = keys[: min(size, ROUNDS)]
    for start in range(0, len(victims), 100):
        with other.pipeline(transaction=False) as pipe:
            for key in victims[start : start + 100]:
                pipe.set(key, "w")
            pipe.execute()
    while client.keyheat.stats()["invalidations"] - before < len(victims):  # type: ignore[attr-defined]
        time.sleep(0.01)
        if time.monotonic() > until:
            raise RuntimeError("invalidations are missing")
    spent += _tracker_ns()
    client.close()
    other.close()
    return spent / len(victims) / 1e3


def _tracker_ns() -> int:
    """CPU of this process's engine thread, as the scheduler counts it."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("keyheat-tracker"):
            return int((task / "schedstat").read_text().split()[0])
    raise RuntimeError("no engine thread")
