"""What is asked of a client, as steps (`steps.py`), and what else differs between client libraries.

A command carries the client it is meant for; how a blocking and an asyncio client are called is known
here alone, so no algorithm exists twice.

redis-py and valkey-py share no class, so their errors are told apart by the names of their bases.
"""

import asyncio
import contextlib
import inspect
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

# redis-py's and valkey-py's clients share no class, sync and asyncio ones neither.
Client: TypeAlias = Any
Reply: TypeAlias = Any

# Deletes a key if it still holds this value.
DELETE_IF: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_LOOK_EVERY_S: Final = 0.5
_NOT_NOW: Final = frozenset({"ReadOnlyError", "ClusterDownError", "TryAgainError", "AskError", "MovedError"})
_NOT_NOW_CODES: Final = frozenset({"NOREPLICAS", "BUSY"})
_looked_at_s: "weakref.WeakKeyDictionary[Any, float]" = weakref.WeakKeyDictionary()


@dataclass(slots=True)
class Command:
    """The step of one command; its result is the reply.

    Attributes:
        client: The client to ask.
        args: The command line.
        options: What the client is to be told besides (`NEVER_DECODE`, `target_nodes`).
    """

    client: Client
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Reply:
        """Do it, blocking the thread."""
        return self.client.execute_command(*self.args, **self.options)

    async def run_async(self) -> Reply:
        """Do it, without blocking the event loop."""
        reply = self.client.execute_command(*self.args, **self.options)
        return await reply if inspect.isawaitable(reply) else reply


@dataclass(slots=True)
class Batch:
    """The step of several commands of one client in one pipeline, not a transaction.

    Its result is a list of replies and errors.
    """

    commands: tuple[Command, ...]

    def run(self) -> list[Reply]:
        """Do it, blocking the thread."""
        client = self.commands[0].client
        replies: list[Reply] = []
        try:
            with _pipeline(client) as pipe:
                self._fill(pipe)
                replies = pipe.execute(raise_on_error=False)
        except Exception as error:
            replies = [error]
            raise
        finally:
            if any(is_connection_error(reply) for reply in replies):
                Relearn(client).run()
        return replies

    async def run_async(self) -> list[Reply]:
        """Do it, without blocking the event loop."""
        client = self.commands[0].client
        replies: list[Reply] = []
        try:
            async with _pipeline(client) as pipe:  # entering empties a Cluster's pipeline: fill it after that
                self._fill(pipe)
                replies = await pipe.execute(raise_on_error=False)
        except Exception as error:
            replies = [error]
            raise
        finally:
            if any(is_connection_error(reply) for reply in replies):
                await Relearn(client).run_async()
        return replies

    def _fill(self, pipe: Client) -> None:
        for command in self.commands:
            pipe.execute_command(*command.args, **command.options)


@dataclass(slots=True)
class Fan:
    """The step of several commands, each to a node's own client: all are sent before any is answered.

    Its result is a list of replies and errors. None is retried.
    """

    commands: tuple[Command, ...]

    def run(self) -> list[Reply]:
        """Do it, blocking the thread."""
        replies: list[Reply] = [None] * len(self.commands)
        sent: list[tuple[int, Any, Any]] = []
        for number, command in enumerate(self.commands):
            pool = command.client.connection_pool
            connection = None
            try:
                connection = _connection_of(pool)
                connection.send_command(*command.args)
            except Exception as error:  # noqa: BLE001 - one of the results
                replies[number] = error
                if connection is not None:
                    connection.disconnect()
                    pool.release(connection)
            else:
                sent.append((number, pool, connection))
        for number, pool, connection in sent:
            try:
                replies[number] = connection.read_response()
            except Exception as error:  # noqa: BLE001 - one of the results
                replies[number] = error
                if is_connection_error(error):
                    connection.disconnect()
            except BaseException:
                for _, _, unread in sent:
                    unread.disconnect()
                raise
            finally:
                pool.release(connection)
        return replies

    async def run_async(self) -> list[Reply]:
        """Do it, without blocking the event loop."""
        asked = (command.run_async() for command in self.commands)
        return list(await asyncio.gather(*asked, return_exceptions=True))


@dataclass(slots=True)
class Relearn:
    """The step after a node did not answer: a Cluster's client looks which nodes there are, not too often."""

    client: Client

    def run(self) -> None:
        """Do it, blocking the thread."""
        if _may_look(self.client):
            with contextlib.suppress(Exception):
                self.client.nodes_manager.initialize()

    async def run_async(self) -> None:
        """Do it, without blocking the event loop."""
        if _may_look(self.client):
            with contextlib.suppress(Exception):
                await self.client.nodes_manager.initialize()


def _connection_of(pool: Any) -> Any:
    try:
        return pool.get_connection()
    except TypeError:  # an older library wants to know what for
        return pool.get_connection("EVAL")


def _may_look(client: Client) -> bool:
    """Whether a Cluster's client should learn its topology anew.

    Its single commands do that when a node is gone; its pipelines, asked not to raise, keep sending
    to a dead node for good.
    """
    if not is_cluster(client):
        return False
    now = time.monotonic()
    if now - _looked_at_s.get(client, float("-inf")) < _LOOK_EVERY_S:
        return False
    _looked_at_s[client] = now
    return True


def _pipeline(client: Client) -> Reply:
    # A Cluster's pipeline is never a transaction unless asked, and old ones refuse the argument.
    return client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)


def is_cluster(client: object) -> bool:
    """Whether a client is one of a Cluster."""
    return hasattr(client, "nodes_manager")


def is_asyncio(client: object) -> bool:
    """Whether a client's commands are to be awaited."""
    return inspect.iscoroutinefunction(getattr(client, "execute_command", None))


def library_of(client: Client) -> str:
    """`redis` or `valkey`: whose client it is, also if its class was derived from the library's."""
    modules = (base.__module__.partition(".")[0] for base in type(client).__mro__)
    return next((module for module in modules if module in ("redis", "valkey")), "redis")


def encoder_of(client: Client) -> Client:
    """What turns values into bytes and back as the client does."""
    # A Cluster's client has it itself, an asyncio standalone one only in its pool.
    owner = client if hasattr(client, "get_encoder") else client.connection_pool
    return owner.get_encoder()


def is_connection_error(error: object) -> bool:
    """Whether the library says that a node could not be reached, or did not answer in time."""
    return bool({base.__name__ for base in type(error).__mro__} & {"ConnectionError", "TimeoutError"})


def is_moved(error: object) -> bool:
    """Whether a node says that another has the slot."""
    return bool({base.__name__ for base in type(error).__mro__} & {"MovedError", "AskError"}) or str(
        error
    ).startswith(("MOVED ", "ASK "))


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether the server may have run the command although no reply came.

    False for a refused connection: then nothing was sent.
    """
    if not is_connection_error(error):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def is_refused_by_server(error: BaseException) -> bool:
    """Whether the server answered, and said no for good: the command had no effect, nor would it later.

    "Not now" is no refusal: a failover, a resharding or a long script ends, and then the command works.
    """
    names = {base.__name__ for base in type(error).__mro__}
    is_not_now = bool(names & _NOT_NOW) or str(error).partition(" ")[0] in _NOT_NOW_CODES
    return "ResponseError" in names and not is_not_now
