"""The protected client, asyncio: moves bytes, decides nothing. The twin of `sync`."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from keyheat._keyheat import MISS, Guard, Join, Lead
from keyheat.client import identity
from keyheat.client.common import ProtectedClient, ProtectedCluster, filler
from keyheat.client.pipelines import queued


class AioClient(ProtectedClient):
    """What a protected client does before and after each command."""

    async def _keyheat_hot(self, guard: Guard, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """As `execute_command`, while some key is hot."""
        found = guard.enter(args, options)
        if found is MISS or type(found) is Lead or type(found) is Join:
            return await self._keyheat_read(guard, found, args, options)
        return found

    async def _keyheat_read(
        self, guard: Guard, found: Any, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if type(found) is Join:
            reply = await _joined(found, self.keyheat.binding.coalesce_wait_s)
            if reply is not MISS:
                guard.count(args, reply)
                return reply
            found = guard.enter(args, options)
            if found is not MISS and type(found) is not Lead and type(found) is not Join:
                return found
        lead = found if type(found) is Lead else None
        try:
            reply = await self._keyheat_send(lead, args, options)
        except BaseException:
            if lead is not None:
                lead.fail()
            guard.failed(args)
            raise
        if lead is not None:
            lead.end(reply)
        guard.leave(args, reply)
        return reply

    async def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = self._keyheat_own
        if lead is None or not lead.is_fill:
            return await own.execute_command(self, *args, **options)
        return await own.execute_command(filler(self, own, AioFill, lead), *args, **options)

    async def get_or_load(
        self, key: bytes | str, loader: Callable[[], Any], *, ttl: float | timedelta
    ) -> Any:
        """The value under `key`, loaded from the source and stored if it is missing.

        As the blocking client's; the loader may be a coroutine function.
        """
        return await self.keyheat.loader_of(self).get_or_load_async(key, loader, ttl=ttl)

    async def aclose(self, *args: Any, **options: Any) -> Any:
        """As the client's own."""
        try:
            return await super().aclose(*args, **options)  # type: ignore[misc]
        finally:
            if self._keyheat_guard is not None:
                self.keyheat.binding.closed(self)


async def _joined(join: Join, timeout_s: float) -> Any:
    """The value of somebody else's read, or `MISS` where there is none in time."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(ended.set)

    join.on_end(tell)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    return join.value()


class AioFill:
    """A client for one read whose value is to be kept: makes sure where it comes from. See `filler`."""

    __slots__ = ()

    _keyheat_lead: Lead

    async def _send_command_parse_response(
        self, conn: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        lead = self._keyheat_lead
        writer = await _writer_to(conn, lead.process)
        if writer is None:
            lead.disown()
        reply = await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]
        if writer is not None and conn._writer is not writer:
            lead.disown()  # it was connected anew in between
        return reply

    def __del__(self) -> None:
        """Nothing: what the client owns is the client's to close."""


async def _writer_to(conn: Any, process: str | None) -> Any:
    """The connection's stream if it leads to that server process; `None` if not, or if nobody can tell."""
    if getattr(conn, "_writer", None) is None:
        try:
            await conn.connect()
        except Exception:  # noqa: BLE001  sending the command will say so, and be retried as configured
            return None
    writer = getattr(conn, "_writer", None)
    if not process or writer is None:
        return None
    found = identity.known(writer)
    if found is None:
        is_read = False
        try:
            await conn.send_command("INFO", "server")
            answer = await conn.read_response(disable_decoding=True)
            is_read = True
        except Exception as error:  # noqa: BLE001
            is_read = identity.is_refusal(error)
            if is_read:
                identity.remember(writer, "")
            return None
        finally:
            if not is_read:  # cancelled, timed out: no answer may be left for the next command
                await conn.disconnect(nowait=True)
        writer = conn._writer
        found = identity.remember(writer, answer)
    return writer if found == process else None


class AioCluster(ProtectedCluster, AioClient):
    """As `AioClient`, for a Cluster: the value has to come from the node that tracks its key."""

    async def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if lead is not None and (node := self._keyheat_home(lead, options)) is not None:
            try:
                return await node.execute_command(*args, **options)
            except Exception:  # noqa: BLE001  the client's own way knows about redirects and retries
                lead.disown()
        return await self._keyheat_own.execute_command(self, *args, **options)


def command(own: type[Any]) -> Callable[..., Any]:
    """The `execute_command` of a protected class.

    A function of its own for each class, so that what every command pays is one frame and one call: no
    `super()`, and `enter` only while something is hot. The client's own method is looked up anew each
    time: instrumentation may replace it at any moment.
    """

    async def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._keyheat_guard
        if guard is None:
            return await own.execute_command(self, *args, **options)
        if guard.has_hot_keys:
            return await self._keyheat_hot(guard, args, options)
        try:
            reply = await own.execute_command(self, *args, **options)
        except BaseException:
            guard.failed(args)
            raise
        guard.leave(args, reply)
        return reply

    return execute_command


def cluster_command(command: Callable[[type[Any]], Any]) -> Callable[[type[Any]], Any]:
    """As `command`, which makes one, and follows the client when its map of the Cluster changes."""

    def made(own: type[Any]) -> Callable[..., Any]:
        plain = command(own)

        async def execute_command(self: Any, *args: Any, **options: Any) -> Any:
            reply = await plain(self, *args, **options)
            slots = self.nodes_manager.slots_cache
            if slots is not self._keyheat_slots and self._keyheat_guard is not None:
                self._keyheat_follow(slots)
            return reply

        return execute_command

    return made


class AioPipeline:
    """A pipeline of a protected client: counted, and what it writes is noted; never read locally."""

    _keyheat_guard: Guard | None = None
    _keyheat_routes: Any = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the pipeline's own."""
        guard = self._keyheat_guard
        if guard is None:
            return super().execute_command(*args, **options)  # type: ignore[misc]
        if self._keyheat_routes is not None:
            args = self._keyheat_routes.rewritten(args)
        guard.void_for(args)
        sent = super().execute_command(*args, **options)  # type: ignore[misc]
        return self._keyheat_sent(guard, sent, args) if inspect.iscoroutine(sent) else sent

    async def _keyheat_sent(self, guard: Guard, sent: Any, args: tuple[Any, ...]) -> Any:
        """While watching, a command is sent at once."""
        try:
            return await sent
        finally:
            guard.void_for(args)
            if (routes := self._keyheat_routes) is not None:
                await routes.wrote([args])

    async def execute(self, *args: Any, **options: Any) -> Any:
        """As the pipeline's own."""
        guard = self._keyheat_guard
        if guard is None:
            return await super().execute(*args, **options)  # type: ignore[misc]
        commands = queued(self)
        for command in commands:
            guard.void_for(command)
        routes = self._keyheat_routes
        try:
            permit = None if routes is None else routes.permit(())
        except BaseException:
            await self.reset()  # type: ignore[attr-defined]
            raise
        replies: list[Any] = []
        try:
            replies = await super().execute(*args, **options)  # type: ignore[misc]
        except BaseException as error:
            if permit is not None:
                permit.failed(error)
            raise
        else:
            if permit is not None:
                permit.done()
        finally:
            for number, command in enumerate(commands):
                guard.count(command, replies[number] if number < len(replies) else None)
            if routes is not None:
                await routes.wrote(commands)
        return replies
