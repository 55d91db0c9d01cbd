"""The first look at a server: is it there, may we in, is it a Cluster."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyheat.errors import UpstreamError, UpstreamRefusedError, UpstreamUnreachableError
from keyheat.proxy.url import UpstreamUrl

_TIMEOUT_S = 5.0


def first_connection(url: UpstreamUrl, *, timeout_s: float = _TIMEOUT_S, **options: Any) -> "redis.Redis":  # noqa: ANN401 - redis-py's own options
    """A client on one connection to the first address that answers.

    Raises:
        UpstreamUnreachableError: None answers.
        UpstreamRefusedError: It answers, and says no.
    """
    last: UpstreamError | None = None
    for address in url.addresses:
        host, _, port = address.rpartition(":")
        try:
            client = redis.Redis(
                host.strip("[]"),
                int(port),
                url.db,
                username=url.username,
                password=url.password,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                single_connection_client=True,
                retry=Retry(NoBackoff(), 0),
                **options,
            )
            client.ping()
        except redis.RedisError as error:
            last = mapped(error, address)
            if isinstance(last, UpstreamRefusedError):
                break
        else:
            return client
    assert last is not None
    raise last


def mapped(error: redis.RedisError, address: str) -> UpstreamError:
    """keyheat's word for what redis-py met; never a password, and a server's text only as its code."""
    text = str(error)
    code = text.split(" ", 1)[0]
    if code == "NOAUTH" or "HELLO must be called" in text:
        return UpstreamRefusedError(f"{address} asks for a password: redis://user:password@{address}")
    if isinstance(error, redis.AuthenticationError) or code in ("WRONGPASS", "NOPERM"):
        return UpstreamRefusedError(f"{address} refuses this user: {text}")
    if isinstance(error, redis.TimeoutError):
        return UpstreamUnreachableError(f"{address} does not answer in time: is it a Redis or Valkey server?")
    if isinstance(error, redis.ConnectionError):
        reason = "connection refused" if "refused" in text else text.rstrip(".")
        return UpstreamUnreachableError(f"no server at {address}: {reason}")
    if isinstance(error, redis.InvalidResponse):
        return UpstreamRefusedError(f"{address} does not speak the Redis protocol")
    return UpstreamError(f"{address} answers {text}")


def widest_connection(url: UpstreamUrl) -> "redis.Redis":
    """A client in RESP3, or in RESP2 where the server does not know HELLO (before Redis 6).

    Raises:
        UpstreamError: As `first_connection`.
    """
    try:
        return first_connection(url, protocol=3)
    except (UpstreamUnreachableError, UpstreamRefusedError):
        raise
    except UpstreamError:
        return first_connection(url, protocol=2)


def hello_fields(client: "redis.Redis") -> dict[str, str]:
    """What the server said of itself in answer to HELLO; nothing if it does not know it."""
    fields = getattr(client.connection, "handshake_metadata", None) or {}
    return {_text(name): _text(value) for name, value in dict(fields).items()}


def is_cluster(url: UpstreamUrl) -> bool:
    """Whether a client should speak to the server as a Cluster.

    Asked of HELLO and not of INFO: a proxy before a Cluster presents itself as one server there.
    """
    with widest_connection(url) as client:
        if mode := hello_fields(client).get("mode"):
            return mode == "cluster"
        info: Any = client.info("cluster")
        return bool(info.get("cluster_enabled"))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
