"""Classes made on the fly: the client's own class with a protected one before it.

So `isinstance` holds, and every method that keyheat does not mention is the client's own. Each is made
once; its name and module are the client's, for what shows them (`repr`, logs, traces).
"""

import inspect
from typing import Any

from keyheat.client.aio import AioClient, AioCluster, AioPipeline
from keyheat.client.family import Family
from keyheat.client.sync import SyncClient, SyncCluster, SyncPipeline


def client_class(family: Family, own: type[Any]) -> type[Any]:
    """The protected class for a client's own class."""
    if issubclass(own, family.sync_cluster):
        return _made(SyncCluster, own)
    if issubclass(own, family.aio_cluster):
        return _made(AioCluster, own)
    if issubclass(own, family.aio):
        return _made(AioClient, own)
    return _made(SyncClient, own)


def pipeline_class(own: type[Any]) -> type[Any]:
    """The protected class for a pipeline's own class."""
    is_async = inspect.iscoroutinefunction(own.execute)
    return _made(AioPipeline if is_async else SyncPipeline, own)


_classes: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _made(protection: type[Any], own: type[Any]) -> type[Any]:
    if (protection, own) not in _classes:
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        _classes[protection, own] = type(own.__name__, (protection, own), names)
    return _classes[protection, own]
