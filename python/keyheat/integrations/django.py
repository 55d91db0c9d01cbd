"""A drop-in for Django's own Redis cache backend: hot keys are answered from memory.

    CACHES = {
        "default": {
            "BACKEND": "keyheat.integrations.django.KeyheatCache",
            "LOCATION": "redis://127.0.0.1:6379",
            "OPTIONS": {"KEYHEAT": {"max_staleness": 0.1}},
        }
    }

Everything else in OPTIONS, and LOCATION as a list, mean what they mean to
`django.core.cache.backends.redis.RedisCache`, which this is a subclass of.

*What is kept* are the bytes the server sent: each `get` unpickles an object of its own, as ever.

*How stale a value can be.* A write through this process is seen by its next read; one made elsewhere within
`max_staleness`. With several servers Django writes to the first and reads from the others: those are
replicas, so their reads are counted, and never answered from memory or shared. Name the primary alone to
have hot keys answered.

*Threads, requests, processes.* Django makes a cache object, and a connection pool, per thread (under ASGI
per request). All of them in a process share one engine, one local cache and one tracking connection per
LOCATION and set of options; a forked worker starts its own, empty.
"""

from typing import Any

from django.core.cache.backends.redis import (  # type: ignore[import-untyped]
    RedisCache,
    RedisCacheClient,
)

from keyheat.client import Handle
from keyheat.integrations._django_options import checked, protected


class KeyheatCacheClient(RedisCacheClient):  # type: ignore[misc]
    """Django's cache client, whose Redis clients are protected.

    Args:
        servers: URLs, the primary first.
        keyheat: Keyword arguments of `keyheat.protect`.
        **options: As Django's.
    """

    def __init__(self, servers: Any, *, keyheat: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(servers, **options)
        self._keyheat = keyheat or {}
        # By pool, which lives as long as this object. Django's makes a client for each call.
        self._protected: dict[int, Any] = {}

    def get_client(self, key: Any = None, *, write: bool = False) -> Any:
        """A protected client for the server that Django chooses."""
        del key  # as in Django's: for those who choose the server by it
        pool = self._get_connection_pool(write)
        client = self._protected.get(id(pool))
        if client is None:
            is_replica = len(self._servers) > 1 and pool is not self._pools.get(0)
            client = protected(self._client(connection_pool=pool), self._keyheat, is_replica=is_replica)
            self._protected[id(pool)] = client
        return client


class KeyheatCache(RedisCache):  # type: ignore[misc]
    """Django's Redis cache with hot keys answered from memory; the module's text says how to use it.

    Raises:
        ImproperlyConfigured: An option under "KEYHEAT" is not accepted.
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        options = dict(params.get("OPTIONS", {}))
        keyheat = checked(options.pop("KEYHEAT", {}))
        super().__init__(server, {**params, "OPTIONS": options})
        self._class = KeyheatCacheClient
        self._options = {**options, "keyheat": keyheat}

    @property
    def keyheat(self) -> Handle:
        """What is asked and switched while running: `cache.keyheat.explain(cache.make_key("front-page"))`."""
        handle: Handle = self._cache.get_client(write=True).keyheat
        return handle
