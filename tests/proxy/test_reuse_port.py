"""Several proxies at one address."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.conftest import ProxyFactory


def clients_of(proxy: Any) -> int:
    count: int = json.loads(proxy.stats())["clients"]
    return count


def test_two_share_an_address_and_one_goes_on_alone(
    proxy_factory: ProxyFactory, valkey: str, eventually: Callable[..., Any]
) -> None:
    first = proxy_factory(valkey, reuse_port=True, shards=1)
    second = proxy_factory(valkey, reuse_port=True, shards=1, listen=first.listen)
    assert second.listen == first.listen
    port = int(first.listen.rsplit(":", 1)[1])

    def connected() -> "redis.Redis":
        client = redis.Redis(port=port, single_connection_client=True)
        assert client.ping()
        return client

    clients = [connected() for _ in range(40)]
    counts = [clients_of(proxy) for proxy in (first, second)]
    assert sum(counts) == 40
    assert min(counts) > 0
    assert first.drain(10)
    eventually(lambda: clients_of(first) == 0)
    # Those of the first come back by themselves, to the second; nobody else has noticed.
    assert all(client.set("k", "v") for client in clients)
    assert clients_of(second) == 40
    late = [connected() for _ in range(10)]
    assert clients_of(second) == 50
    for client in (*clients, *late):
        client.close()


def test_an_address_is_shared_only_if_both_say_so(proxy_factory: ProxyFactory, valkey: str) -> None:
    first = proxy_factory(valkey)
    with pytest.raises(OSError, match="in use"):
        proxy_factory(valkey, reuse_port=True, listen=first.listen)
