"""Classes made on the fly: the client's own class with a protected one before it.

So `isinstance` holds, and every method that keyheat does not mention is the client's own. Each is made
once; its name and module are the client's, for what shows them (`repr`, logs, traces).
"""

import inspect
from collections.abc import Callable
from typing import Any

from keyheat._keyheat import install_execute_command
from keyheat.client import aio, sync
from keyheat.client._engine import Binding
from keyheat.client.aio import AioClient, AioCluster, AioPipeline
from keyheat.client.family import Family
from keyheat.client.sync import SyncClient, SyncCluster, SyncPipeline


def client_class(family: Family, own: type[Any], binding: Binding) -> type[Any]:
    """The protected class for a client's own class."""
    if binding.routing:
        return _routed_class(family, own)
    if issubclass(own, family.sync_cluster):
        return _made(SyncCluster, own, _installer(sync.cluster_command(sync.command)))
    if issubclass(own, family.aio_cluster):
        return _made(AioCluster, own, _installer(aio.cluster_command(aio.command)))
    if issubclass(own, family.aio):
        return _made(AioClient, own, _installer(aio.command))
    return _made(SyncClient, own, install_execute_command)


def _routed_class(family: Family, own: type[Any]) -> type[Any]:
    from keyheat.client import routed  # noqa: PLC0415  only who asks for it

    if issubclass(own, family.sync_cluster):
        return _made(routed.RoutedCluster, own, _installer(sync.cluster_command(routed.command)))
    if issubclass(own, family.aio_cluster):
        return _made(routed.AioRoutedCluster, own, _installer(aio.cluster_command(routed.aio_command)))
    if issubclass(own, family.aio):
        return _made(routed.AioRoutedClient, own, _installer(routed.aio_command))
    return _made(routed.RoutedClient, own, _installer(routed.command))


def pipeline_class(own: type[Any]) -> type[Any]:
    """The protected class for a pipeline's own class."""
    is_async = inspect.iscoroutinefunction(own.execute)
    return _made(AioPipeline if is_async else SyncPipeline, own)


_classes: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _made(
    protection: type[Any], own: type[Any], install: Callable[[type[Any]], None] | None = None
) -> type[Any]:
    if (protection, own) not in _classes:
        names: dict[str, Any] = {
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__doc__": own.__doc__,
            "_keyheat_own": own,
        }
        made = type(own.__name__, (protection, own), names)
        if install is not None:
            install(made)
        _classes[protection, own] = made
    return _classes[protection, own]


def _installer(command: Callable[[type[Any]], Any]) -> Callable[[type[Any]], None]:
    def install(made: type[Any]) -> None:
        made.execute_command = command(made._keyheat_own)

    return install
