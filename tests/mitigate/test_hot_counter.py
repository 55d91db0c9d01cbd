"""Hot counters against real servers: exact after a flush, honest about the rest."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
import redis
import redis.crc

from keyheat.errors import ConfigError
from keyheat.mitigate._placement import primaries_of, slot_of, spread_tags, tag_of_slot
from keyheat.mitigate.hot_counter import AsyncHotCounter, CounterSettings, HotCounter
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.kinds import Clients, done, is_async, no_retry

NEVER_MS = 3_600_000.0


def counter(clients: Clients, client: Any, key: str, **settings: Any) -> Any:
    kind = AsyncHotCounter if is_async(clients.kind) else HotCounter
    return kind(client, key, CounterSettings(**settings))


async def close(counted: Any) -> None:
    await done(counted.aclose() if isinstance(counted, AsyncHotCounter) else counted.close())


def eval_calls(address: str) -> int:
    host, _, port = address.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_eval", {}).get("calls", 0))


async def test_collected_increments_are_one_command_and_exact_after_a_flush(
    clients: Clients, valkey: str
) -> None:
    client = clients.standalone(valkey)
    await done(client.set("page", 5))
    counted = counter(clients, client, "page", interval_ms=NEVER_MS)
    before = eval_calls(valkey)
    for _ in range(1000):
        await done(counted.incr())
    await done(counted.incr(-1))
    assert await done(counted.value()) == 5
    await done(counted.flush())
    assert eval_calls(valkey) - before == 1
    assert await done(counted.value()) == 1004
    assert int(await done(client.get("page"))) == 1004
    assert counted.stats().pending == 0
    await close(counted)


async def test_increments_go_out_by_themselves_after_the_interval(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    counted = counter(clients, client, "page", interval_ms=5)
    await done(counted.incr(3))
    for _ in range(1000):
        if await done(client.get("page")) == b"3":
            break
        await asyncio.sleep(0.005)
    assert await done(counted.value()) == 3
    await close(counted)


@pytest.mark.parametrize("interval_ms", [0, NEVER_MS])
async def test_sub_keys_lie_evenly_on_all_primaries(
    clients: Clients, cluster: EmbeddedCluster, interval_ms: float
) -> None:
    client = await clients.cluster(cluster.addresses[0])
    counted = counter(clients, client, "likes{x}", shards=12, interval_ms=interval_ms)
    for _ in range(90):
        await done(counted.incr())
        await done(counted.flush())
    per_primary = []
    for node in cluster.primaries:
        with node.client() as direct:
            names: Any = direct.keys("keyheat:counter:*:n:*")
            per_primary.append(sum(int(direct.get(name) or 0) for name in names))
    assert per_primary == [30, 30, 30]
    assert await done(counted.value()) == 90
    await done(counted.fold())
    assert int(await done(client.get("likes{x}"))) == 90
    assert await done(counted.value()) == 90
    await done(counted.incr())
    await done(counted.flush())
    assert await done(counted.value()) == 91
    await done(counted.reset())
    assert await done(counted.value()) == 0
    await close(counted)


async def test_float_counters_and_the_time_to_live_of_what_they_create(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    for interval_ms in (0, NEVER_MS):
        counted = counter(
            clients, client, f"sum:{interval_ms}", shards=2, interval_ms=interval_ms, kind="float", ttl_s=100
        )
        await done(counted.incr(0.5))
        await done(counted.incr(0.25))
        await close(counted)
        assert await done(counted.value()) == 0.75
    names = await done(client.keys("keyheat:counter:*:n:*"))
    assert len(names) == 3
    for name in names:
        assert 90_000 < await done(client.pttl(name)) <= 100_000


async def test_switched_off_it_is_a_plain_incrby_on_the_key(clients: Clients, valkey: str) -> None:
    client = clients.standalone(valkey)
    counted = counter(clients, client, "page", shards=4)
    counted.enabled = False
    await done(counted.incr(2))
    assert await done(client.get("page")) == b"2"
    assert counted.stats().unspread == 1
    await close(counted)


async def test_a_server_that_is_down_costs_no_increment_up_to_the_bound(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    client = clients.standalone(own_server.address, retry=no_retry(clients.kind))
    counted = counter(clients, client, "page", interval_ms=NEVER_MS, max_pending=10)
    own_server.kill()
    for _ in range(10):
        await done(counted.incr())
    with pytest.raises(Exception, match="onnect"):
        await done(counted.incr())
    assert counted.stats().pending == 10
    own_server.restart()
    await close(counted)
    assert await done(client.get("page")) == b"10"


async def test_past_the_bound_increments_may_be_dropped_instead(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    client = clients.standalone(own_server.address, retry=no_retry(clients.kind))
    counted = counter(clients, client, "page", interval_ms=NEVER_MS, max_pending=10, on_full="drop")
    own_server.kill()
    for _ in range(15):
        await done(counted.incr())
    assert counted.stats().dropped == 5
    own_server.restart()
    await close(counted)
    assert await done(client.get("page")) == b"10"


async def test_a_batch_of_unknown_outcome_is_counted_once(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    client = clients.standalone(own_server.address, socket_timeout=0.1, retry=no_retry(clients.kind))
    counted = counter(clients, client, "page", interval_ms=NEVER_MS)
    await done(client.ping())
    await done(counted.incr(7))
    own_server.pause()  # takes the command into its socket, answers too late
    with pytest.raises(Exception, match="imeout"):
        await done(counted.flush())
    own_server.resume()
    await done(counted.incr(1))
    await close(counted)
    assert await done(client.get("page")) == b"8"


async def test_without_scripts_an_unknown_outcome_is_given_up_and_counted(
    clients: Clients, own_server: EmbeddedServer
) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-eval")
    client = clients.standalone(own_server.address, socket_timeout=0.1, retry=no_retry(clients.kind))
    counted = counter(clients, client, "page", interval_ms=NEVER_MS)
    await done(counted.incr(7))
    await done(counted.flush())
    assert await done(client.get("page")) == b"7"
    await done(counted.incr(7))
    own_server.pause()
    with pytest.raises(Exception, match="imeout"):
        await done(counted.flush())
    own_server.resume()
    assert counted.stats().unknown == 1
    assert counted.stats().pending == 0
    await close(counted)


def add_many(counted: HotCounter) -> None:
    for _ in range(2000):
        counted.incr()


def test_many_threads_lose_nothing(valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        with HotCounter(client, "page", CounterSettings(shards=4, interval_ms=1, max_pending=50)) as counted:
            threads = [threading.Thread(target=add_many, args=(counted,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert counted.value() == 16_000


SCRIPT = """
import os, signal, sys, threading, time, redis
from keyheat.mitigate.hot_counter import CounterSettings, HotCounter
client = redis.Redis("127.0.0.1", int(sys.argv[1]))
counted = HotCounter(client, "page", CounterSettings(interval_ms=3_600_000))
for _ in range(100):
    counted.incr()
