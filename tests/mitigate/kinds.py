"""One suite for sync and asyncio, redis-py and valkey-py: what differs between them, in one place."""

import importlib
import inspect
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.sentinel
import valkey
import valkey.asyncio
import valkey.asyncio.cluster

KINDS = ("redis", "redis-asyncio", "valkey", "valkey-asyncio")
SHORT = ("redis", "redis-asyncio")


async def done(outcome: Any) -> Any:
    """The outcome of a call that may have to be awaited."""
    return await outcome if inspect.isawaitable(outcome) else outcome


def is_async(kind: str) -> bool:
    return kind.endswith("asyncio")


class Clients:
    """Clients of one kind, closed at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made: list[Any] = []

    def standalone(self, address: str, **options: Any) -> Any:
        host, _, port = address.rpartition(":")
        library: Any = {
            "redis": redis.Redis,
            "redis-asyncio": redis.asyncio.Redis,
            "valkey": valkey.Valkey,
            "valkey-asyncio": valkey.asyncio.Valkey,
        }[self.kind]
        self._made.append(library(host=host, port=int(port), **options))
        return self._made[-1]

    async def cluster(self, address: str, **options: Any) -> Any:
        host, _, port = address.rpartition(":")
        library: Any = {
            "redis": redis.RedisCluster,
            "redis-asyncio": redis.asyncio.cluster.RedisCluster,
            "valkey": valkey.ValkeyCluster,
            "valkey-asyncio": valkey.asyncio.cluster.ValkeyCluster,
        }[self.kind]
        client = library(host=host, port=int(port), **options)
        if is_async(self.kind):
            await client.initialize()
        self._made.append(client)
        return client

    def through_sentinel(self, port: int, service: str) -> Any:
        """What follows the primary of a service; of redis-py's kinds."""
        library: Any = redis.asyncio.sentinel if is_async(self.kind) else redis.sentinel
        watcher = library.Sentinel([("127.0.0.1", port)])
        self._made += [*watcher.sentinels, watcher.master_for(service)]
        return self._made[-1]

    async def close(self) -> None:
        for client in self._made:
            await done(client.aclose() if is_async(self.kind) else client.close())


def no_retry(kind: str) -> Any:
    """A retry policy of the kind's library that never retries."""
    library, _, asynchronous = kind.partition("-")
    retry: Any = importlib.import_module(f"{library}.{'asyncio.' if asynchronous else ''}retry")
    backoff: Any = importlib.import_module(f"{library}.backoff")
    return retry.Retry(backoff.NoBackoff(), 0)
