"""The client libraries' classes by name: every kind of client that can be protected."""

import importlib
from typing import Any

from tests.client.sides import Side

_NAMES = {"redis": ("Redis", "RedisCluster"), "valkey": ("Valkey", "ValkeyCluster")}


def single_class(library: str, kind: str) -> type[Any]:
    """The client of one server."""
    top = importlib.import_module(f"{library}.asyncio" if kind == "aio" else library)
    found: type[Any] = getattr(top, _NAMES[library][0])
    return found


def cluster_class(library: str, kind: str) -> type[Any]:
    """The client of a Cluster."""
    top = importlib.import_module(f"{library}.asyncio.cluster" if kind == "aio" else f"{library}.cluster")
    found: type[Any] = getattr(top, _NAMES[library][1])
    return found


def exceptions(library: str) -> Any:
    """The library's exceptions."""
    return importlib.import_module(f"{library}.exceptions")


def single_client(library: str, side: Side, address: str, **options: Any) -> Any:
    """A client of one server; not yet wrapped."""
    host, port = address.rsplit(":", 1)
    return single_class(library, side.kind)(host=host, port=int(port), **options)


def cluster_client(library: str, side: Side, address: str, **options: Any) -> Any:
    """A client of a Cluster, initialized; not yet wrapped."""
    host, port = address.rsplit(":", 1)
    made = cluster_class(library, side.kind)
    if not side.is_aio:
        return made(host=host, port=int(port), **options)

    async def make() -> Any:
        return await made(host=host, port=int(port), **options).initialize()

    return side.loop.run(make())
