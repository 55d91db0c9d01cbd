"""Protected clients for django-redis: everything it does stays its own, only its Redis clients change.

For one cache:

    "BACKEND": "django_redis.cache.RedisCache",
    "LOCATION": "redis://127.0.0.1:6379/1",
    "OPTIONS": {
        "CLIENT_CLASS": "keyheat.integrations.django_redis.KeyheatClient",
        "KEYHEAT": {"max_staleness": 0.1},
    },

For all of them, or with a CLIENT_CLASS of another kind (Herd, Shard, Sentinel, your own):

    DJANGO_REDIS_CONNECTION_FACTORY = "keyheat.integrations.django_redis.ConnectionFactory"

or, where Sentinel is asked, `SentinelConnectionFactory`.

*Replicas.* With several servers in LOCATION, django-redis writes to the first and reads from the others.
`KeyheatClient` knows which is which: reads from replicas are counted, and always go to the server. A
factory is told a URL only; there the engine finds out by `ROLE`, and keeps nothing from a replica, but
callers who read the same hot key at the same time may share one read, begun at most `max_staleness` before.
Clients that Sentinel manages say themselves whether they read from replicas, and then do neither.

`KEY_PREFIX`, `VERSION`, serializers and compressors work above the client: what is kept is the bytes the
server sent. `IGNORE_EXCEPTIONS` sees the exceptions it always saw.
"""

from typing import Any

from django_redis import pool  # type: ignore[import-untyped]
from django_redis.client import DefaultClient  # type: ignore[import-untyped]

from keyheat.integrations._django_options import checked, protected


class KeyheatClient(DefaultClient):  # type: ignore[misc]
    """django-redis' default client, whose Redis clients are protected.

    Raises:
        ImproperlyConfigured: An option under "KEYHEAT" is not accepted.
    """

    def __init__(self, server: Any, params: dict[str, Any], backend: Any) -> None:
        self._keyheat = checked(params.get("OPTIONS", {}).get("KEYHEAT", {}))
        super().__init__(server, params, backend)

    def connect(self, index: int = 0) -> Any:
        """A protected client for one of the servers, the first of which is the primary."""
        return protected(super().connect(index), self._keyheat, is_replica=index > 0)


class _Protecting:
    """What both factories do beside their own; mixed in before django-redis' class."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._keyheat = checked(options.get("KEYHEAT", {}))
        super().__init__(options)  # type: ignore[call-arg]

    def get_connection(self, params: dict[str, Any]) -> Any:
        """A protected client."""
        return protected(super().get_connection(params), self._keyheat)  # type: ignore[misc]


class ConnectionFactory(_Protecting, pool.ConnectionFactory):  # type: ignore[misc]
    """django-redis' connection factory, whose clients are protected."""


class SentinelConnectionFactory(
    _Protecting,
    pool.SentinelConnectionFactory,  # type: ignore[misc]
):
    """The same for primaries and replicas that Sentinel names."""
