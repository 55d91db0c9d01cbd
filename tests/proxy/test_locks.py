"""Keys that are locks are left alone by every remedy of the proxy."""

import json
import threading
from typing import Any

import redis

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.test_replicas import connect, replicate, stat, wait_for_replicas

RULE = {
    "name": "all",
    "match": {"any": True},
    "levels": [{"metric": "reads", "enter_per_s": 50}],
    "plan": ["local_cache"],
}


def plans(proxy: Any) -> dict[str, list[str]]:
    return {key["key"]: key["plan"] for key in json.loads(proxy.hot())["keys"]}


def test_a_lock_is_never_answered_from_memory(server: Any, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(server.url, rules=[RULE], shards=2)
    with connect(proxy) as client, connect(proxy) as other:
        client.set("cache:1", "v")
        assert client.set("lock:1", "token", nx=True, px=60_000)

        def both_are_hot() -> bool:
            for _ in range(50):
                other.get("lock:1")
                other.get("cache:1")
            return set(plans(proxy)) >= {"lock:1", "cache:1"}

        eventually(both_are_hot)
        eventually(lambda: plans(proxy)["cache:1"] == ["local_cache"])
        assert plans(proxy)["lock:1"] == []


def test_a_cached_key_that_becomes_a_lock_is_let_go(server: Any, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(server.url, rules=[RULE])
    with connect(proxy) as client:
        client.set("k", "v")

        def is_local() -> bool:
            for _ in range(50):
                client.get("k")
            return stat(proxy, "local_hits") > 0

        eventually(is_local)
        client.delete("k")
        assert client.set("k", "token", nx=True, ex=60)
        hits = stat(proxy, "local_hits")
        for _ in range(300):
            assert client.get("k") == b"token"
        assert stat(proxy, "local_hits") == hits


def test_a_lock_is_not_read_from_replicas(proxy_factory: Any, eventually: Any) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as replica:
        replicate(replica, primary)
        proxy = proxy_factory(
            primary.url, read_from="prefer-replica", read_your_writes="none", local_cache=False
        )
        with connect(proxy) as client:
            wait_for_replicas(proxy, client, eventually)
            client.set("lock:1", "token", nx=True, ex=60)
            before = stat(proxy, "replica_reads")
            for _ in range(50):
                assert client.get("lock:1") == b"token"
            assert stat(proxy, "replica_reads") == before


def test_one_holder_at_a_time_through_the_proxy(server: Any, proxy_factory: Any) -> None:
    proxy = proxy_factory(server.url, rules=[RULE], shards=2)
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        with connect(proxy) as client:
            for _ in range(15):
                with client.lock("the-lock", timeout=5, sleep=0.001):
                    inside.append(number)
                    most = max(most, len(inside))
                    client.get("the-lock")
                    inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with redis.Redis("127.0.0.1", server.port) as direct:
        assert not direct.exists("the-lock")
