"""Reads of a hot key under way are shared, cached or not, and never over a write."""

import contextlib
import threading
import time
from typing import Any

import pytest

from tests.proxy.proxies import connect as raw
from tests.proxy.test_congestion import TIGHT, lines
from tests.proxy.test_replicas import connect, stat

READERS = 24


def rule(*plan: str) -> dict[str, Any]:
    levels = [{"metric": "reads", "enter_per_s": 1}]
    return {"name": "all", "match": {"any": True}, "levels": levels, "plan": list(plan), "min_hot_ms": 60_000}


def heat(proxy: Any, key: str, eventually: Any) -> None:
    """Until reads of a key are shared where they can be."""
    with connect(proxy) as client:
        eventually(lambda: client.get(key) and key in proxy.hot())


def calls(server: Any) -> int:
    """GETs that the server has executed."""
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_get", {}).get("calls", 0))


def read_at_once(proxy: Any, server: Any, key: str) -> tuple[list[bytes], int]:
    """What clients are answered who all ask while the server stands still; the GETs it got of them."""
    answers: list[bytes] = []
    clients = [connect(proxy, socket_timeout=10) for _ in range(READERS)]
    for client in clients:
        client.ping()
    before = calls(server)
    with server.client() as direct:
        direct.execute_command("CLIENT", "PAUSE", 700, "ALL")
    threads = [threading.Thread(target=lambda c=client: answers.append(c.get(key))) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return answers, calls(server) - before


def test_callers_at_a_time_share_a_read(own_server: Any, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(own_server.url, rules=[rule("coalesce")], shards=2, max_staleness_ms=5_000)
    value = b"v" * 5_000
    with own_server.client() as direct:
        direct.set("k", value)
    heat(proxy, "k", eventually)
    answers, asked = read_at_once(proxy, own_server, "k")
    assert answers == [value] * READERS
    # One for each shard, and what a shard asked before it knew that the key is hot.
    assert asked <= 4
    assert stat(proxy, "fill_joins") >= READERS - 4


def test_no_more_is_given_at_once_than_may_be_held(
    own_server: Any, proxy_factory: Any, eventually: Any
) -> None:
    settings = {"shards": 1, "max_staleness_ms": 5_000, "buffers_max_bytes": 2 << 20}
    proxy = proxy_factory(own_server.url, rules=[rule("coalesce")], **settings)
    value = b"v" * 200_000
    with own_server.client() as direct:
        direct.set("k", value)
    heat(proxy, "k", eventually)
    answers, asked = read_at_once(proxy, own_server, "k")
    assert answers == [value] * READERS
    # Ten of them are two megabytes; to the others it is passed on as it comes.
    assert READERS - 12 <= asked <= READERS - 9


@pytest.mark.parametrize(
    "settings", [{"local_cache": False}, {"max_staleness_ms": 0}, {"cache_value_max_bytes": 1_000}]
)
def test_nothing_is_shared_where_nothing_may_be_kept(
    own_server: Any, proxy_factory: Any, eventually: Any, settings: dict[str, Any]
) -> None:
    proxy = proxy_factory(own_server.url, rules=[rule("coalesce")], shards=1, **settings)
    with own_server.client() as direct:
        direct.set("k", b"v" * 5_000)
    heat(proxy, "k", eventually)
    with connect(proxy) as client:
        # Once its thread knows the plan, the first read shows how large it is.
        for _ in range(30):
            client.get("k")
            time.sleep(0.01)
    answers, asked = read_at_once(proxy, own_server, "k")
    assert (answers, asked) == ([b"v" * 5_000] * READERS, READERS)


def test_a_read_behind_a_write_is_never_shared_with_one_before_it(
    own_server: Any, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(own_server.url, rules=[rule("coalesce")], shards=1)
    wrong: list[tuple[int, bytes]] = []
    over = threading.Event()

    def read() -> None:
        with connect(proxy) as client:
            while not over.is_set():
                client.get("k")

    readers = [threading.Thread(target=read) for _ in range(4)]
    with connect(proxy) as client:
        client.set("k", 0)
        heat(proxy, "k", eventually)
        for reader in readers:
            reader.start()
        for number in range(1, 3_000):
            if number % 3:
                client.set("k", number)
            else:
                with client.pipeline(transaction=True) as pipe:
                    pipe.set("k", number).execute()
            if client.get("k") != b"%d" % number:
                wrong.append((number, client.get("k")))
        over.set()
        for reader in readers:
            reader.join()
        assert stat(proxy, "fill_joins") > 0
    assert not wrong


def test_an_error_is_everybodys(own_server: Any, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(own_server.url, rules=[rule("coalesce")], shards=1)
    with own_server.client() as direct:
        direct.set("k", "v")
        heat(proxy, "k", eventually)
        direct.delete("k")
        direct.rpush("k", "v")
    with connect(proxy) as client:
        for _ in range(3):
            with pytest.raises(Exception, match="WRONGTYPE"):
                client.get("k")


def test_different_reads_at_once_are_limited_as_its_rule_says(
    own_server: Any, proxy_factory: Any, eventually: Any
) -> None:
    limited = rule("coalesce") | {"concurrency_max": 3}
    proxy = proxy_factory(own_server.url, rules=[limited], shards=1, max_staleness_ms=5_000)
    with own_server.client() as direct:
        direct.set("hot", "v" * 10)
    heat(proxy, "hot", eventually)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(raw(proxy)) for _ in range(5)]
        for each in sockets:
            each.sendall(b"PING\r\n")
            assert each.recv(100) == b"+PONG\r\n"
        time.sleep(0.2)
        own_server.pause()
        for number, each in enumerate(sockets):
            each.sendall(b"GETRANGE hot 0 %d\r\n" % number)
            time.sleep(0.02)
        for each in sockets[3:]:
            assert b"3 reads at once (concurrency_max)" in each.recv(300)
        # One that has its part in a read under way is none more.
        sockets[4].sendall(b"GETRANGE hot 0 0\r\n")
        time.sleep(0.1)
        own_server.resume()
        assert [each.recv(100) for each in sockets[:3]] == [
            b"$%d\r\n%s\r\n" % (n, b"v" * n) for n in (1, 2, 3)
        ]
        assert sockets[4].recv(100) == b"$1\r\nv\r\n"


def test_a_pipeline_of_reads_waits_for_a_crowded_node(
    own_server: Any, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(
        own_server.url, rules=[rule("coalesce")], **TIGHT | {"local_cache": True, "max_staleness_ms": 5_000}
    )
    with own_server.client() as direct:
        direct.set("hot", "v")
    heat(proxy, "hot", eventually)
    with raw(proxy) as loads:
        time.sleep(0.2)
        own_server.pause()
        loads.sendall(b"".join(b"GETRANGE hot 0 %d\r\n" % number for number in range(500)))
        time.sleep(0.2)
        own_server.resume()
        assert lines(loads, 500).startswith(b"$1\r\nv\r\n" * 250)
