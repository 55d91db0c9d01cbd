"""Classes of protected clients whose rules send commands elsewhere, or whose expiries are lengthened.

They cost each command a look at its plan, which other clients do not pay.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from keyheat._keyheat import Lead
from keyheat.client.aio import AioClient, AioCluster
from keyheat.client.routes import AioRoutes, SyncRoutes
from keyheat.client.sync import SyncClient, SyncCluster


class RoutedClient(SyncClient):
    """A blocking client that sends commands where their plan says."""

    _keyheat_routes: SyncRoutes

    def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        routes = self._keyheat_routes
        plain = partial(self._keyheat_permitted, super()._keyheat_send, lead, args, options)
        # What is kept in memory comes from the primary.
        return plain() if lead is not None and lead.is_fill else routes.send(args, options, plain)

    def _keyheat_permitted(
        self, send: Any, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Send a command as the client itself would, if its node has not been failing."""
        permit = self._keyheat_routes.permit(args)
        if permit is None:
            return send(lead, args, options)
        try:
            reply = send(lead, args, options)
        except BaseException as error:
            permit.failed(error)
            raise
        permit.done()
        return reply

    def __del__(self) -> None:
        """As the client's own; nothing is waited for."""
        routes = self.__dict__.get("_keyheat_routes")
        if routes is not None:
            routes.abandon()
        super().__del__()

    def close(self) -> Any:
        """As the client's own."""
        self._keyheat_routes.close()
        return super().close()


class RoutedCluster(RoutedClient, SyncCluster):
    """The same for a Cluster."""


class AioRoutedClient(AioClient):
    """An asyncio client that sends commands where their plan says."""

    _keyheat_routes: AioRoutes

    async def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        routes = self._keyheat_routes
        plain = partial(self._keyheat_permitted, super()._keyheat_send, lead, args, options)
        # What is kept in memory comes from the primary.
        is_fill = lead is not None and lead.is_fill
        return await (plain() if is_fill else routes.send(args, options, plain))

    async def _keyheat_permitted(
        self, send: Any, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Send a command as the client itself would, if its node has not been failing."""
        permit = self._keyheat_routes.permit(args)
        if permit is None:
            return await send(lead, args, options)
        try:
            reply = await send(lead, args, options)
        except BaseException as error:
            permit.failed(error)
            raise
        permit.done()
        return reply

    async def aclose(self, *args: Any, **options: Any) -> Any:
        """As the client's own."""
        try:
            await self._keyheat_routes.aclose()
        finally:
            await super().aclose(*args, **options)


class AioRoutedCluster(AioRoutedClient, AioCluster):
    """The same for a Cluster."""


def command(own: type[Any]) -> Callable[..., Any]:
    """The `execute_command` of such a class; see `sync.command`."""

    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._keyheat_guard
        if guard is None:
            return own.execute_command(self, *args, **options)
        args = self._keyheat_routes.rewritten(args)
        return self._keyheat_hot(guard, args, options)

    return execute_command


def aio_command(own: type[Any]) -> Callable[..., Any]:
    """The `execute_command` of such an asyncio class."""

    async def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._keyheat_guard
        if guard is None:
            return await own.execute_command(self, *args, **options)
        args = self._keyheat_routes.rewritten(args)
        return await self._keyheat_hot(guard, args, options)

    return execute_command
