"""Copies of hot keys on real Clusters: even load, bounded staleness, nothing left behind."""

import asyncio
import bisect
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import pytest
import pytest_asyncio
import redis

from keyheat.errors import ConfigError
from keyheat.mitigate.copies import AsyncCopies, Copies, CopiesSettings
from keyheat.server.cluster import EmbeddedCluster, slot_ranges
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.kinds import Clients, done, is_async

HOT = "item:hot"


class Copied:
    """Copies of one kind with what the tests ask about them."""

    def __init__(self, clients: Clients, client: Any, **settings: Any) -> None:
        kind = AsyncCopies if is_async(clients.kind) else Copies
        self.client = client
        self.copies: Any = kind(client, CopiesSettings(**settings))

    async def until_copied(self, count: int, key: str = HOT, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.copies.state(key)
            if state is not None and state.copies == count:
                return
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.005)

    async def until_reason(self, reason: str, key: str = HOT) -> None:
        deadline = time.monotonic() + 10
        while reason not in (self.copies.state(key).reason or ""):
            assert time.monotonic() < deadline, self.copies.state(key)
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        await done(self.copies.aclose() if isinstance(self.copies, AsyncCopies) else self.copies.close())


@pytest_asyncio.fixture
async def copied(clients: Clients, cluster: EmbeddedCluster) -> AsyncIterator[Copied]:
    client = await clients.cluster(cluster.addresses[0])
    made = Copied(clients, client)
    yield made
    await made.close()


def names(cluster: EmbeddedCluster, pattern: str) -> list[tuple[int, bytes]]:
    """(which primary, name) of every key that matches, as the nodes themselves say."""
    found = []
    for index, node in enumerate(cluster.primaries):
        if node.is_running:
            with node.client() as direct:
                listed: Any = direct.keys(pattern)
                found += [(index, name) for name in listed]
    return found


def made(copies: Copies) -> int:
    state = copies.state(HOT)
    return state.copies if state is not None else 0


def reason(copies: Copies) -> str | None:
    state = copies.state(HOT)
    return state.reason if state is not None else None


COPY = "keyheat:copy:*:c:*"


async def test_each_copy_lies_on_another_primary_and_answers_reads(
    copied: Copied, cluster: EmbeddedCluster
) -> None:
    await done(copied.client.set(HOT, "one"))
    assert copied.copies.heat(HOT)
    await copied.until_copied(2)
    own = cluster.primaries.index(cluster.owner(HOT))
    assert sorted(index for index, _ in names(cluster, COPY)) == sorted({0, 1, 2} - {own})
    for _ in range(60):
        assert await done(copied.copies.read("GET", HOT)) == b"one"
    stats = copied.copies.stats()
    assert stats.copy_reads > 20
    assert stats.original_reads > 5


async def test_every_type_is_copied(copied: Copied) -> None:
    client = copied.client
    await done(client.hset("h", mapping={"a": 1}))
    await done(client.rpush("l", "x", "y"))
    await done(client.sadd("s", "m"))
    await done(client.zadd("z", {"m": 2}))
    reads: list[tuple[Any, ...]] = [
        ("HGETALL", "h"),
        ("HGET", "h", "a"),
        ("HGET", "h", "absent"),
        ("HMGET", "h", "absent", "b"),
        ("LRANGE", "l", 0, -1),
        ("SMEMBERS", "s"),
        ("ZSCORE", "z", "m"),
        ("EXISTS", "l"),
        ("TTL", "l"),
    ]
    for key in "hlsz":
        copied.copies.heat(key)
    for key in "hlsz":
        await copied.until_copied(2, key)
    for read in reads:
        expected = await done(client.execute_command(*read))
        for _ in range(8):
            assert await done(copied.copies.read(*read)) == expected, read


async def test_an_acknowledged_write_is_seen_by_every_read_after_it(
    copied: Copied,
) -> None:
    await done(copied.client.set(HOT, 0))
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    for number in range(1, 120):
        await done(copied.copies.write("SET", HOT, number))
        for _ in range(4):
            assert int(await done(copied.copies.read("GET", HOT))) == number
        if number % 40 == 0:
            await copied.until_copied(2)
    assert copied.copies.stats().invalidations == 119


