"""One algorithm, two ways to wait: steps that yield commands, driven by sync or by asyncio.

A remedy's algorithm is a generator. It yields what it wants done (a `Command`, a `Batch`, a
`Pause`), is sent the outcome, and has the exception thrown into it where there was one. The two
functions here are all that knows how a client is called; so no algorithm exists twice.

redis-py and valkey-py share no class, so their errors are told apart by the names of their bases.
"""

import asyncio
import contextlib
import inspect
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")

# redis-py's and valkey-py's clients share no class, sync and asyncio ones neither.
Client: TypeAlias = Any
Reply: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Command:
    """One command; the outcome is its reply.

    Attributes:
        args: The command line.
        options: What the client is to be told besides (`NEVER_DECODE`, `target_nodes`).
        client: The client to ask, if not the remedy's own.
    """

    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    client: Any = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Several commands in one pipeline, not a transaction; the outcome is a list of replies and errors."""

    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Invoke:
    """Call something of the client's that may have to be awaited; the outcome is what it returns."""

    function: Callable[[], Any]


_LOOK_EVERY_S: Final = 0.5
_looked_at_s: "weakref.WeakKeyDictionary[Any, float]" = weakref.WeakKeyDictionary()

Step: TypeAlias = Command | Batch | Pause | Invoke
Steps: TypeAlias = Generator[Step, Any, T]


def drive(steps: Steps[T], client: Client) -> T:
    """Run the steps on a blocking client.

    Returns:
        What the steps return; what they raise passes through.
    """
    try:
        step = next(steps)
        while True:
            try:
                outcome = _do(step, client)
            except BaseException as error:  # noqa: BLE001 - the steps decide what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result


async def adrive(steps: Steps[T], client: Client) -> T:
    """Run the steps on an asyncio client; otherwise as `drive`."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = await _ado(step, client)
            except BaseException as error:  # noqa: BLE001 - the steps decide what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result


def _do(step: Step, client: Client) -> Reply:
    if isinstance(step, Pause):
        return time.sleep(step.seconds)
    if isinstance(step, Invoke):
        return step.function()
    if isinstance(step, Command):
        return (step.client or client).execute_command(*step.args, **step.options)
    replies: list[Any] = []
    try:
        with _pipeline(client) as pipe:
            _fill(pipe, step)
            replies = pipe.execute(raise_on_error=False)
    except Exception as error:
        replies = [error]
        raise
    finally:
        if _has_to_look(client, replies):
            with contextlib.suppress(Exception):
                client.nodes_manager.initialize()
    return replies


async def _ado(step: Step, client: Client) -> Reply:
    if isinstance(step, Pause):
        return await asyncio.sleep(step.seconds)
    if isinstance(step, Invoke):
        return await step.function()
    if isinstance(step, Command):
        return await (step.client or client).execute_command(*step.args, **step.options)
    replies: list[Any] = []
    try:
        async with _pipeline(client) as pipe:  # entering empties a Cluster's pipeline: fill it after that
            _fill(pipe, step)
            replies = await pipe.execute(raise_on_error=False)
    except Exception as error:
        replies = [error]
        raise
    finally:
        if _has_to_look(client, replies):
            with contextlib.suppress(Exception):
                await client.nodes_manager.initialize()
    return replies


def _has_to_look(client: Client, replies: list[Any]) -> bool:
    """Whether a Cluster's client should learn its topology anew.

    Its single commands do that when a node is gone; its pipelines, asked not to raise, keep sending
    to a dead node for good.
    """
    if not is_cluster(client) or not any(is_connection_error(reply) for reply in replies):
        return False
    now = time.monotonic()
    if now - _looked_at_s.get(client, float("-inf")) < _LOOK_EVERY_S:
        return False
    _looked_at_s[client] = now
    return True


def _pipeline(client: Client) -> Reply:
    # A Cluster's pipeline is never a transaction unless asked, and old ones refuse the argument.
    return client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)


def _fill(pipe: Client, batch: Batch) -> None:
    for command in batch.commands:
        pipe.execute_command(*command.args, **command.options)


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
    """Whether the server answered, and said no: the command had no effect."""
    return any(base.__name__ == "ResponseError" for base in type(error).__mro__)
