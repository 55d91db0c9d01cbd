"""Last-value writes against real servers: the last one arrives, the ones before are left out."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from keyheat.errors import ConfigError
from keyheat.mitigate.last_write import AsyncLastWrite, LastWrite, LastWriteSettings
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.kinds import Clients, done, is_async, no_retry

NEVER_MS = 3_600_000.0


def last(clients: Clients, client: Any, **settings: Any) -> Any:
    kind = AsyncLastWrite if is_async(clients.kind) else LastWrite
    return kind(client, LastWriteSettings(**{"interval_ms": NEVER_MS, **settings}))


async def close(writes: Any) -> None:
    await done(writes.aclose() if isinstance(writes, AsyncLastWrite) else writes.close())


async def test_only_the_last_value_of_an_interval_is_sent_and_reads_see_it_before(
    clients: Clients, valkey: str
) -> None:
    client = clients.standalone(valkey)
    writes = last(clients, client)
    for number in range(100):
        assert await done(writes.set("price", number, ex=100)) is True
    assert await done(client.get("price")) is None
    assert await done(writes.get("price")) == b"99"
    await done(writes.flush())
    assert await done(client.get("price")) == b"99"
    assert 90 < await done(client.ttl("price")) <= 100
    assert await done(writes.get("price")) == b"99"
    assert (writes.stats().sent, writes.stats().left_out) == (1, 99)
    await close(writes)


async def test_writes_go_out_by_themselves_on_a_cluster_too(
    clients: Clients, cluster: EmbeddedCluster
) -> None:
    client = await clients.cluster(cluster.addresses[0])
    writes = last(clients, client, interval_ms=5)
    for number in range(20):
        await done(writes.set(f"price:{number}", number))
    for _ in range(1000):
        if writes.stats().sent == 20:
            break
        await asyncio.sleep(0.005)
    assert [int(await done(client.get(f"price:{number}"))) for number in range(20)] == list(range(20))
    await close(writes)


async def test_a_delete_replaces_what_is_held(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    await done(client.set("price", 1))
    writes = last(clients, client)
    await done(writes.set("price", 2))
    assert await done(writes.delete("price")) == 1
    await done(writes.flush())
    assert await done(client.get("price")) is None
    await close(writes)


async def test_switched_off_or_too_large_a_write_is_sent_at_once(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    writes = last(clients, client, max_bytes=100, max_keys=2)
    await done(writes.set("price", 1))
    await done(writes.set("price", b"x" * 200))
    assert await done(client.strlen("price")) == 200
    writes.enabled = False
    await done(writes.set("price", 3))
    assert await done(client.get("price")) == b"3"
    writes.enabled = True
    for number in range(5):
        await done(writes.set(f"price:{number}", number))
        assert writes.stats().held <= 2
    await close(writes)
    assert await done(client.get("price:4")) == b"4"


async def test_writes_outlive_a_server_that_is_down_up_to_the_bound(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    client = clients.standalone(own_server.address, retry=no_retry(clients.kind))
    writes = last(clients, client, max_keys=3)
    own_server.kill()
    for number in range(3):
        await done(writes.set(f"price:{number}", number))
    with pytest.raises(Exception, match="onnect"):
        await done(writes.set("price:3", 3))
    await done(writes.set("price:0", "newer"))
    own_server.restart()
    await close(writes)
    assert await done(client.get("price:0")) == b"newer"
    assert await done(client.exists("price:1", "price:2", "price:3")) == 2


async def test_a_write_the_server_refuses_is_dropped_and_said(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "resetkeys", "~price*")
    client = clients.standalone(own_server.address)
    writes = last(clients, client)
    await done(writes.set("price", 1))
    await done(writes.set("other", 1))
    with pytest.raises(Exception, match="permission"):
        await done(writes.flush())
    assert await done(client.get("price")) == b"1"
    assert writes.stats().refused == 1
    await close(writes)


async def test_a_server_that_is_a_replica_for_a_while_costs_no_write(
    clients: Clients, own_server: EmbeddedServer, valkey: str
) -> None:
    client = clients.standalone(own_server.address)
    writes = last(clients, client)
    with own_server.client() as admin:
        admin.execute_command("REPLICAOF", *valkey.split(":"))
        await done(writes.set("price", 1))
        with pytest.raises(Exception, match="replica"):
            await done(writes.flush())
        assert writes.stats().held == 1
        assert writes.stats().refused == 0
        admin.execute_command("REPLICAOF", "NO", "ONE")
    await close(writes)
    assert await done(client.get("price")) == b"1"


@pytest.mark.parametrize("is_planned", [True, False])
async def test_a_failover_while_writes_are_collected_loses_none_of_the_last(
    short_clients: Clients, own_cluster: EmbeddedCluster, is_planned: bool
) -> None:
    leaving, coming = own_cluster.primaries[0], own_cluster.replicas[0]
    client = await short_clients.cluster(own_cluster.primaries[1].address)
    writes = last(short_clients, client, interval_ms=5)
    keys = [f"price:{number}" for number in range(30)]
    assert any(own_cluster.owner(key) is leaving for key in keys)
    number = 0

    async def write_until(is_enough: Callable[[], bool]) -> None:
        nonlocal number
        deadline = time.monotonic() + 20
        while not is_enough():
            assert time.monotonic() < deadline
            for key in keys:
                number += 1
                await done(writes.set(key, number))
            await asyncio.sleep(0.005)

    await write_until(lambda: number > 1000)
    if is_planned:
        with coming.client() as direct:
            direct.execute_command("CLUSTER", "FAILOVER")
    else:
        leaving.kill()
    await write_until(lambda: is_primary(coming))
    enough = number + 1000
    await write_until(lambda: number > enough)
    deadline = time.monotonic() + 10
    while writes.stats().held:
        assert time.monotonic() < deadline
        with contextlib.suppress(redis.RedisError):
            await done(writes.flush())
        await asyncio.sleep(0.05)
    own_cluster.wait_until_ok()
    assert writes.stats().refused == 0
    await close(writes)
    with redis.RedisCluster("127.0.0.1", own_cluster.primaries[1].port) as fresh:
        found: list[Any] = [fresh.get(key) for key in keys]
    assert [int(each) for each in found] == list(range(number - len(keys) + 1, number + 1))


def is_primary(node: EmbeddedServer) -> bool:
    with node.client() as client:
        role: Any = client.execute_command("ROLE")
    return bool(role[0] in (b"master", "master"))


def test_threads_leave_one_of_their_last_values(valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        with LastWrite(client, LastWriteSettings(interval_ms=1)) as writes:

            def write(name: int) -> None:
                for number in range(500):
                    writes.set("price", f"{name}:{number}")

            threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        value: Any = client.get("price")
        assert value.endswith(b":499")


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("", b"99"), ("os._exit(0)", None), ("os.fork() or os._exit(0); os.wait()", b"99")],
)
def test_an_orderly_exit_loses_nothing(valkey: str, ending: str, expected: bytes | None) -> None:
    port = valkey.rpartition(":")[2]
    program = """
import os, sys, redis
from keyheat.mitigate.last_write import LastWrite, LastWriteSettings
writes = LastWrite(redis.Redis(port=int(sys.argv[1])), LastWriteSettings(interval_ms=3_600_000))
for number in range(100):
    writes.set("price", number)
"""
    subprocess.run([sys.executable, "-c", program + ending, port], check=True, timeout=30)
    with redis.Redis("127.0.0.1", int(port)) as client:
        assert client.get("price") == expected


def test_a_forked_child_holds_nothing(valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        with LastWrite(client, LastWriteSettings(interval_ms=NEVER_MS)) as writes:
            writes.set("price", 1)
            child = os.fork()
            if child == 0:
                os._exit(writes.stats().held)
            assert os.waitpid(child, 0)[1] == 0
        assert client.get("price") == b"1"


@pytest.mark.parametrize("settings", [{"interval_ms": 0}, {"max_keys": 0}, {"max_bytes": 0}])
def test_a_setting_that_cannot_be_used_is_named(settings: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LastWriteSettings(**settings)
