"""The protected client, blocking: moves bytes, decides nothing.

Each class here stands before the client's own class in the method resolution order, so everything it
does not mention is the client's own.
"""

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from keyheat._keyheat import MISS, Guard, Join, Lead
from keyheat.client import identity
from keyheat.client.common import ProtectedClient, ProtectedCluster, filler
from keyheat.client.pipelines import queued


class SyncClient(ProtectedClient):
    """What a protected client does before and after each command."""

    def _keyheat_hot(self, guard: Guard, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """As `execute_command`, while some key is hot."""
        found = guard.enter(args, options)
        if found is MISS or type(found) is Lead or type(found) is Join:
            return self._keyheat_read(guard, found, args, options)
        return found

    def _keyheat_read(self, guard: Guard, found: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if type(found) is Join:
            reply = _joined(found, self.keyheat.binding.coalesce_wait_s)
            if reply is not MISS:
                guard.count(args, reply)
                return reply
            # The one who asked failed, or is slow. Whoever is first now asks for the others again.
            found = guard.enter(args, options)
            if found is not MISS and type(found) is not Lead and type(found) is not Join:
                return found
        lead = found if type(found) is Lead else None
        try:
            reply = self._keyheat_send(lead, args, options)
        except BaseException:
            if lead is not None:
                lead.fail()
            guard.failed(args)
            raise
        if lead is not None:
            lead.end(reply)
        guard.leave(args, reply)
        return reply

    def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = self._keyheat_own
        if lead is None or not lead.is_fill:
            return own.execute_command(self, *args, **options)
        return own.execute_command(filler(self, own, SyncFill, lead), *args, **options)

    def get_or_load(self, key: bytes | str, loader: Callable[[], Any], *, ttl: float | timedelta) -> Any:
        """The value under `key`, loaded from the source and stored if it is missing.

        Of all callers that miss one key, in all processes, one calls the loader; see `keyheat.Loader`, which
        this is, for what is done about failures, staleness and congestion.

        Args:
            key: The key.
            loader: Asks the source; `None` means there is no such thing, which is remembered for a while.
            ttl: Seconds, or a timedelta, for which the value is fresh; 10 % more or less, by chance.

        Raises:
            TurnedBackError: Too many loads are under way, or another's took too long or failed.
            Exception: What the loader raised.
        """
        return self.keyheat.loader_of(self).get_or_load(key, loader, ttl=ttl)

    def __del__(self) -> None:
        """As the client's own, unless the pool has an owner of its own."""
        if "_keyheat_owner" not in self.__dict__:
            with contextlib.suppress(AttributeError):
                super().__del__()  # type: ignore[misc]

    def close(self) -> Any:
        """As the client's own."""
        try:
            return super().close()  # type: ignore[misc]
        finally:
            if self._keyheat_guard is not None:
                self.keyheat.binding.closed(self)


def _joined(join: Join, timeout_s: float) -> Any:
    """The value of somebody else's read, or `MISS` where there is none in time.

    Waited for in Python: a thread that waits in native code cannot be ended when the interpreter is.
    """
    ended = threading.Event()
    join.on_end(ended.set)
    ended.wait(timeout_s)
    return join.value()


class SyncFill:
    """A client for one read whose value is to be kept: makes sure where it comes from. See `filler`."""

    __slots__ = ()

    _keyheat_lead: Lead

    def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        lead = self._keyheat_lead
        socket = _socket_to(conn, lead.process)
        if socket is None:
            lead.disown()
        reply = super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]
        if socket is not None and conn._sock is not socket:
            lead.disown()  # it was connected anew in between
        return reply

    def __del__(self) -> None:
        """Nothing: what the client owns is the client's to close."""


class PoolOwner:
    """Closes a client's pool when nobody is left who uses it, as the client alone would have."""

    __slots__ = ("_closes", "_pool")

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        self._closes = bool(getattr(client, "auto_close_connection_pool", False))

    def __del__(self) -> None:
        if self._closes:
            with contextlib.suppress(Exception):  # the interpreter may be shutting down
                self._pool.disconnect()


def _socket_to(conn: Any, process: str | None) -> Any:
    """The connection's socket if it leads to that server process; `None` if not, or if nobody can tell."""
    socket = getattr(conn, "_sock", None)
    if socket is None:
        try:
            conn.connect()
        except Exception:  # noqa: BLE001  sending the command will say so, and be retried as configured
            return None
        socket = getattr(conn, "_sock", None)
    if not process or socket is None:
        return None
    found = identity.known(socket)
    if found is None:
        try:
            conn.send_command("INFO", "server")
            answer = conn.read_response(disable_decoding=True)
        except Exception as error:  # noqa: BLE001
            # A refusal leaves the connection as it was; anything else must not leave an answer behind.
            if not identity.is_refusal(error):
                conn.disconnect()
            else:
                identity.remember(socket, "")
            return None
        socket = conn._sock
        found = identity.remember(socket, answer)
    return socket if found == process else None


def connection_to(cluster: Any, node: Any) -> Any:
    """A Cluster client's client for one of its nodes."""
    getter = getattr(cluster, "get_redis_connection", None) or cluster.get_valkey_connection
    return getter(node)


class SyncCluster(ProtectedCluster, SyncClient):
    """As `SyncClient`, for a Cluster: the value has to come from the node that tracks its key."""

    def _keyheat_send(self, lead: Lead | None, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if lead is not None and (node := self._keyheat_home(lead, options)) is not None:
            try:
                reply = connection_to(self, node).execute_command(*args, **options)
                callbacks = getattr(self, "cluster_response_callbacks", None) or {}
                return callbacks[args[0]](reply, **options) if args[0] in callbacks else reply
            except Exception:  # noqa: BLE001  the client's own way knows about redirects and retries
                lead.disown()
        return self._keyheat_own.execute_command(self, *args, **options)


def command(own: type[Any]) -> Callable[..., Any]:
    """The `execute_command` of a protected class.

    A function of its own for each class, so that what every command pays is one frame and one call: no
    `super()`, and `enter` only while something is hot. The client's own method is looked up anew each
    time: instrumentation may replace it at any moment.
    """

    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._keyheat_guard
        if guard is None:
            return own.execute_command(self, *args, **options)
        if guard.has_hot_keys:
            return self._keyheat_hot(guard, args, options)
        try:
            reply = own.execute_command(self, *args, **options)
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

        def execute_command(self: Any, *args: Any, **options: Any) -> Any:
            reply = plain(self, *args, **options)
            slots = self.nodes_manager.slots_cache
            if slots is not self._keyheat_slots and self._keyheat_guard is not None:
                self._keyheat_follow(slots)
            return reply

        return execute_command

    return made


class SyncPipeline:
    """A pipeline of a protected client: counted, and what it writes is noted; never read locally."""

    _keyheat_guard: Guard | None = None
    _keyheat_routes: Any = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As the pipeline's own."""
        guard, routes = self._keyheat_guard, self._keyheat_routes
        if routes is not None:
            args = routes.rewritten(args)
        if guard is not None:
            guard.void_for(args)
        reply = None
        try:
            reply = super().execute_command(*args, **options)  # type: ignore[misc]
            return reply
        finally:
            # While watching, a command is sent at once.
            if guard is not None:
                guard.void_for(args)
            if routes is not None and reply is not self:
                routes.wrote([args])

    def execute(self, *args: Any, **options: Any) -> Any:
        """As the pipeline's own."""
        guard = self._keyheat_guard
        if guard is None:
            return super().execute(*args, **options)  # type: ignore[misc]
        commands = queued(self)
        for command in commands:
            guard.void_for(command)
        routes = self._keyheat_routes
        try:
            permit = None if routes is None else routes.permit(())
        except BaseException:
            self.reset()  # type: ignore[attr-defined]
            raise
        replies: list[Any] = []
        try:
            replies = super().execute(*args, **options)  # type: ignore[misc]
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
                routes.wrote(commands)
        return replies