async def test_a_write_from_elsewhere_is_seen_within_the_bound(
    copied: Copied,
) -> None:
    await done(copied.client.set(HOT, "old"))
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    await done(copied.client.set(HOT, "new"))
    acknowledged = time.monotonic()
    seen = []
    while (now := time.monotonic()) < acknowledged + 1.1:
        if await done(copied.copies.read("GET", HOT)) == b"old":
            seen.append(now - acknowledged)
        await asyncio.sleep(0.002)
    assert max(seen, default=0.0) < 1.0


async def test_a_cooled_key_has_no_copies_left(copied: Copied, cluster: EmbeddedCluster) -> None:
    await done(copied.client.set(HOT, "one"))
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    await done(copied.copies.cool(HOT))
    assert names(cluster, COPY) == []
    assert await done(copied.copies.read("GET", HOT)) == b"one"
    assert copied.copies.state(HOT) is None


async def test_switched_off_reads_and_writes_go_to_the_original(
    copied: Copied,
) -> None:
    await done(copied.client.set(HOT, "one"))
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    copied.copies.enabled = False
    before = copied.copies.stats().copy_reads
    for _ in range(20):
        await done(copied.copies.write("SET", HOT, "two"))
        assert await done(copied.copies.read("GET", HOT)) == b"two"
    assert copied.copies.stats().copy_reads == before


async def test_what_cannot_be_copied_says_why(short_clients: Clients, cluster: EmbeddedCluster) -> None:
    client = await short_clients.cluster(cluster.addresses[0])
    copied = Copied(short_clients, client, copy_max_bytes=1000)
    copied.copies.heat("absent")
    await copied.until_reason("does not exist", "absent")
    await done(client.set("large", os.urandom(5000)))
    copied.copies.heat("large")
    await copied.until_reason("larger than copy_max_bytes", "large")
    assert len(await done(copied.copies.read("GET", "large"))) == 5000
    allow_dump(cluster, "-dump")
    try:
        await done(client.set(HOT, "one"))
        copied.copies.heat(HOT)
        await copied.until_reason("NoPermissionError", HOT)
        assert await done(copied.copies.read("GET", HOT)) == b"one"
    finally:
        allow_dump(cluster, "+dump")
    await copied.close()


def allow_dump(cluster: EmbeddedCluster, rule: str) -> None:
    for node in cluster.nodes:
        with node.client() as direct:
            direct.execute_command("ACL", "SETUSER", "default", rule)


async def test_a_copy_expires_with_its_original(copied: Copied, cluster: EmbeddedCluster) -> None:
    await done(copied.client.set(HOT, "one", px=600))
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    for index, name in names(cluster, COPY):
        with cluster.primaries[index].client() as direct, cluster.owner(HOT).client() as original:
            assert int(direct.pexpiretime(name)) <= int(original.pexpiretime(HOT))


def test_locks_and_keyheats_own_keys_are_not_copied(cluster: EmbeddedCluster) -> None:
    with (
        redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client,
        Copies(client, is_lock=lambda key: key.startswith(b"lock:")) as copies,
    ):
        assert not copies.heat("lock:a")
        assert not copies.heat(b"keyheat:copy:{0}:c:a")
        assert copies.heat("a")


