"""The client libraries keyheat protects: redis-py and valkey-py, which is a fork of it.

Both have the same shape under other names, so everything that differs is here.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One client library.

    Attributes:
        name: Its top package.
        sync: The class of its client.
        aio: The class of its asyncio client.
        sync_cluster: The class of its Cluster client.
        aio_cluster: The class of its asyncio Cluster client.
        pipelines: The classes of its pipelines, which are clients to Python.
        refusals: Exceptions by which a server says no.
        retry: Its retry policy's class.
        no_backoff: The backoff of one that does not wait.
    """

    name: str
    sync: type[Any]
    aio: type[Any]
    sync_cluster: type[Any]
    aio_cluster: type[Any]
    pipelines: tuple[type[Any], ...]
    refusals: tuple[type[Exception], ...]
    retry: Any
    no_backoff: Any

    def sync_connection_class(self, connection_class: type[Any]) -> type[Any]:
        """The blocking twin of a connection class; itself if it is one.

        A Sentinel's managed connection becomes a plain one: its address is asked for beside it.
        """
        sync = importlib.import_module(f"{self.name}.connection")
        aio = importlib.import_module(f"{self.name}.asyncio.connection")
        for kind in ("UnixDomainSocketConnection", "SSLConnection", "Connection"):
            theirs = (getattr(sync, kind), getattr(aio, kind))
            if issubclass(connection_class, theirs):
                is_managed = "Managed" in connection_class.__name__
                is_own = issubclass(connection_class, getattr(sync, kind)) and not is_managed
                return connection_class if is_own else getattr(sync, kind)
        return connection_class


_CLASSES = {"redis": ("Redis", "RedisCluster"), "valkey": ("Valkey", "ValkeyCluster")}
_families: dict[str, Family] = {}


def family_of(client: object) -> Family | None:
    """The library a client belongs to; `None` for what is no client of either."""
    for name in _CLASSES:
        # Whoever has made a client has imported its library.
        if name in sys.modules:
            family = _family(name)
            if isinstance(client, (family.sync, family.aio, family.sync_cluster, family.aio_cluster)):
                return family
    return None


def _family(name: str) -> Family:
    if name not in _families:
        top = importlib.import_module(name)
        aio = importlib.import_module(f"{name}.asyncio")
        exceptions = importlib.import_module(f"{name}.exceptions")
        plain, cluster = _CLASSES[name]
        _families[name] = Family(
            name=name,
            sync=getattr(top, plain),
            aio=getattr(aio, plain),
            sync_cluster=getattr(importlib.import_module(f"{name}.cluster"), cluster),
            aio_cluster=getattr(importlib.import_module(f"{name}.asyncio.cluster"), cluster),
            pipelines=tuple(
                getattr(importlib.import_module(f"{name}.{module}"), kind)
                for module, kind in (
                    ("client", "Pipeline"),
                    ("asyncio.client", "Pipeline"),
                    ("cluster", "ClusterPipeline"),
                    ("asyncio.cluster", "ClusterPipeline"),
                )
            ),
            refusals=(exceptions.AuthenticationError, exceptions.ResponseError),
            retry=importlib.import_module(f"{name}.retry").Retry,
            no_backoff=importlib.import_module(f"{name}.backoff").NoBackoff,
        )
    return _families[name]
