"""Clients of single nodes, made like the application's own client: what a remedy asks a node by itself.

They have a short timeout and never retry, so a node that hangs costs a caller little; after a failure
the node is left alone for a while, twice as long after the next. Replies are decoded as the
application's client decodes them.
"""

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyheat.mitigate._commands import Client, is_asyncio, is_cluster, library_of
from keyheat.mitigate.steps import Call, Steps

_BACKOFF_MAX_S: Final = 10.0
_NEVER: Final = float("-inf")
# Of a client's connection settings, those another client of it takes too.
_KEPT: Final = (
    *("db", "username", "password", "credential_provider", "client_name", "protocol", "legacy_responses"),
    *("encoding", "encoding_errors", "decode_responses", "socket_connect_timeout", "socket_keepalive"),
)
# What only its connections take.
_OF_CONNECTIONS: Final = ("parser_class", "encoder_class")


@dataclass(slots=True)
class NodeClient:
    """One node.

    Attributes:
        name: `host:port`.
        client: Its client.
        skip_until_s: Until when it is left alone.
    """

    name: str
    client: Client
    skip_until_s: float = _NEVER
    backoff_s: float = 0.0

    def failed(self, now_s: float, first_s: float) -> None:
        """It did not answer.

        Args:
            now_s: The time.
            first_s: How long it is left alone after the first failure in a row.
        """
        self.backoff_s = min(_BACKOFF_MAX_S, max(first_s, 2 * self.backoff_s))
        self.skip_until_s = now_s + self.backoff_s

    def answered(self) -> None:
        """It answered."""
        self.backoff_s = 0.0
        self.skip_until_s = _NEVER


class NodeClients:
    """The nodes of a Cluster, each with a client made when it is first asked for.

    Args:
        client: The Cluster's client.
        timeout_s: How long a node may take to answer.
    """

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self.forget()

    def forget(self) -> None:
        """Know none: a forked child, which connects anew."""
        self._guard = threading.Lock()
        self._nodes: dict[str, NodeClient] = {}

    def of_slot(self, slot: int) -> NodeClient | None:
        """The primary that owns a slot, by the client's own view; `None` if it knows none."""
        owners = self._client.nodes_manager.slots_cache.get(slot)
        if not owners:
            return None
        name = str(owners[0].name)
        node = self._nodes.get(name)
        if node is None:
            with self._guard:
                node = self._nodes.get(name)
                if node is None:
                    made = connect(self._client, str(owners[0].host), int(owners[0].port), self._timeout_s)
                    node = self._nodes[name] = NodeClient(name, made)
        return node

    def close_steps(self) -> Steps[None]:
        """Close all connections."""
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            yield close_of(node.client)


def connect(client: Client, host: str, port: int, timeout_s: float, *, is_read_only: bool = False) -> Client:
    """A client of one node.

    Args:
        client: Whose settings it has.
        host: The node's.
        port: The node's.
        timeout_s: How long the node may take to connect or to answer.
        is_read_only: Whether the node is a replica of a Cluster, which has to be told.
    """
    is_of_cluster = is_cluster(client)
    if is_of_cluster:
        node = client.get_default_node()
        if is_asyncio(client):
            kwargs = node.connection_kwargs
        else:
            of_node = getattr(node, f"{library_of(client)}_connection")
            kwargs = of_node.connection_pool.connection_kwargs
        is_tls = "SSL" in getattr(getattr(node, "connection_class", None), "__name__", "") or any(
            name.startswith("ssl_") for name in kwargs
        )
    else:
        kwargs = client.connection_pool.connection_kwargs
        is_tls = "SSL" in client.connection_pool.connection_class.__name__
    options = {name: kwargs[name] for name in _KEPT if kwargs.get(name) is not None}
    if is_tls:
        options |= {name: value for name, value in kwargs.items() if name.startswith("ssl_")}
        options["ssl"] = True
    options |= {"socket_timeout": timeout_s, "retry": _no_retry(client)}
    options["socket_connect_timeout"] = min(timeout_s, options.get("socket_connect_timeout", timeout_s))
    if is_of_cluster:
        options.pop("db", None)
    if is_read_only:
        options["redis_connect_func" if library_of(client) == "redis" else "valkey_connect_func"] = (
            _read_only_async if is_asyncio(client) else _read_only
        )
    made = _client_class(client)(host=host, port=port, **options)
    made.connection_pool.connection_kwargs |= {
        name: kwargs[name] for name in _OF_CONNECTIONS if kwargs.get(name) is not None
    }
    own_callbacks = getattr(client, "response_callbacks", None)
    if own_callbacks is not None:
        made.response_callbacks = own_callbacks  # the same table: what is changed in it later holds too
    return made


def decoded(client: Client, args: tuple[Any, ...], options: Mapping[str, Any], reply: Any) -> Any:
    """A node's reply as the application's client gives it: Cluster clients have callbacks of their own."""
    callbacks = getattr(client, "cluster_response_callbacks", None)
    return callbacks[args[0]](reply, **options) if callbacks and args[0] in callbacks else reply


def has_own_decoding(client: Client, args: tuple[Any, ...]) -> bool:
    """Whether the application has a callback of its own for a command: its replies cannot be judged."""
    tables = (
        getattr(client, "cluster_response_callbacks", None),
        getattr(client, "response_callbacks", None),
    )
    for table in tables:
        callback = table.get(args[0]) if table else None
        if callback is not None:
            module = getattr(callback, "__module__", None) or ""
            if module.partition(".")[0] not in ("redis", "valkey", "builtins"):
                return True
    return False


def close_of(client: Client) -> Call:
    """The step that closes a client."""
    return Call(client.aclose if is_asyncio(client) else client.close)


def _read_only(connection: Any) -> None:
    connection.on_connect()
    connection.send_command("READONLY")
    connection.read_response()


async def _read_only_async(connection: Any) -> None:
    await connection.on_connect()
    await connection.send_command("READONLY")
    await connection.read_response()


def _client_class(client: Client) -> Any:
    library = library_of(client)
    module = importlib.import_module(f"{library}.asyncio" if is_asyncio(client) else library)
    return getattr(module, library.capitalize())


def _no_retry(client: Client) -> Any:
    library = library_of(client)
    asynchronous = ".asyncio" if is_asyncio(client) else ""
    retry: Any = importlib.import_module(f"{library}{asynchronous}.retry")
    backoff: Any = importlib.import_module(f"{library}.backoff")
    return retry.Retry(backoff.NoBackoff(), 0)
