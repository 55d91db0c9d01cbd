"""What a hit costs: protected clients, the bare cache, and what redis-py does instead."""

import asyncio
import os
import time
from collections.abc import Iterator
from statistics import median

import redis
import redis.asyncio

import keyheat
from client_bench.figure import Figure, LeftOutError, cpu_us_per_call
from keyheat.server.embedded import EmbeddedServer

KEY = "item:1"
VALUE = b"v" * 64
WARM_S = 1.0


def figures() -> Iterator[Figure]:
    """All of them, in one run."""
    with EmbeddedServer() as server:
        plain = redis.Redis(port=server.port)
        plain.set(KEY, VALUE)
        network = cpu_us_per_call(lambda: plain.get(KEY), 2_000)
        yield Figure("hits", "redis-py GET over the network, CPU", network, "us")
        client = keyheat.protect(redis.Redis(port=server.port))
        warm(client)
        hit = cpu_us_per_call(lambda: client.get(KEY), 50_000)
        yield Figure("hits", "protect(redis.Redis()).get, from memory, CPU", hit, "us", 1.0)
        yield Figure("hits", "network GET / local hit", network / hit, "x", 50, is_floor=True)
        yield Figure(
            "hits",
            "protect(redis.asyncio.Redis()).get, from memory, CPU",
            asyncio.run(_aio(server.port)),
            "us",
            2.0,
        )
        plain.close()
    cache = keyheat.LocalCache(max_age_s=600)
    cache.set(KEY, VALUE)
    get = cache.get
    bare = cpu_us_per_call(lambda: get(KEY), 200_000) - cpu_us_per_call(lambda: None, 200_000)
    yield Figure("hits", "LocalCache.get, counting included, CPU", bare * 1e3, "ns", 140)
    try:
        own = _own_cache()
    except LeftOutError:
        return
    yield Figure("hits", "redis-py's own client-side cache, hit, CPU", own, "us")
    yield Figure("hits", "redis-py's own hit / local hit", own / hit, "x", 40, is_floor=True)


def warm(client: redis.Redis) -> None:
    """Read until reads are answered from memory.

    Raises:
        RuntimeError: They never are.
    """
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for _ in range(100):
            client.get(KEY)
        if client.keyheat.stats()["local_hits"] > 100:  # type: ignore[attr-defined]
            return
    raise RuntimeError("the key was never answered from memory")


async def _aio(port: int) -> float:
    client = keyheat.protect(redis.asyncio.Redis(port=port))
    until = time.monotonic() + 10
    while client.keyheat.stats()["local_hits"] < 100:  # type: ignore[attr-defined]
        await client.get(KEY)
        if time.monotonic() > until:
            raise RuntimeError("the key was never answered from memory")
    spent = []
    for _ in range(7):
        start = time.thread_time_ns()
        for _ in range(20_000):
            await client.get(KEY)
        spent.append((time.thread_time_ns() - start) / 20_000 / 1e3)
    await client.aclose()
    return median(spent)


def _own_cache() -> float:
    """redis-py's client-side cache; it accepts Redis of 7.4 or later only."""
    binary = os.environ.get("KEYHEAT_BENCH_REDIS")
    if not binary:
        raise LeftOutError("KEYHEAT_BENCH_REDIS names no Redis server")
    from redis.cache import CacheConfig  # noqa: PLC0415

    with EmbeddedServer(binary=binary) as server:
        client = redis.Redis(port=server.port, protocol=3, cache_config=CacheConfig())
        client.set(KEY, VALUE)
        client.get(KEY)
        own = cpu_us_per_call(lambda: client.get(KEY), 5_000)
        client.close()
    return own