def test_two_processes_have_one_owner_and_the_other_takes_over_after_a_kill(
    cluster: EmbeddedCluster, eventually: Any
) -> None:
    program = """
import sys, time, redis
from keyheat.mitigate.copies import Copies, CopiesSettings
client = redis.RedisCluster("127.0.0.1", int(sys.argv[1]))
copies = Copies(client, CopiesSettings(max_staleness_ms=300, clock_skew_ms=20))
copies.heat("item:hot")
while copies.state("item:hot").copies != 2: time.sleep(0.001)
print("owns", flush=True)
time.sleep(60)
"""
    port = cluster.primaries[0].port
    with redis.RedisCluster("127.0.0.1", port) as client:
        client.set(HOT, "one")
        owner = subprocess.Popen(
            [sys.executable, "-c", program, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert owner.stdout is not None
        assert owner.stdout.readline() == "owns\n"
        with Copies(client, CopiesSettings(max_staleness_ms=300, clock_skew_ms=20)) as copies:
            copies.heat(HOT)
            eventually(lambda: reason(copies) == "another process makes them")
            for _ in range(50):
                assert copies.read("GET", HOT) == b"one"
            assert copies.stats().copy_reads > 10
            # A write here voids what the other process has made.
            copies.write("SET", HOT, "two")
            for _ in range(50):
                assert copies.read("GET", HOT) == b"two"
            owner.kill()
            owner.communicate()
            eventually(lambda: names(cluster, COPY) == [], timeout_s=3)
            eventually(lambda: made(copies) == 2)
        assert names(cluster, COPY) == []


def test_concurrent_writers_and_readers_never_see_the_past(cluster: EmbeddedCluster) -> None:
    acknowledged = 0
    failures: list[str] = []
    stop = threading.Event()
    with (
        redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client,
        Copies(client, CopiesSettings(max_staleness_ms=200, clock_skew_ms=0)) as copies,
    ):
        client.set(HOT, 0)
        copies.heat(HOT)

        def read() -> None:
            while not stop.is_set():
                floor = acknowledged
                value = int(copies.read("GET", HOT))
                if value < floor:
                    failures.append(f"{value} after {floor} was acknowledged")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        ends = time.monotonic() + 2.0
        number = 0
        while time.monotonic() < ends:
            number += 1
            copies.write("SET", HOT, number)
            acknowledged = number
            if number % 3 == 0:
                copies.round()  # as often as can be, to meet writes half-way
        stop.set()
        for reader in readers:
            reader.join()
        assert copies.stats().restored > 50
    assert failures == []


def moved(cluster: EmbeddedCluster, slot: int, to: EmbeddedServer) -> Iterator[None]:
    """Move a slot as an operator's tool does, yielding after each of its steps."""
    home = next(
        node
        for node, (first, last) in zip(cluster.primaries, slot_ranges(3), strict=True)
        if first <= slot <= last
    )
    with home.client() as giving, to.client() as taking:
        ids = [node.execute_command("CLUSTER", "MYID") for node in (giving, taking)]
        taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        yield
        while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            giving.execute_command("MIGRATE", "127.0.0.1", to.port, keys[0], 0, 5000)
            yield
        for each in (taking, giving):
            each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        yield


class Traffic:
    """One writer and two readers of the hot key; what a reader saw too late, or was raised, is kept."""

    def __init__(self, copies: Copies, write: Callable[..., Any], bound_s: float) -> None:
        self._copies = copies
        self._write = write
        self._bound_s = bound_s
        self._stop = threading.Event()
        self.acknowledged_s: list[float] = []  # of the writes 0, 1, 2 …
        self.failures: list[str] = []
        works = (self._write_one, self._read_one, self._read_one)
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller should not have seen it
                self.failures.append(repr(error))

    def _write_one(self) -> None:
        self._write("SET", HOT, len(self.acknowledged_s))
        self.acknowledged_s.append(time.monotonic())
        time.sleep(0.005)

    def _read_one(self) -> None:
        least = bisect.bisect_left(self.acknowledged_s, time.monotonic() - self._bound_s) - 1
        value = int(self._copies.read("GET", HOT) or -1)
        if value < least:
            self.failures.append(f"{value} after {least} was acknowledged")


@pytest.mark.parametrize("is_written_elsewhere", [True, False])
def test_while_slots_move_no_read_is_older_than_the_bound_and_none_fails(
    server_binary: str, eventually: Any, is_written_elsewhere: bool
) -> None:
    with (
        EmbeddedCluster(3, binary=server_binary) as own,
        redis.RedisCluster("127.0.0.1", own.primaries[0].port) as client,
        Copies(client, CopiesSettings(max_staleness_ms=300, clock_skew_ms=0)) as copies,
    ):
        client.set(HOT, 0)
        copies.heat(HOT)
        eventually(lambda: made(copies) == 2)
        home = own.primaries.index(own.owner(HOT))
        _, copy = next(each for each in names(own, COPY) if each[0] != home)
        # The original goes to the node of a copy, then that copy to where the original was.
        moves = [(HOT.encode(), own.owner(copy)), (copy, own.primaries[home])]
        write = client.execute_command if is_written_elsewhere else copies.write
        with Traffic(copies, write, 0.3 if is_written_elsewhere else 0.0) as traffic:
            for key, to in moves:
                for _ in moved(own, redis.crc.key_slot(key), to):
                    time.sleep(0.2)
            before = copies.stats().copy_reads
            eventually(lambda: made(copies) == 2 and copies.stats().copy_reads > before)
    assert traffic.failures == []
    assert len(traffic.acknowledged_s) > 20


def busiest_over_mean(cluster: EmbeddedCluster, before: list[int]) -> tuple[float, list[int]]:
    after = commands(cluster)
    done_now = [now - then for now, then in zip(after, before, strict=True)]
    return max(done_now) / (sum(done_now) / len(done_now)), done_now


def commands(cluster: EmbeddedCluster) -> list[int]:
    """Commands each primary has run, scripts' inner ones included, the question itself not."""
    counts = []
    for node in cluster.primaries:
        with node.client() as direct:
            stats: Any = direct.info("commandstats")
        counts.append(sum(each["calls"] for name, each in stats.items() if name != "cmdstat_info"))
    return counts


def test_a_key_with_four_fifths_of_the_reads_loads_three_primaries_evenly(
    cluster: EmbeddedCluster, eventually: Any
) -> None:
    picks = random.Random(7)
    others = [f"item:{number}" for number in range(600)]
    with redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client:
        client.set(HOT, "x" * 64)
        with Copies(client) as copies:
            copies.heat(HOT)
            eventually(lambda: made(copies) == 2)
            before = commands(cluster)
            for _ in range(15_000):
                copies.read("GET", HOT if picks.random() < 0.8 else picks.choice(others))
            imbalance, each = busiest_over_mean(cluster, before)
    assert imbalance < 1.15, each


async def test_copies_are_placed_anew_after_a_failover(
    short_clients: Clients, own_cluster: EmbeddedCluster
) -> None:
    client = await short_clients.cluster(own_cluster.addresses[0])
    await done(client.set(HOT, "one"))
    own = own_cluster.primaries.index(own_cluster.owner(HOT))
    with own_cluster.primaries[own].client() as direct:
        assert direct.wait(1, 5000) == 1
    copied = Copied(short_clients, client)
    copied.copies.heat(HOT)
    await copied.until_copied(2)
    # A copy's node dies: reads go on, and a write is acknowledged nevertheless, if late.
    own_cluster.primaries[(own + 1) % 3].kill()
    await done(copied.copies.write("SET", HOT, "two"))
    for _ in range(20):
        assert await done(copied.copies.read("GET", HOT)) == b"two"
    await copied.until_copied(2, timeout_s=30)
    for _ in range(20):
        assert await done(copied.copies.read("GET", HOT)) == b"two"
    await copied.close()


def test_a_forked_child_owns_nothing(cluster: EmbeddedCluster, eventually: Any) -> None:
    with redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client:
        client.set(HOT, "one")
        with Copies(client) as copies:
            copies.heat(HOT)
            eventually(lambda: made(copies) == 2)
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    copies.close()  # must not delete the parent's
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
            assert len(names(cluster, COPY)) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"copies_max": 0},
        {"max_staleness_ms": 1},
        {"clock_skew_ms": 900},
        {"copy_max_bytes": 0},
        {"keys_max": 0},
        {"prefix": b"a{b"},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CopiesSettings(**settings)


def test_a_standalone_client_is_refused() -> None:
    with redis.Redis() as client, pytest.raises(ConfigError, match="Cluster"):
        Copies(client)
