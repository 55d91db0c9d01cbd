"""The promise, measured while what it rests on is taken away: threads and asyncio alike.

A read served locally and started at t never returns a value overwritten by a write that was acknowledged
before t - max_staleness. Each test also asks that many reads were local: one that never hit proves nothing.
"""

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.relays import FaultyRelay
from tests.client.sides import Side, hits
from tests.client.watch import KEY, Seen, Verdict, Watch, now_ns

BOUND_MS = 100.0
# Given, so it never widens.
BOUND = {"max_staleness": BOUND_MS / 1e3}
MANY = 1000
Eventually = Callable[..., Any]


@pytest.fixture
def client(side: Side, own_server: EmbeddedServer) -> Any:
    """A client straight to a server of this test's own."""
    return side.protected(own_server.address, BOUND)


@pytest.fixture
def relayed(side: Side, relay: FaultyRelay) -> Any:
    """A client whose tracking connection can be interfered with."""
    return side.protected(relay.address, BOUND)


def settle(client: Any, more: int = 200, timeout_s: float = 20.0) -> None:
    """Wait until some writes have passed and so many more reads were answered from memory."""
    for _ in range(3):
        time.sleep(0.1)
        wanted, deadline = hits(client) + more / 3, time.monotonic() + timeout_s
        while hits(client) < wanted:
            assert time.monotonic() < deadline, client.keyheat.stats()
            time.sleep(0.005)


def is_kept(verdict: Verdict, *, many: int = MANY) -> None:
    """The promise."""
    assert verdict.stale_max_ms <= BOUND_MS
    assert verdict.local_hits > many
    assert verdict.newest > 10


