"""Reads from replicas of real servers: fresh enough, one's own writes seen, the rest left out."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.errors import ConfigError, UpstreamUnreachableError
from keyheat.mitigate.replica_reads import AsyncReplicaReads, ReplicaReads, ReplicaReadsSettings
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.kinds import KINDS, SHORT, Clients, done, is_async
from tests.mitigate.sentinels import SERVICE, sentinel

HOT = "item:hot"
FAST = {"poll_interval_ms": 10, "max_lag_ms": 300, "replica_timeout_ms": 200}


def follow(replica: EmbeddedServer, primary: EmbeddedServer) -> None:
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        deadline = time.monotonic() + 10
        while True:
            replication: Any = client.info("replication")
            if replication["master_link_status"] == "up":
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def pair(server_binary: str) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """A primary and its replica."""
    with EmbeddedServer(binary=server_binary) as primary, EmbeddedServer(binary=server_binary) as replica:
        follow(replica, primary)
        yield primary, replica


def reads_of(kind: str, client: Any, **settings: Any) -> Any:
    made = AsyncReplicaReads if is_async(kind) else ReplicaReads
    return made(client, ReplicaReadsSettings(**{**FAST, **settings}))


async def close(reads: Any) -> None:
    await done(reads.aclose() if isinstance(reads, AsyncReplicaReads) else reads.close())


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def gets(node: EmbeddedServer) -> int:
    with node.client() as client:
        stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_get", {}).get("calls", 0))


async def test_hot_keys_are_read_from_the_replica_and_others_from_the_primary(
    clients: Clients, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    primary, replica = pair
    client = clients.standalone(primary.address)
    reads = reads_of(clients.kind, client)
    await done(reads.write("SET", HOT, "one"))
    reads.heat(HOT)
    await until(lambda: reads.stats().usable == 1)
    await asyncio.sleep(0.05)
    before = gets(replica)
    for _ in range(20):
        assert await done(reads.read("GET", HOT)) == b"one"
    assert gets(replica) - before == 20
    before = gets(primary)
    await done(reads.read("GET", "cold"))
    reads.enabled = False
    await done(reads.read("GET", HOT))
    reads.enabled = True
    reads.cool(HOT)
    await done(reads.read("GET", HOT))
    assert gets(primary) - before == 3
    await close(reads)


async def test_ones_own_writes_are_seen_at_once(
    clients: Clients, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    client = clients.standalone(pair[0].address)
    reads = reads_of(clients.kind, client)
    reads.heat(HOT)
    await until(lambda: reads.stats().usable == 1)
    for number in range(200):
        await done(reads.write("SET", HOT, number))
        for _ in range(3):
            assert int(await done(reads.read("GET", HOT))) == number
        if number % 50 == 0:
            before = reads.stats().replica_reads
            deadline = time.monotonic() + 10
            while reads.stats().replica_reads == before:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)
                assert int(await done(reads.read("GET", HOT))) == number
    assert reads.stats().own_writes > 100
    assert reads.stats().replica_reads >= 4
    await close(reads)


async def test_a_replica_that_has_stopped_is_left_out_within_the_bound(
    clients: Clients, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    primary, replica = pair
    client = clients.standalone(primary.address)
    reads = reads_of(clients.kind, client)
    await done(reads.write("SET", HOT, "old"))
    reads.heat(HOT)
    await until(lambda: reads.stats().usable == 1)
    replica.pause()
    try:
        await done(client.set(HOT, "new"))
        began = time.monotonic()
        assert await done(reads.read("GET", HOT)) in (b"new", b"old")
        await until(lambda: reads.stats().usable == 0)
        assert await done(reads.read("GET", HOT)) == b"new"
        assert time.monotonic() - began < 3
    finally:
        replica.resume()
    await until(lambda: reads.stats().usable == 1)
    await close(reads)


async def test_a_replica_that_lost_its_primary_is_left_out(
    short_clients: Clients, own_server: EmbeddedServer, server_binary: str
) -> None:
    with EmbeddedServer(binary=server_binary) as replica:
        follow(replica, own_server)
        client = short_clients.standalone(own_server.address)
        reads = reads_of(short_clients.kind, client)
        strict = reads_of(short_clients.kind, client, policy="replica")
        for each in (reads, strict):
            each.heat(HOT)
        await until(lambda: reads.stats().usable == 1 and strict.stats().usable == 1)
        with replica.client() as direct:
            direct.execute_command("REPLICAOF", "NO", "ONE")
            direct.set(HOT, "another world")
        await until(lambda: reads.stats().usable == 0 and strict.stats().usable == 0)
        assert await done(reads.read("GET", HOT)) is None
        with pytest.raises(UpstreamUnreachableError):
            await done(strict.read("GET", HOT))
        await close(reads)
        await close(strict)


def is_primary(node: EmbeddedServer) -> bool:
    with node.client() as client:
        role: Any = client.execute_command("ROLE")
    return bool(role[0] in (b"master", "master"))


async def test_on_a_cluster_through_a_failover(own_cluster: EmbeddedCluster) -> None:
    owner = own_cluster.primaries.index(own_cluster.owner(HOT))
    replica = own_cluster.replicas[owner]
    seeds = [node for node in own_cluster.primaries if node is not own_cluster.primaries[owner]]
    all_reads = []
    for kind in KINDS:
        clients = Clients(kind)
        client = await clients.cluster(seeds[0].address)
        reads = reads_of(clients.kind, client, max_lag_ms=500)
        await done(reads.write("SET", HOT, "one"))
        reads.heat(HOT)
        await until(lambda reads=reads: reads.stats().usable == 1)
        await asyncio.sleep(0.05)
        before = gets(replica)
        for _ in range(10):
            assert await done(reads.read("GET", HOT)) == b"one"
        assert gets(replica) - before == 10
        if clients.kind not in SHORT:
            await close(reads)
            await clients.close()
            continue
        all_reads.append((clients, reads))
    with own_cluster.primaries[owner].client() as direct:
        assert direct.wait(1, 5000) == 1
    own_cluster.primaries[owner].kill()
    await until(lambda: is_primary(replica), timeout_s=20)
    own_cluster.wait_until_ok()
    for clients, reads in all_reads:
        await done(reads.write("SET", HOT, "two"))
        assert await done(reads.read("GET", HOT)) == b"two"
        await close(reads)
        await clients.close()


def test_through_sentinel(own_server: EmbeddedServer, server_binary: str, eventually: Any) -> None:
    """A master_for client is a standalone one that follows the failover; the primary names its replicas."""
    from redis.sentinel import Sentinel  # noqa: PLC0415 - only here

    with EmbeddedServer(binary=server_binary) as replica:
        follow(replica, own_server)

        class Fixed(Sentinel):
            """Knows the answer; what a sentinel process would say is not what is tested."""

            def discover_master(self, service_name: str) -> tuple[str, int]:
                assert service_name == "service"
                return "127.0.0.1", own_server.port

        sentinel: Any = Fixed([("127.0.0.1", 1)])  # type: ignore[no-untyped-call]
        with sentinel.master_for("service") as client, ReplicaReads(client, ReplicaReadsSettings()) as reads:
            client.set(HOT, "one")
            reads.heat(HOT)
            eventually(lambda: reads.stats().usable == 1)
            eventually(lambda: reads.read("GET", HOT) == b"one" and reads.stats().replica_reads > 0)


async def test_through_a_switch_of_the_primary_by_a_real_sentinel(
    short_clients: Clients, own_server: EmbeddedServer, server_binary: str, tmp_path: Path
) -> None:
    with (
        EmbeddedServer(binary=server_binary) as one,
        EmbeddedServer(binary=server_binary) as other,
    ):
        for replica in (one, other):
            follow(replica, own_server)
        with sentinel(server_binary, own_server, tmp_path) as port:
            client = short_clients.through_sentinel(port, SERVICE)
            reads = reads_of(short_clients.kind, client)
            await done(reads.write("SET", HOT, 0))
            reads.heat(HOT)
            await until(lambda: reads.stats().usable == 2)
            own_server.kill()
            await until(lambda: is_primary(one) or is_primary(other))
            number = await first_number_written(reads)
            # One's own writes are seen whoever answers; the replica that is left is found and answers.
            deadline = time.monotonic() + 10
            before = reads.stats().replica_reads
            while reads.stats().replica_reads < before + 5:
                assert time.monotonic() < deadline, reads.stats()
                number += 1
                await done(reads.write("SET", HOT, number))
                for _ in range(5):
                    assert int(await done(reads.read("GET", HOT))) == number
                    await asyncio.sleep(0.01)
            assert reads.stats().usable == 1
            await close(reads)


async def first_number_written(reads: Any) -> int:
    """Write until it works again; the library's errors meanwhile are the caller's, as without keyheat."""
    deadline = time.monotonic() + 10
    for number in itertools.count(1):
        assert time.monotonic() < deadline
        with contextlib.suppress(redis.RedisError):
            await done(reads.write("SET", HOT, number))
            return number
        await asyncio.sleep(0.05)
    raise AssertionError


def test_locks_and_writes_never_reach_a_replica(pair: tuple[EmbeddedServer, EmbeddedServer]) -> None:
    with (
        redis.Redis(port=pair[0].port) as client,
        ReplicaReads(client, is_lock=lambda key: key == b"lock") as reads,
    ):
        assert not reads.heat("lock")
        assert reads.heat("a")
        reads.read("INCR", "a")
        assert reads.stats().replica_reads == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "all"},
        {"max_lag_ms": 1},
        {"poll_interval_ms": 0},
        {"replica_timeout_ms": 0},
        {"keys_max": 0},
        {"written_keys_max": 0},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ReplicaReadsSettings(**settings)
