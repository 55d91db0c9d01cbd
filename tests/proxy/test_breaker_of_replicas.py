"""A replica that fails is left alone as well, and its reads go elsewhere without an error."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, connect, is_up, stats
from tests.proxy.test_breaker import busy_script
from tests.proxy.test_metrics import series
from tests.proxy.test_replicas import replicate

Eventually = Callable[..., Any]
# However far behind a replica may be: only its breaker keeps reads from it.
SETTINGS = {
    "shards": 1,
    "local_cache": False,
    "read_from": "prefer-replica",
    "replica_lag_max_ms": 0,
    "breaker_recovery_ms": 100,
}


@pytest.fixture
def replica(own_server: EmbeddedServer, server_binary: str) -> Iterator[EmbeddedServer]:
    """A replica of `own_server`."""
    with EmbeddedServer(binary=server_binary) as made:
        replicate(made, own_server)
        yield made


def state(proxy: Any, node: EmbeddedServer) -> str | None:
    """That of the node's breaker; None until it was told."""
    name = "keyheat_node_breaker_shards"
    counts = ((dict(labels), n) for (found, labels), n in series(proxy).items() if found == name)
    return next((labels["state"] for labels, n in counts if n and labels["node"] == node.address), None)


def reads_there(proxy: Any, s: Any) -> bool:
    """Whether a read goes to a replica, and is answered there."""
    before = stats(proxy)
    assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n"
    after = stats(proxy)
    return (
        after["replica_reads"] > before["replica_reads"]
        and after["replica_reads_again"] == before["replica_reads_again"]
    )


def test_a_replica_that_is_gone_is_left_alone_and_read_from_when_it_is_back(
    own_server: EmbeddedServer, replica: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **SETTINGS, breaker_open_ms=300)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        ask(s, b"SET k v\r\n")
        eventually(lambda: reads_there(proxy, s))
        eventually(lambda: state(proxy, replica) == "closed")
        before = stats(proxy)["upstream_errors"]
        replica.kill()
        for _ in range(50):
            assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n", "the primary answers in its place"
        # Or its primary is first to say that it has none any more.
        eventually(lambda: ask(s, b"GET k\r\n") and state(proxy, replica) in {"open", None})
        for _ in range(50):
            assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n"
        assert stats(proxy)["upstream_errors"] == before
        assert stats(proxy)["turned_back"] == 0
        assert state(proxy, own_server) == "closed"
        replica.restart()
        replicate(replica, own_server)
        eventually(lambda: reads_there(proxy, s))
        eventually(lambda: state(proxy, replica) == "closed")


def test_a_replica_that_refuses_everything_is_left_alone_and_read_from_again(
    own_server: EmbeddedServer, replica: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **SETTINGS, breaker_calls_min=5)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        ask(s, b"SET k v\r\n")
        eventually(lambda: reads_there(proxy, s))
        with busy_script(replica):

            def is_open() -> bool:
                assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n"
                return state(proxy, replica) == "open"

            eventually(is_open)
            assert state(proxy, own_server) == "closed"
            assert stats(proxy)["turned_back"] == 0
        eventually(lambda: reads_there(proxy, s))
        eventually(lambda: state(proxy, replica) == "closed")
