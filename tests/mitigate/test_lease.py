"""The distributed lease, against real servers: one load over all processes, whatever befalls the holder."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keyheat.errors import ConfigError, LoadFailedError, WaitTimeoutError
from keyheat.mitigate.lease import Lease, LeaseSettings
from keyheat.mitigate.lease_keys import keys_for
from keyheat.mitigate.shedder import Shedder
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.crowd import Source, crowd, soon
from tests.mitigate.kinds import Clients, done, is_async, no_retry

KEY = b"item:1"
KEYS = keys_for(KEY, b"keyheat:")


def source_for(clients: Clients, seconds: float = 0.1, value: Any = b"loaded") -> Source:
    return Source("tasks" if is_async(clients.kind) else "threads", seconds, value)


def call(lease: Lease, source: Source, key: bytes | str = KEY) -> Any:
    if source.way == "tasks":
        return lambda: lease.rebuild_async(key, source.load, ttl=60)
    return lambda: lease.rebuild(key, source.load, ttl=60)


async def rebuilt(lease: Lease, source: Source, key: bytes | str = KEY) -> Any:
    """One caller, without blocking this loop; what it raises is raised."""
    [got] = await crowd(source.way, 1, call(lease, source, key))
    if isinstance(got, BaseException):
        raise got
    return got


async def both(ours: Lease, theirs: Lease, source: Source, key: bytes = KEY) -> list[Any]:
    return list(await asyncio.gather(rebuilt(ours, source, key), rebuilt(theirs, source, key)))


def invalidate(lease: Lease, source: Source) -> Any:
    return lease.invalidate_async(KEY) if source.way == "tasks" else lease.invalidate(KEY)


@pytest.fixture
def plain(valkey: str) -> Iterator[redis.Redis]:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        yield client


async def test_a_missing_key_is_loaded_stored_and_then_found(
    valkey: str, clients: Clients, plain: redis.Redis
) -> None:
    lease, source = Lease(clients.standalone(valkey)), source_for(clients, 0)
    assert [await rebuilt(lease, source), await rebuilt(lease, source)] == [b"loaded"] * 2
    assert source.calls == 1
    assert plain.get(KEY) == b"loaded"
    assert 0 < plain.pttl(KEY) <= 60_000
    assert plain.keys() == [KEY]


@pytest.mark.parametrize("count", [64, 200])
async def test_many_callers_of_a_process_are_one_load_and_two_commands(
    valkey: str, short_clients: Clients, plain: redis.Redis, count: int
) -> None:
    lease, source = Lease(short_clients.standalone(valkey)), source_for(short_clients, 0)
    source.until = lambda: lease._coalescer.stats().waiting == count - 1
    await rebuilt(lease, source_for(short_clients, 0), b"other")  # the scripts are known
    plain.config_resetstat()
    assert await crowd(source.way, count, call(lease, source)) == [b"loaded"] * count
    assert source.calls == 1
    stats = plain.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_xread" not in stats


async def test_another_process_waits_for_the_wake_up(valkey: str, clients: Clients) -> None:
    ours, theirs = (Lease(clients.standalone(valkey)) for _ in range(2))
    source = source_for(clients, 0.3)
    assert await both(ours, theirs, source) == [b"loaded"] * 2
    assert source.calls == 1
    waited = [lease.stats() for lease in (ours, theirs) if lease.stats().waited]
    assert [(each.pushes, each.polls, each.found) for each in waited] == [(1, 0, 1)]


async def test_without_pushes_waiters_poll(valkey: str, short_clients: Clients) -> None:
    settings = LeaseSettings(pushes_max=0)
    leases = [Lease(short_clients.standalone(valkey), settings) for _ in range(4)]
    source = source_for(short_clients, 0.3)
    assert await asyncio.gather(*(rebuilt(lease, source) for lease in leases)) == [b"loaded"] * 4
    assert source.calls == 1
    assert 0 < sum(lease.stats().polls for lease in leases) < 100


async def test_where_xread_is_refused_waiters_poll(
    own_server: EmbeddedServer, short_clients: Clients
) -> None:
    with own_server.client() as admin:
        admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-xread"])
    leases = [
        Lease(short_clients.standalone(own_server.address, username="app", password="x")) for _ in range(2)
    ]
    source = source_for(short_clients, 0.3)
    assert await asyncio.gather(*(rebuilt(lease, source) for lease in leases)) == [b"loaded"] * 2
    assert source.calls == 1
    assert sum(lease.stats().polls for lease in leases) > 0


async def test_a_failed_load_fails_for_who_waited_and_the_next_caller_tries_anew(
    valkey: str, short_clients: Clients, plain: redis.Redis
) -> None:
    ours, theirs = (Lease(short_clients.standalone(valkey)) for _ in range(2))
    source = source_for(short_clients, 0.3)
    source.error = ValueError("secret")
    got = await asyncio.gather(rebuilt(ours, source), rebuilt(theirs, source), return_exceptions=True)
    assert {type(each) for each in got} == {ValueError, LoadFailedError}
    assert [str(each) for each in got if isinstance(each, LoadFailedError)] == [
        "another process was loading this key, and failed: ValueError"
    ]
    assert source.calls == 1
    source.error = None
    assert await rebuilt(theirs, source) == b"loaded"
    assert not plain.exists(KEYS.lease)


async def test_a_cancelled_holder_hands_on_at_once(valkey: str) -> None:
    clients = Clients("redis-asyncio")
    ours, theirs = (Lease(clients.standalone(valkey), LeaseSettings(lease_s=30)) for _ in range(2))
    source = source_for(clients, 0.2)
    holder = asyncio.create_task(ours.rebuild_async(KEY, source.load, ttl=60))
    await soon(lambda: source.calls == 1)
    waiter = asyncio.create_task(theirs.rebuild_async(KEY, source.load, ttl=60))
    await soon(lambda: theirs.stats().pushes == 1)
    await asyncio.sleep(0.05)
    holder.cancel()
    assert await asyncio.wait_for(waiter, 5) == b"loaded"
    assert source.calls == 2
    await clients.close()


async def test_a_lease_is_renewed_while_the_loader_runs(valkey: str, short_clients: Clients) -> None:
    settings = LeaseSettings(lease_s=0.3)
    ours, theirs = (Lease(short_clients.standalone(valkey), settings) for _ in range(2))
    source = source_for(short_clients, 0.9)
    assert await both(ours, theirs, source) == [b"loaded"] * 2
    assert source.calls == 1


async def test_a_loader_that_hangs_loses_the_lease_and_its_fill_is_refused(
    valkey: str, short_clients: Clients, plain: redis.Redis
) -> None:
    settings = LeaseSettings(lease_s=0.2, renew_max_s=0.2)
    ours, theirs = (Lease(short_clients.standalone(valkey), settings) for _ in range(2))
    hanging, quick = source_for(short_clients, 1.0, b"old"), source_for(short_clients, 0.0, b"new")
    holding = asyncio.create_task(rebuilt(ours, hanging))
    await soon(lambda: hanging.calls == 1)
    assert await rebuilt(theirs, quick) == b"new"
    assert await holding == b"old"
    assert plain.get(KEY) == b"new"
    assert (ours.stats().filled, ours.stats().fills_refused, theirs.stats().filled) == (0, 1, 1)


async def test_invalidating_during_the_load_refuses_the_fill(
    valkey: str, clients: Clients, plain: redis.Redis
) -> None:
    lease, source = Lease(clients.standalone(valkey)), source_for(clients, 0.3)
    loading = asyncio.create_task(rebuilt(lease, source))
    await soon(lambda: source.calls == 1)
    await done(invalidate(lease, source))
    assert await loading == b"loaded"
    assert plain.keys() == []


async def test_a_key_written_during_the_load_is_not_overwritten(
    valkey: str, short_clients: Clients, plain: redis.Redis
) -> None:
    lease, source = Lease(short_clients.standalone(valkey)), source_for(short_clients, 0.3)
    loading = asyncio.create_task(rebuilt(lease, source))
    await soon(lambda: source.calls == 1)
    plain.set(KEY, b"newer")
    assert await loading == b"loaded"
    assert plain.get(KEY) == b"newer"
    assert not plain.exists(KEYS.lease)


async def test_who_waits_too_long_loads_without_storing_or_is_told(
    valkey: str, short_clients: Clients, plain: redis.Redis
) -> None:
    plain.hset(KEYS.lease, "token", "of somebody")
    client = short_clients.standalone(valkey)
    source = source_for(short_clients, 0)
    assert await rebuilt(Lease(client, LeaseSettings(wait_s=0.1)), source) == b"loaded"
    assert not plain.exists(KEY)
    with pytest.raises(WaitTimeoutError):
        await rebuilt(Lease(client, LeaseSettings(wait_s=0.1, on_timeout="raise")), source)


async def test_a_server_that_is_down_does_not_keep_anybody_from_loading(
    own_server: EmbeddedServer, clients: Clients
) -> None:
    client = clients.standalone(own_server.address, socket_timeout=0.5, retry=no_retry(clients.kind))
    shedder = Shedder(2, queue=100, queue_timeout_s=10)
    lease, source = Lease(client, shedder=shedder), source_for(clients, 0.02)
    own_server.kill()
    calls = [call(lease, source, b"item:%d" % number) for number in range(8)]
    got = await crowd(source.way, 8, lambda: calls.pop()())  # noqa: PLW0108 - popped by each caller
    assert got == [b"loaded"] * 8
    assert (source.at_once_max, lease.stats().failed_open) == (2, 8)


async def test_a_paused_server_does_not_keep_anybody_from_loading(
    own_server: EmbeddedServer, short_clients: Clients
) -> None:
    options = {"socket_timeout": 0.4, "retry": no_retry(short_clients.kind)}
    ours, theirs = (Lease(short_clients.standalone(own_server.address, **options)) for _ in range(2))
    source = source_for(short_clients, 0.3)
    loading = asyncio.create_task(both(ours, theirs, source))
    await soon(lambda: source.calls == 1 and ours.stats().pushes + theirs.stats().pushes == 1)
    own_server.pause()
    assert await loading == [b"loaded"] * 2
    own_server.resume()
    assert source.calls == 2


async def test_a_wrong_type_is_the_callers_to_see(valkey: str, clients: Clients, plain: redis.Redis) -> None:
    plain.lpush(KEY, "x")
    lease, source = Lease(clients.standalone(valkey)), source_for(clients, 0)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await rebuilt(lease, source)
    assert source.calls == 0


async def test_scripts_that_were_flushed_are_sent_again(
    valkey: str, clients: Clients, plain: redis.Redis
) -> None:
    lease, source = Lease(clients.standalone(valkey)), source_for(clients, 0)
    plain.script_flush()
    assert await rebuilt(lease, source) == b"loaded"


@pytest.mark.parametrize(
    "key", [b"a", b"{x}y", b"q{r}{s}", b"a}b", b"a{", b"a{b", b"{}z", b"}{", b"", b"{", b"\xff\x00{\xfe}"]
)
def test_lease_and_wake_up_are_in_the_slot_of_their_key(key: bytes) -> None:
    from redis.crc import key_slot  # noqa: PLC0415

    keys = keys_for(key, b"keyheat:")
    assert {key_slot(each) for each in keys} == {key_slot(key)}
    assert len(set(keys)) == 3


def test_no_two_keys_share_a_lease() -> None:
    keys = [b"a", b"{a}", b"{a}b", b"a}", b"{}a", b"a{}", b"}a"]
    assert len({keys_for(key, b"keyheat:").lease for key in keys}) == len(keys)


async def test_it_works_on_a_cluster(cluster: EmbeddedCluster, clients: Clients) -> None:
    address = cluster.primaries[0].address
    ours, theirs = [Lease(await clients.cluster(address)) for _ in range(2)]
    for key in (b"a", b"{x}y", b"a}b", b"{}z"):
        source = source_for(clients, 0.1)
        assert await both(ours, theirs, source, key) == [b"loaded"] * 2
        assert source.calls == 1
    assert ours.stats().polls == theirs.stats().polls == 0
    assert ours.stats().pushes + theirs.stats().pushes == 4


async def test_values_are_stored_as_the_client_would(valkey: str, short_clients: Clients) -> None:
    client = short_clients.standalone(valkey, decode_responses=True)
    lease = Lease(client)
    for value, stored in ((b"\xff", b"\xff"), ("é", "é".encode()), (7, b"7"), (0.5, b"0.5")):
        key = f"item:{value!r}"
        for _ in range(2):
            assert await rebuilt(lease, source_for(short_clients, 0, value), key) == stored


async def test_switched_off_everybody_loads(valkey: str, short_clients: Clients, plain: redis.Redis) -> None:
    lease, source = Lease(short_clients.standalone(valkey)), source_for(short_clients, 0)
    lease.enabled = False
    assert await rebuilt(lease, source) == b"loaded"
    assert plain.keys() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_s", 0),
        ("renew_max_s", 1),
        ("wait_s", 0),
        ("on_timeout", "no"),
        ("pushes_max", -1),
        ("prefix", b"a{"),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        LeaseSettings(**{name: value})


class Processes:
    """Processes that miss one key at the same time."""

    def __init__(self, port: int, count: int, threads: int, load_s: float) -> None:
        words = [
            sys.executable,
            "-m",
            "tests.mitigate.rebuilder",
            str(port),
            "item",
            str(threads),
            str(load_s),
        ]
        self.started = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for each in self.started:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"

    def begin(self, *which: int) -> None:
        for number in which or range(len(self.started)):
            pipe = self.started[number].stdin
            assert pipe is not None
            pipe.write("go\n")
            pipe.flush()

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(each.communicate(timeout=60)[0] or "{}") for each in self.started]


def test_eight_processes_of_eight_threads_load_once(valkey: str, plain: redis.Redis) -> None:
    load_s = 0.5
    processes = Processes(int(valkey.rpartition(":")[2]), 8, 8, load_s)
    plain.config_resetstat()
    processes.begin()
    results = processes.results()
    assert [value for each in results for value in each["values"]] == ["loaded"] * 64
    assert int(plain.get("loads") or 0) == 1
    stats = plain.info("commandstats")
    client_commands = stats["cmdstat_evalsha"]["calls"] + stats["cmdstat_xread"]["calls"] + 8
    assert client_commands <= 8 * 4 + 1
    waited_s = sorted(time_s for each in results for time_s in each["waited_s"])
    p99_s = waited_s[math.ceil(len(waited_s) * 0.99) - 1]
    assert p99_s < load_s + 2.0  # on an idle machine it is load_s + 50 ms


def test_when_the_holder_is_killed_one_takes_over(valkey: str, plain: redis.Redis) -> None:
    processes = Processes(int(valkey.rpartition(":")[2]), 3, 4, 0.4)
    processes.begin(0)
    deadline = time.monotonic() + 10
    while not plain.get("loads"):
        assert time.monotonic() < deadline
    processes.begin(1, 2)
    processes.started[0].kill()
    results = processes.results()
    assert [len(each.get("values", [])) for each in results] == [0, 4, 4]
    assert int(plain.get("loads") or 0) == 2
