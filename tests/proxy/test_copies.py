"""Copies of a hot key through the proxy: spread, void after writes, hidden, and gone at the end."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from keyheat.mitigate.copies import Copies
from keyheat.server.cluster import EmbeddedCluster
from tests.proxy.test_replicas import calls, connect, stat

PREFIX = b"keyheat:copy:"
RULE = {
    "name": "items",
    "match": {"prefix": "item:"},
    "levels": [{"metric": "reads", "enter_per_s": 50}],
    "plan": ["copies"],
}
SETTINGS = {"rules": [RULE], "copies_max_staleness_ms": 300, "copies_clock_skew_ms": 30}


@pytest.fixture(scope="module")
def trio() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(primaries=3) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "trio" in request.fixturenames:
        for node in request.getfixturevalue("trio").primaries:
            if node.is_running:
                with node.client() as client:
                    client.flushall()


def own_keys(cluster: EmbeddedCluster) -> list[bytes]:
    found: list[bytes] = []
    for node in cluster.primaries:
        with node.client() as client:
            found += [key for key in client.keys("*") if key.startswith(PREFIX)]
    return found


def wait_for_copies(proxy: Any, client: redis.Redis, eventually: Any, key: str = "item:1") -> None:
    def is_read() -> bool:
        for _ in range(60):
            client.get(key)
        return stat(proxy, "copy_reads") > 20

    eventually(is_read)


def test_reads_of_a_hot_key_come_from_all_primaries(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(trio.url, **SETTINGS)
    with connect(proxy) as client:
        client.set("item:1", "a lamp")
        wait_for_copies(proxy, client, eventually)
        before = [calls(node, "get") for node in trio.primaries]
        for _ in range(600):
            assert client.get("item:1") == b"a lamp"
        taken = [calls(node, "get") - was for node, was in zip(trio.primaries, before, strict=True)]
        assert sum(taken) >= 600
        assert min(taken) > 100


def test_a_write_is_seen_by_the_next_read_whatever_way_it_took(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(trio.url, shards=2, **SETTINGS)
    with connect(proxy) as client, connect(proxy) as other:
        client.set("item:1", "0")
        client.set("item:2", "0")
        wait_for_copies(proxy, client, eventually)
        wait_for_copies(proxy, client, eventually, "item:2")

        def by_transaction(value: str) -> None:
            with client.pipeline(transaction=True) as pipe:
                pipe.set("item:1", value)
                pipe.execute()

        ways: list[Callable[[str], Any]] = [
            lambda value: client.set("item:1", value),
            by_transaction,
            lambda value: client.mset({"item:1": value, "item:2": value, "else": "x"}),
            lambda value: client.eval("redis.call('SET', KEYS[1], ARGV[1])", 1, "item:1", value),
            lambda value: client.getset("item:1", value),
        ]
        for turn in range(100):
            value = f"{turn}"
            ways[turn % len(ways)](value)
            for _ in range(3):
                assert client.get("item:1") == value.encode(), turn % len(ways)
                assert other.get("item:1") == value.encode(), turn % len(ways)
            time.sleep(0.005)
        assert stat(proxy, "copy_voidings") >= 100
        client.delete("item:1")
        assert client.get("item:1") is None
        assert other.exists("item:1") == 0


def test_a_write_whose_reply_comes_in_pieces_is_seen_by_the_next_read(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(trio.url, shards=2, **SETTINGS)
    with connect(proxy) as client, connect(proxy) as other:
        values = [b"%d" % n * 300_000 for n in range(2)]
        client.set("item:1", values[1])
        wait_for_copies(proxy, client, eventually)
        for turn in range(30):
            value = values[turn % 2]
            if turn % 4 < 2:
                assert client.getset("item:1", value) == values[1 - turn % 2]
            else:
                with client.pipeline(transaction=True) as pipe:
                    assert pipe.get("item:1").set("item:1", value).execute() == [values[1 - turn % 2], True]
            assert [each.get("item:1") == value for each in (client, other) for _ in range(3)] == [True] * 6
            time.sleep(0.02)
        assert stat(proxy, "copy_voidings") >= 30


@pytest.mark.parametrize("is_watching", [False, True])
def test_what_a_blocking_command_takes_is_gone_for_the_next_read(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any, is_watching: bool
) -> None:
    proxy = proxy_factory(trio.url, shards=2, **SETTINGS)
    key = "item:l"
    # A key on another node, so that the wait has a connection beside the watch's.
    far = next(k for k in (f"w{n}" for n in range(99)) if trio.owner(k) is not trio.owner(key))
    with connect(proxy) as client, connect(proxy) as other, client.pipeline() as waits:
        if is_watching:
            waits.watch(far)
        other.rpush(key, *range(60))

        def is_read() -> bool:
            for _ in range(60):
                other.lrange(key, 0, -1)
            return stat(proxy, "copy_reads") > 20

        eventually(is_read)
        for turn in range(30):
            taken = (waits if is_watching else client).blpop([key], 5)
            assert taken == (key.encode(), b"%d" % turn)
            for _ in range(4):
                assert other.lrange(key, 0, 0) == [b"%d" % (turn + 1)]
            time.sleep(0.01)
        assert stat(proxy, "copy_voidings") >= 30


def test_readers_never_go_back_behind_an_answered_write(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(trio.url, shards=2, **SETTINGS)
    answered = 0
    faults: list[str] = []
    stop = threading.Event()

    def read() -> None:
        with connect(proxy) as client:
            while not stop.is_set():
                least = answered
                got = int(client.get("item:1") or -1)
                if got < least:
                    faults.append(f"{got} after {least} was answered")

    with connect(proxy) as client:
        client.set("item:1", 0)
        wait_for_copies(proxy, client, eventually)
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 3
        number = 0
        while time.monotonic() < until:
            number += 1
            client.set("item:1", number)
            answered = number
            time.sleep(0.15)
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert stat(proxy, "copy_reads") > 100
    assert stat(proxy, "copy_voidings") >= number - 1


def test_copies_are_hidden(trio: EmbeddedCluster, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(trio.url, **SETTINGS)
    with connect(proxy) as client:
        names = {f"item:{n}".encode() for n in range(20)}
        for name in names:
            client.set(name, "v")
        wait_for_copies(proxy, client, eventually)
        assert own_keys(trio)
        for _ in range(20):
            assert set(client.keys("*")) == names
            assert set(client.scan_iter(count=5)) == names
            assert client.randomkey() in names
            assert client.dbsize() == len(names)


def test_a_dead_copy_costs_no_errors(proxy_factory: Any, eventually: Any) -> None:
    with EmbeddedCluster(primaries=3, config={"cluster-require-full-coverage": "no"}) as trio:
        proxy = proxy_factory(trio.url, **SETTINGS)
        owner = trio.owner("item:1")
        with connect(proxy, socket_timeout=5) as client:
            client.set("item:1", 0)
            wait_for_copies(proxy, client, eventually)
            next(node for node in trio.primaries if node is not owner).kill()
            until = time.monotonic() + 2
            number = 0
            while time.monotonic() < until:
                number += 1
                client.set("item:1", number)
                for _ in range(20):
                    assert client.get("item:1") == b"%d" % number


def test_copies_go_when_the_key_cools_and_when_the_proxy_ends(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    rule = {**RULE, "min_hot_ms": 0, "cooling_ms": 0}
    proxy = proxy_factory(trio.url, **{**SETTINGS, "rules": [rule]})
    with connect(proxy) as client:
        client.set("item:1", "v")
        wait_for_copies(proxy, client, eventually)
        eventually(lambda: not [key for key in own_keys(trio) if b":c:" in key], timeout_s=15)
        wait_for_copies(proxy, client, eventually)
        eventually(lambda: [key for key in own_keys(trio) if b":c:" in key])
    proxy.stop()
    assert not [key for key in own_keys(trio) if b":c:" in key]


def test_two_proxies_share_copies(trio: EmbeddedCluster, proxy_factory: Any, eventually: Any) -> None:
    one, two = proxy_factory(trio.url, **SETTINGS), proxy_factory(trio.url, **SETTINGS)
    with connect(one) as client, connect(two) as other:
        client.set("item:1", "v")
        wait_for_copies(one, client, eventually)
        wait_for_copies(two, other, eventually)
        assert len([key for key in own_keys(trio) if b":o:" in key]) == 1
        for number in range(50):
            client.set("item:1", number)
            assert other.get("item:1") == b"%d" % number
            other.set("item:1", -number)
            assert client.get("item:1") == b"%d" % -number


def test_the_names_are_those_of_the_python_copies(
    trio: EmbeddedCluster, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(trio.url, **SETTINGS)
    with connect(proxy) as client:
        client.set("item:1", "v")
        wait_for_copies(proxy, client, eventually)
    copies = Copies(redis.RedisCluster.from_url(trio.url.split(",")[0]))
    core = copies._core
    expected = {core.copy_name(b"item:1", place) for place in core.places(b"item:1")}
    expected |= {core._beside(b"item:1", kind) for kind in (b"o", b"r")}
    assert expected <= set(own_keys(trio))
    assert json.loads(proxy.hot())["keys"][0]["plan"] == ["copies"]