"""


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("", b"100"),
        ("sys.exit(3)", b"100"),
        ("del counted", b"100"),
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getpid(), 15); time.sleep(9)",
            b"100",
        ),
        ("os.fork() or sys.exit(0); os.wait()", b"100"),  # the child's exit does not send the parent's
        ("os.kill(os.getpid(), signal.SIGKILL)", None),  # the crash: what was held is lost, no more
    ],
)
def test_an_orderly_exit_loses_nothing(valkey: str, ending: str, expected: bytes | None) -> None:
    port = valkey.rpartition(":")[2]
    subprocess.run([sys.executable, "-c", SCRIPT + ending, port], check=False, timeout=30)
    with redis.Redis("127.0.0.1", int(port)) as client:
        assert client.get("page") == expected


def test_the_end_of_asyncio_run_sends_what_is_held(valkey: str) -> None:
    port = valkey.rpartition(":")[2]
    program = textwrap.dedent("""
        import asyncio, sys, redis.asyncio
        from keyheat.mitigate.hot_counter import CounterSettings, AsyncHotCounter
        async def main():
            client = redis.asyncio.Redis(port=int(sys.argv[1]))
            counted = AsyncHotCounter(client, "page", CounterSettings(interval_ms=3_600_000))
            for _ in range(100):
                await counted.incr()
            await asyncio.sleep(0)
        asyncio.run(main())
    """)
    subprocess.run([sys.executable, "-c", program, port], check=True, timeout=30)
    with redis.Redis("127.0.0.1", int(port)) as client:
        assert client.get("page") == b"100"


def test_a_forked_child_counts_its_own_and_not_its_parents(valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        with HotCounter(client, "page", CounterSettings(interval_ms=NEVER_MS)) as counted:
            counted.incr(10)
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    assert counted.stats().pending == 0
                    counted.incr(1)
                    counted.close()
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
            assert client.get("page") == b"1"
        assert client.get("page") == b"11"


async def test_a_cancelled_flush_loses_nothing(valkey: str) -> None:
    host, _, port = valkey.rpartition(":")
    async with redis.asyncio.Redis(host=host, port=int(port)) as client:
        counted = AsyncHotCounter(client, "page", CounterSettings(interval_ms=NEVER_MS))
        for _ in range(50):
            await counted.incr()
            flush = asyncio.ensure_future(counted.flush())
            await asyncio.sleep(0)
            flush.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flush
        await counted.aclose()
        assert await client.get("page") == b"50"


def test_a_failover_loses_nothing_that_was_acknowledged_afterwards(
    own_cluster: EmbeddedCluster, eventually: Any
) -> None:
    with redis.RedisCluster("127.0.0.1", own_cluster.primaries[1].port) as client:
        with HotCounter(client, "page", CounterSettings(shards=12, interval_ms=NEVER_MS)) as counted:
            for _ in range(12):
                counted.incr()
                counted.flush()
            with own_cluster.primaries[0].client() as direct:
                assert direct.wait(1, 5000) == 1
            own_cluster.primaries[0].kill()
            for _ in range(12):
                counted.incr()
                with contextlib.suppress(redis.RedisError):
                    counted.flush()
            own_cluster.wait_until_ok()

            def sent() -> bool:
                with contextlib.suppress(redis.RedisError):
                    counted.flush()
                return counted.stats().pending == 0

            eventually(sent, timeout_s=20.0)
        assert counted.value() == 24


@pytest.mark.parametrize(
    "settings",
    [
        {"shards": 0},
        {"interval_ms": -1},
        {"max_pending": 0},
        {"on_full": "x"},
        {"kind": "x"},
        {"prefix": b"{"},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CounterSettings(**settings)


def test_tags_lie_where_they_should(cluster: EmbeddedCluster) -> None:
    for slot in (0, 1, 8191, 16_383):
        assert slot_of(b"x{" + tag_of_slot(slot) + b"}y") == slot
    for key in (b"a", b"{a}b", b"a{}b", b"a{b", b"a}{b}c}", b"{{a}}", b"", "k\u00e9y".encode()):
        assert slot_of(key) == redis.crc.key_slot(key)
    tags = spread_tags(64)
    assert [slot_of(tag) * 64 // 16_384 for tag in tags] == list(range(64))
    with redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client:
        assert sorted(len(owned) for owned in primaries_of(client, tags).values()) == [21, 21, 22]
