"""Opening tracking connections the way the application's own client would.

Only the client knows how: which address Sentinel names today, which user, what its credential provider
hands out, which socket options. So its own connection class connects and authenticates; then the bare
socket is handed to the engine's thread, which from there on needs nothing of Python. Over TLS it only
connects (see `tls`).
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, Final

from keyheat.client import tls
from keyheat.client.family import Family

Answer = tuple[str, int, str | tls.Handover]
Dial = Callable[[str, int, float], Answer]

# Not for a connection of our own: what belongs to the pool, to maintenance, to one node's state.
_NOT_OURS: Final = frozenset(
    {
        "cache",
        "cache_config",
        "client_name",
        "connection_pool",
        "event_dispatcher",
        "health_check_interval",
        "himport_registry",
        "maint_notifications_config",
        "maint_notifications_pool_handler",
        "maintenance_notification_hash",
        "maintenance_state",
        "oss_cluster_maint_notifications_handler",
        "orig_host_address",
        "orig_socket_connect_timeout",
        "orig_socket_timeout",
        "parser_class",
        "retry_on_error",
        "retry_on_timeout",
    }
)


def dialer(family: Family, pool: Any, *, is_cluster: bool) -> Dial:
    """A function that opens one more connection like those of `pool`.

    Args:
        family: The client library.
        pool: A connection pool, sync or asyncio; for a Cluster one of any node.
        is_cluster: Whether host and port come from the caller instead of from the pool.
    """

    def dial(host: str, port: int, timeout_s: float) -> Answer:
        try:
            is_tls = tls.is_tls(pool)
            connection = _connection(family, pool, timeout_s, is_cluster=is_cluster)
            if is_cluster:
                connection.host, connection.port = host, port
            if is_tls:
                return tls.hand_over(family.name, pool, connection, is_cluster=is_cluster)
            connection.connect()
        except tls.TlsRefusedError as error:
            return "refused", -1, str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, nothing is cached and no command fails
            kind = "refused" if isinstance(error, family.refusals) else "unreachable"
            # A server that does not know a command repeats what it was sent, a password too.
            why = str(error).split(", with args beginning with")[0]
            return kind, -1, f"{type(error).__name__}: {why}"
        return _hand_over(connection)

    return dial


def _connection(family: Family, pool: Any, timeout_s: float, *, is_cluster: bool) -> Any:
    kwargs = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_OURS}
    kwargs |= {"protocol": 3, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    kwargs["retry"] = family.retry(family.no_backoff(), 0)
    kwargs["decode_responses"] = False
    if is_cluster:
        # It sends READONLY where the client reads from replicas.
        kwargs.pop("redis_connect_func", None)
        kwargs.pop("server_type", None)
        kwargs |= {"host": "", "port": 0}
    connection_class = family.sync_connection_class(pool.connection_class)
    accepted = _accepted(connection_class)
    kwargs = {name: value for name, value in kwargs.items() if name in accepted}
    sentinel = getattr(pool, "sentinel_manager", None)
    if sentinel is not None:
        host, port = _primary_of(family, sentinel, pool.service_name, timeout_s)
        kwargs |= {"host": host, "port": port}
    return connection_class(**kwargs)


def _accepted(connection_class: type[Any]) -> frozenset[str]:
    """The names of everything a connection class takes: a Cluster's settings hold more than that."""
    names: set[str] = set()
    for parent in connection_class.__mro__:
        if "__init__" in vars(parent) and parent is not object:
            names.update(inspect.signature(vars(parent)["__init__"]).parameters)
    return frozenset(names - {"self", "args", "kwargs"})


def _primary_of(family: Family, sentinel: Any, service_name: str, timeout_s: float) -> tuple[str, int]:
    """Ask the Sentinels, on connections of our own: an asyncio client's belong to its event loop."""
    last_error: Exception | None = None
    for node in list(sentinel.sentinels):
        kwargs = {
            name: value
            for name, value in node.connection_pool.connection_kwargs.items()
            if name not in _NOT_OURS
        }
        kwargs |= {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "decode_responses": True}
        kwargs["retry"] = family.retry(family.no_backoff(), 0)
        kwargs["protocol"] = 2
        connection = family.sync_connection_class(node.connection_pool.connection_class)(**kwargs)
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service_name)
            answer = connection.read_response()
        except Exception as error:  # noqa: BLE001  the next one may know
            last_error = error
            continue
        finally:
            with contextlib.suppress(Exception):
                connection.disconnect()
        if answer:
            return str(answer[0]), int(answer[1])
    raise last_error or ConnectionError(f"no Sentinel knows a primary called {service_name!r}")


def _hand_over(connection: Any) -> Answer:
    """Take the socket out of a connected connection."""
    sock = connection._sock
    if hasattr(sock, "pending"):  # an ssl.SSLSocket of a class of somebody's own
        connection.disconnect()
        return "refused", -1, f"TLS: a {type(connection).__name__} cannot be tracked"
    fd = sock.detach()
    connection._sock = None
    with contextlib.suppress(Exception):
        connection.disconnect()
    return "fd", fd, ""