def test_on_a_calm_day(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    with Watch(client, side, own_server.port) as watch:
        settle(client)
        time.sleep(0.7)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0
    assert verdict.local_hits > 0.8 * verdict.reads


def test_the_checker_finds_a_client_that_is_not_told_of_changes(
    side: Side, relayed: Any, relay: FaultyRelay, own_server: EmbeddedServer
) -> None:
    # The planted bug: heartbeats are answered, invalidations swallowed.
    with Watch(relayed, side, own_server.port) as watch:
        settle(relayed)
        relay.is_deaf = True
        time.sleep(1)
        verdict = watch.verdict()
    assert relay.swallowed > 0
    assert verdict.stale_max_ms > 2 * BOUND_MS


def test_while_the_server_kills_tracking_connections(
    side: Side, client: Any, own_server: EmbeddedServer
) -> None:
    with Watch(client, side, own_server.port) as watch, own_server.client() as admin:
        for _ in range(3):
            settle(client)
            found = [each["id"] for each in admin.client_list() if each["name"] == "keyheat-tracking"]
            assert found
            for number in found:
                admin.execute_command("CLIENT", "KILL", "ID", number)
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0
    assert client.keyheat.stats()["tracking_lost"] >= 3


def test_while_tracking_connections_are_cut(
    side: Side, relayed: Any, relay: FaultyRelay, own_server: EmbeddedServer
) -> None:
    with Watch(relayed, side, own_server.port) as watch:
        for _ in range(3):
            settle(relayed)
            assert relay.cut_tracking() > 0
        settle(relayed)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0
    assert relayed.keyheat.stats()["tracking_lost"] >= 3


def test_while_the_tracking_connection_is_half_open(
    side: Side, relayed: Any, relay: FaultyRelay, own_server: EmbeddedServer
) -> None:
    with Watch(relayed, side, own_server.port) as watch:
        settle(relayed)
        relay.freeze_tracking()
        time.sleep(0.5)
        frozen, reads = hits(relayed), watch.reads
        time.sleep(2.7)
        # Not one local answer without a proof; reads go on at the server.
        assert hits(relayed) == frozen
        assert watch.reads > reads + 100
        relay.thaw()
        settle(relayed)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0
    assert verdict.unproved_share > 0 or relayed.keyheat.stats()["tracking_lost"] > 0


def test_while_new_connections_are_refused(
    side: Side, relayed: Any, relay: FaultyRelay, own_server: EmbeddedServer
) -> None:
    with Watch(relayed, side, own_server.port) as watch:
        settle(relayed)
        relay.refuse()
        assert relay.cut_tracking() > 0
        time.sleep(0.3)
        refused = hits(relayed)
        time.sleep(0.7)
        assert hits(relayed) == refused
        assert relayed.keyheat.stats()["not_caching"]
        relay.accept_again()
        settle(relayed)
        assert relayed.keyheat.stats()["not_caching"] == []
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0


def test_while_the_server_is_stopped(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    with Watch(client, side, own_server.port) as watch:
        settle(client)
        own_server.pause()
        time.sleep(0.3)
        stopped = hits(client)
        time.sleep(0.8)
        assert hits(client) == stopped
        own_server.resume()
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0


@pytest.mark.parametrize("clear", ["FLUSHDB", "FLUSHALL"])
def test_while_the_database_is_emptied(
    side: Side, client: Any, own_server: EmbeddedServer, clear: str
) -> None:
    with Watch(client, side, own_server.port, writes_per_s=30, clear=clear, clear_every=3) as watch:
        settle(client)
        time.sleep(0.7)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0
    assert sum(len(seen.nothing) for seen in watch.seen) > 100


def test_in_a_forked_child(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    if side.is_aio:
        pytest.skip("an event loop does not survive a fork: asyncio's own rule")
    with Watch(client, side, own_server.port) as watch:
        settle(client)
        child = forked(lambda: read_in_child(client))
        settle(client)
        told = child()
        verdict = watch.verdict()
    is_kept(verdict)
    text, local_hits, lost = told.split("|")
    seen = Seen.from_json(text)
    assert seen.errors == 0
    assert int(local_hits) > MANY
    assert watch.staleness_ns(seen) / 1e6 <= BOUND_MS
    assert len(seen.last_start) > 10
    # The child has a tracking connection of its own, and has not touched its parent's.
    assert lost == "0"
    assert client.keyheat.stats()["tracking_lost"] == 0


def read_in_child(client: Any) -> str:
    """Read on for a while, then say what was seen."""
    seen = Seen()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        started = now_ns()
        try:
            seen.note(started, client.get(KEY))
        except redis.RedisError:
            seen.errors += 1
    stats = client.keyheat.stats()
    return f"{seen.to_json()}|{stats['local_hits']}|{stats['tracking_lost']}"


def forked(run: Callable[[], str]) -> Callable[[], str]:
    """Run it in a fork of this process; returns what waits for the answer."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the point
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            os.write(writing, run().encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)

    def wait() -> str:
        with os.fdopen(reading) as answer:
            text = answer.read()
        assert os.waitpid(pid, 0)[1] == 0
        return text

    return wait


def test_thousands_of_rewrites_and_then_silence_leave_the_last_value(
    side: Side, client: Any, own_server: EmbeddedServer
) -> None:
    with Watch(client, side, own_server.port, writes_per_s=5000, readers=4) as watch:
        time.sleep(1.5)
        watch.stop_writing()
        time.sleep(BOUND_MS / 1e3)
        with own_server.client() as direct:
            last = direct.get(KEY)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert client.get(KEY) == last
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.written > 500


@contextmanager
def in_background(run: Callable[[threading.Event], None], threads: int) -> Iterator[None]:
    """Keep the interpreter busy."""
    over = threading.Event()
    busy = [threading.Thread(target=run, args=(over,), daemon=True) for _ in range(threads)]
    for each in busy:
        each.start()
    yield
    over.set()
    for each in busy:
        each.join()


def test_while_threads_compute(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    def compute(over: threading.Event) -> None:
        while not over.is_set():
            sum(number * number for number in range(1000))

    with Watch(client, side, own_server.port) as watch, in_background(compute, 3):
        settle(client, more=50)
        time.sleep(0.5)
        verdict = watch.verdict()
    # Four threads and one interpreter: readers come to their turn a few hundred times a second.
    is_kept(verdict, many=100)


def holding_the_interpreter(for_s: float) -> Callable[[], object]:
    """A call into C that lets no other thread run for at least so long."""
    pattern, length = re.compile(r"(a|a)*$"), 8
    while True:
        text = "a" * length + "b"
        started = time.monotonic()
        pattern.match(text)
        if time.monotonic() - started >= for_s:
            break
        length += 1
    return lambda: pattern.match(text)


def test_while_a_call_holds_the_interpreter(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    hold = holding_the_interpreter(0.3)
    held = []

    def hold_often(over: threading.Event) -> None:
        while not over.wait(0.05):
            started = time.monotonic()
            hold()
            held.append(time.monotonic() - started)

    with Watch(client, side, own_server.port) as watch:
        settle(client)
        with in_background(hold_often, 1):
            time.sleep(1.2)
        verdict = watch.verdict()
    is_kept(verdict)
    assert max(held) >= 0.2


def test_while_the_event_loop_is_blocked(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    if not side.is_aio:
        pytest.skip("threads have no event loop")
    with Watch(client, side, own_server.port) as watch:
        for _ in range(2):
            settle(client)
            side.loop.loop.call_soon_threadsafe(time.sleep, 0.5)
            time.sleep(0.6)
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)
    assert verdict.errors == 0


def test_while_the_server_is_restarted(side: Side, client: Any, own_server: EmbeddedServer) -> None:
    with Watch(client, side, own_server.port) as watch:
        for _ in range(2):
            settle(client)
            own_server.kill()
            watch.losses.append(now_ns())
            time.sleep(0.2)
            own_server.restart()
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)


# ---------------------------------------------------------------- Cluster


def node_id(client: Any) -> str:
    """A node's own name."""
    name = client.execute_command("CLUSTER", "MYID")
    return name.decode() if isinstance(name, bytes) else str(name)


@pytest.fixture(scope="module")
def whole_cluster(server_binary: str) -> Iterator[EmbeddedCluster]:
    """Three primaries, for the tests that leave them as they were."""
    with EmbeddedCluster(3, binary=server_binary) as running:
        yield running


def migrate(cluster: EmbeddedCluster, key: str, source: EmbeddedServer, target: EmbeddedServer) -> None:
    """Move a key's slot, with the key."""
    from redis.crc import key_slot  # noqa: PLC0415

    slot = key_slot(key.encode())
    with source.client() as old, target.client() as new:
        old_id, new_id = node_id(old), node_id(new)
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        time.sleep(0.05)
        old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        time.sleep(0.05)
        for node in (new, old):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)
    for node in cluster.primaries:
        if node not in {source, target}:
            with node.client() as other:
                other.execute_command("CLUSTER SETSLOT", slot, "NODE", new_id)


def test_while_a_hot_slot_moves(side: Side, whole_cluster: EmbeddedCluster) -> None:
    client = side.cluster(whole_cluster.primaries[0].address, BOUND)
    home = whole_cluster.owner(KEY)
    away = next(node for node in whole_cluster.primaries if node is not home)
    with Watch(client, side, whole_cluster.primaries[0].port, kind="cluster") as watch:
        settle(client)
        migrate(whole_cluster, KEY, home, away)
        settle(client)
        migrate(whole_cluster, KEY, away, home)
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)


@pytest.mark.parametrize("how", ["asked for", "killed"])
def test_while_a_hot_primary_fails_over(
    side: Side, own_cluster: EmbeddedCluster, eventually: Eventually, how: str
) -> None:
    home = own_cluster.owner(KEY)
    replica = own_cluster.replicas[own_cluster.primaries.index(home)]
    seed = next(node for node in own_cluster.primaries if node is not home)
    client = side.cluster(seed.address, BOUND)

    def is_primary() -> bool:
        with replica.client() as direct:
            return bool(direct.execute_command("ROLE")[0] == b"master")

    with Watch(client, side, seed.port, kind="cluster") as watch:
        settle(client)
        if how == "killed":
            home.kill()
        else:
            with replica.client() as direct:
                direct.execute_command("CLUSTER", "FAILOVER")
        eventually(is_primary, timeout_s=20)
        settle(client)
        verdict = watch.verdict()
    is_kept(verdict)


def test_while_one_node_of_a_cluster_is_emptied(side: Side, whole_cluster: EmbeddedCluster) -> None:
    seed = whole_cluster.primaries[0]
    client = side.cluster(seed.address, BOUND)
    with Watch(client, side, seed.port, kind="cluster", clear="FLUSHALL", clear_every=3) as watch:
        settle(client)
        time.sleep(1)
        verdict = watch.verdict()
    is_kept(verdict)
    assert sum(len(seen.nothing) for seen in watch.seen) > 100


def test_a_read_never_waits_for_the_tracking_connection(
    side: Side, relayed: Any, relay: FaultyRelay, own_server: EmbeddedServer
) -> None:
    with Watch(relayed, side, own_server.port) as watch:
        settle(relayed)
        relay.freeze_tracking()
        time.sleep(0.3)
        started = time.monotonic()
        for _ in range(20):
            relayed.get(KEY)
        assert time.monotonic() - started < 5
        relay.thaw()
        watch.verdict()
