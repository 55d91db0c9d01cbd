"""Reads from replicas: which are fit, whose writes they show, and what happens when one is lost."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keyheat.server.embedded import EmbeddedServer


class Trio:
    """A primary and two replicas."""

    def __init__(self, primary: EmbeddedServer, replicas: list[EmbeddedServer]) -> None:
        self.primary = primary
        self.replicas = replicas

    def reads(self, command: str = "get") -> list[int]:
        """How often each of the three has run a command: primary first."""
        return [calls(server, command) for server in (self.primary, *self.replicas)]


def calls(server: EmbeddedServer, command: str) -> int:
    """How often a server has run a command."""
    with server.client() as client:
        stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


@pytest.fixture
def trio() -> Iterator[Trio]:
    with EmbeddedServer() as primary, EmbeddedServer() as one, EmbeddedServer() as two:
        for replica in (one, two):
            replicate(replica, primary)
        yield Trio(primary, [one, two])


def replicate(replica: EmbeddedServer, primary: EmbeddedServer) -> None:
    """Make one server the replica of another, and wait until it is."""
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        deadline = time.monotonic() + 10
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def splitting(proxy_factory: Any) -> Any:
    """Make a proxy that reads from replicas and answers nothing itself."""

    def make(upstream: str, **settings: Any) -> Any:
        return proxy_factory(upstream, **{"read_from": "prefer-replica", "local_cache": False, **settings})

    return make


def connect(proxy: Any, **options: Any) -> redis.Redis:
    host, port = proxy.listen.rsplit(":", 1)
    return redis.Redis(host, int(port), **options)


def stat(proxy: Any, name: str) -> int:
    return int(json.loads(proxy.stats())[name])


def wait_for_replicas(proxy: Any, client: redis.Redis, eventually: Any, key: str = "warm-up") -> None:
    """Until reads of a key go to replicas."""

    def goes() -> bool:
        before = stat(proxy, "replica_reads")
        client.get(key)
        return stat(proxy, "replica_reads") > before

    eventually(goes)


def test_reads_are_spread_over_replicas_and_writes_go_to_the_primary(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url)
    with connect(proxy) as client:
        client.set("k", "v")
        eventually(lambda: client.get("k") and min(trio.reads()[1:]) > 0)
        before = trio.reads()
        for _ in range(400):
            assert client.get("k") == b"v"
        after = trio.reads()
        taken = [b - a for a, b in zip(before, after, strict=True)]
        assert taken[0] == 0
        assert min(taken[1:]) > 40
        assert sum(taken) == 400


def test_a_replica_that_was_slow_for_a_moment_gets_its_share_again(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url, shards=1)
    with connect(proxy) as client:
        client.set("k", "v")
        eventually(lambda: client.get("k") and min(trio.reads()[1:]) > 0)
        trio.replicas[0].pause()
        until = time.monotonic() + 0.2
        threading.Timer(0.2, trio.replicas[0].resume).start()
        while time.monotonic() < until:
            client.get("k")

        def share() -> int:
            before = trio.reads()
            for _ in range(100):
                client.get("k")
            return trio.reads()[1] - before[1]

        assert share() < 10, "it was slow"
        # What was learnt is unlearnt with time, not with reads, of which it gets hardly any.
        time.sleep(5)
        assert share() > 15


def test_the_default_reads_from_the_primary(trio: Trio, proxy_factory: Any) -> None:
    proxy = proxy_factory(trio.primary.url)
    with connect(proxy) as client:
        client.set("k", "v")
        time.sleep(0.3)
        before = trio.reads()
        for _ in range(50):
            client.get("k")
        assert [b - a for a, b in zip(before, trio.reads(), strict=True)] == [50, 0, 0]


@pytest.mark.parametrize("level", ["connection", "proxy"])
def test_a_read_sees_the_writes_before_it_while_replicas_lag(
    trio: Trio, splitting: Any, eventually: Any, level: str
) -> None:
    proxy = splitting(trio.primary.url, read_your_writes=level, shards=2)
    with connect(proxy) as writer, connect(proxy) as reader, connect(proxy) as other:
        wait_for_replicas(proxy, writer, eventually)
        for replica in trio.replicas:  # they hear nothing for a while, and answer all the same
            replica.client().execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            readers = [writer] if level == "connection" else [writer, reader, other]
            for number in range(100):
                writer.set("k", number)
                for client in readers:
                    assert client.get("k") == b"%d" % number
            pipe = writer.pipeline(transaction=False)
            for number in range(50):
                pipe.set("k", number)
                pipe.get("k")
            assert pipe.execute()[1::2] == [b"%d" % n for n in range(50)]
            with writer.pipeline(transaction=True) as both:
                both.set("in", "t")
                both.execute()
            assert writer.get("in") == b"t"
            writer.eval("redis.call('SET', 'unnamed', ARGV[1])", 0, "s")
            assert writer.get("unnamed") == b"s"
        finally:
            for replica in trio.replicas:
                replica.client().execute_command("REPLICAOF", "127.0.0.1", trio.primary.port)


def test_a_global_read_sees_the_writes_of_everybody(trio: Trio, splitting: Any, eventually: Any) -> None:
    proxy = splitting(trio.primary.url, read_your_writes="global", local_cache=True)
    with connect(proxy) as client, trio.primary.client() as elsewhere:
        wait_for_replicas(proxy, client, eventually)
        before = trio.reads()
        for number in range(300):
            elsewhere.set("k", number)  # not through the proxy
            assert client.get("k") == b"%d" % number
        taken = [b - a for a, b in zip(before, trio.reads(), strict=True)]
        assert sum(taken[1:]) > 200
        for replica in trio.replicas:  # none of them hears anything any more
            replica.client().execute_command("REPLICAOF", "127.0.0.1", "1")
        for number in range(20):
            elsewhere.set("k", number)
            assert client.get("k") == b"%d" % number


def test_a_replica_that_falls_behind_is_left_out_and_comes_back(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url, replica_lag_max_ms=300)
    late = trio.replicas[0]
    with connect(proxy) as client, late.client() as direct:
        wait_for_replicas(proxy, client, eventually)
        direct.execute_command("REPLICAOF", "127.0.0.1", "1")  # its link is down: it still answers
        client.set("k", "new")
        time.sleep(0.6)
        before = calls(late, "get")
        for _ in range(200):
            assert client.get("k") == b"new"
        assert calls(late, "get") == before
        replicate(late, trio.primary)

        def is_back() -> bool:
            for _ in range(20):
                client.get("k")
            return calls(late, "get") > before

        eventually(is_back)


def test_a_paused_replica_costs_no_errors_and_no_long_wait(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url, replica_lag_max_ms=300)
    with connect(proxy, socket_timeout=5) as client:
        client.set("k", "v")
        wait_for_replicas(proxy, client, eventually)
        trio.replicas[0].pause()
        trio.replicas[1].kill()
        try:
            deadline = time.monotonic() + 3
            while (began := time.monotonic()) < deadline:
                assert client.get("k") == b"v"
                assert time.monotonic() - began < 2
        finally:
            trio.replicas[0].resume()


def test_reads_only_from_replicas_are_refused_where_none_is_fit(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url, read_from="replica", replica_lag_max_ms=300)
    with connect(proxy) as client:
        client.set("k", "v")

        def is_read() -> bool:
            try:
                return bool(client.get("k") == b"v")
            except redis.ResponseError:
                return False

        eventually(is_read)
        before = calls(trio.primary, "get")
        for replica in trio.replicas:
            replica.kill()

        def is_refused() -> bool:
            with pytest.raises(redis.ResponseError, match=r"no replica of 127\.0\.0\.1:\d+ is fit"):
                client.get("k")
            return True

        time.sleep(0.6)
        assert is_refused()
        assert calls(trio.primary, "get") == before


def test_replicas_that_join_and_leave_are_followed(splitting: Any, eventually: Any) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as late:
        proxy = splitting(primary.url)
        with connect(proxy) as client:
            client.set("k", "v")
            assert client.get("k") == b"v"
            replicate(late, primary)

            def is_used() -> bool:
                assert client.get("k") == b"v"
                return calls(late, "get") > 0

            eventually(is_used, timeout_s=15, every_s=0.05)
            late.kill()
            for _ in range(100):
                assert client.get("k") == b"v"


def test_only_hot_keys_are_read_from_replicas_where_it_says_so(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    rule = {
        "name": "hot",
        "match": {"prefix": "hot:"},
        "levels": [{"metric": "reads", "enter_per_s": 50}],
        "plan": [],
    }
    proxy = splitting(trio.primary.url, read_from="hot-only", rules=[rule])
    with connect(proxy) as client:
        client.set("hot:1", "v")
        client.set("cold:1", "v")

        def is_hot() -> bool:
            for _ in range(50):
                client.get("hot:1")
            return stat(proxy, "replica_reads") > 0

        eventually(is_hot)
        before = stat(proxy, "replica_reads")
        for _ in range(20):
            client.get("cold:1")
        assert stat(proxy, "replica_reads") == before


def test_a_plan_sends_reads_of_its_hot_keys_to_replicas(trio: Trio, splitting: Any, eventually: Any) -> None:
    rule = {
        "name": "hot",
        "match": {"any": True},
        "levels": [{"metric": "reads", "enter_per_s": 50}],
        "plan": ["replica_reads"],
    }
    proxy = splitting(trio.primary.url, rules=[rule], read_from="primary")
    with connect(proxy) as client:
        client.set("k", "v")

        def is_read_there() -> bool:
            for _ in range(50):
                assert client.get("k") == b"v"
            return sum(trio.reads()[1:]) > 100

        eventually(is_read_there)


def test_a_write_does_not_overtake_a_read_that_went_to_a_replica(
    trio: Trio, splitting: Any, eventually: Any
) -> None:
    proxy = splitting(trio.primary.url)
    with connect(proxy) as client:
        wait_for_replicas(proxy, client, eventually)
        client.set("k", 0)
        for number in range(1, 300):
            time.sleep(0.001)
            with client.pipeline(transaction=False) as pipe:
                pipe.get("k")
                pipe.set("k", number)
                assert pipe.execute()[0] == b"%d" % (number - 1)


def test_many_clients_see_their_own_writes(trio: Trio, splitting: Any, eventually: Any) -> None:
    proxy = splitting(trio.primary.url, shards=2)
    faults: list[str] = []

    def work(number: int) -> None:
        with connect(proxy) as client:
            for turn in range(300):
                client.set(f"k{number}", turn)
                got = client.get(f"k{number}")
                if got != b"%d" % turn:
                    faults.append(f"{number}: {got!r}, not {turn}")
                client.get(f"k{(number + 1) % 8}")

    with connect(proxy) as client:
        wait_for_replicas(proxy, client, eventually)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert stat(proxy, "replica_reads") > 0
