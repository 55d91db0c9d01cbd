"""Plans that send reads to copies or replicas, and writes with a longer expiry, by `protect` alone."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

import keyheat
from keyheat.errors import CircuitOpenError, ConfigError
from keyheat.mitigate import Allowlist, BreakerSettings, CopiesSettings, Entity, ReplicaReadsSettings
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.libraries import cluster_client, single_client
from tests.client.sides import RULES, Side, raw

HOT = "item:hot"
# Half of the default bound: a test waits it out more than once.
COPIES = CopiesSettings(max_staleness_ms=500)
REPLICAS = ReplicaReadsSettings(poll_interval_ms=10, max_lag_ms=300)


def calls(node: EmbeddedServer, command: str = "get") -> int:
    """How often a node was asked."""
    with node.client() as direct:
        stats: Any = direct.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def read_until(client: Any, is_so: Any, timeout_s: float = 10.0) -> None:
    """Read the hot key until something is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        for _ in range(20):
            client.get(HOT)
        assert time.monotonic() < deadline, client.keyheat.stats()


def read_until_away(client: Any) -> None:
    """Read the hot key until a replica answers."""
    read_until(client, lambda: figure(client, "replica_reads", "replica_reads") > 50)


def pipelined(client: Any, command: str, *args: Any) -> Any:
    """Run one command in a pipeline."""
    pipe = client.pipeline()
    getattr(pipe, command)(*args)
    return pipe.execute()


def figure(client: Any, remedy: str, name: str) -> int:
    return int(client.keyheat.stats()[remedy][name])


def copied(side: Side, cluster: EmbeddedCluster, copies: CopiesSettings = COPIES, **options: Any) -> Any:
    """A client whose hot keys are read from copies."""
    plain = cluster_client("redis", side, cluster.addresses[0], **options)
    return side.protect(plain, plans={"all": ["copies"]}, copies=copies)


def halving(side: Side, primary: EmbeddedServer) -> Any:
    """A client whose hot keys are read from replicas."""
    plain = single_client("redis", side, primary.address)
    return side.protect(plain, plans={"all": ["replica_reads"]}, replica_reads=REPLICAS)


@pytest.fixture
def spread(side: Side, cluster: EmbeddedCluster) -> Any:
    """A client of a Cluster whose hot keys are read from copies."""
    client = side.protect(
        cluster_client("redis", side, cluster.addresses[0]),
        plans={"all": ["copies"]},
        copies=COPIES,
    )
    client.set(HOT, "v0")
    return client


@pytest.fixture(scope="module")
def pair(server_binary: str) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """A primary and its replica."""
    with EmbeddedServer(binary=server_binary) as primary, EmbeddedServer(binary=server_binary) as replica:
        with replica.client() as direct:
            direct.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            deadline = time.monotonic() + 10
            while direct.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield primary, replica


@pytest.fixture
def halved(side: Side, pair: tuple[EmbeddedServer, EmbeddedServer]) -> Any:
    """A client whose hot keys are read from the replica."""
    client = halving(side, pair[0])
    client.set(HOT, "v0")
    return client


def test_a_hot_keys_reads_spread_over_the_primaries(spread: Any, cluster: EmbeddedCluster) -> None:
    read_until(spread, lambda: figure(spread, "copies", "copy_reads") > 50)
    before = [calls(node) for node in cluster.primaries]
    for _ in range(900):
        assert spread.get(HOT) == b"v0"
    after = [calls(node) for node in cluster.primaries]
    shares = [end - start for start, end in zip(before, after, strict=True)]
    assert max(shares) / (sum(shares) / len(shares)) < 1.25  # 900 draws of 3: five sigma
    assert spread.keyheat.explain(HOT)["plan"] == ["copies"]


def test_own_writes_are_seen_in_copies_at_once(spread: Any) -> None:
    read_until(spread, lambda: figure(spread, "copies", "copy_reads") > 50)
    before = figure(spread, "copies", "copy_reads")
    writes: list[Callable[[str], Any]] = [
        lambda value: spread.set(HOT, value),
        lambda value: pipelined(spread, "set", HOT, value),
        lambda value: spread.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, HOT, value),
    ]
    for number in range(30):
        writes[number % 3](str(number))
        until = time.monotonic() + 0.05
        while time.monotonic() < until:  # long enough for new copies
            assert spread.get(HOT) == str(number).encode()
    assert spread.delete(HOT) == 1
    assert spread.get(HOT) is None
    assert figure(spread, "copies", "copy_reads") - before > 100


def test_another_clients_write_voids_the_copies_too(
    side: Side, spread: Any, cluster: EmbeddedCluster
) -> None:
    other = side.protect(
        cluster_client("redis", side, cluster.addresses[0]),
        plans={"all": ["copies"]},
        copies=COPIES,
    )
    read_until(spread, lambda: figure(spread, "copies", "copy_reads") > 50)
    for number in range(50):
        other.set(HOT, number)
        assert [spread.get(HOT) for _ in range(6)] == [b"%d" % number] * 6


def test_a_write_from_elsewhere_is_seen_within_the_bound(spread: Any, cluster: EmbeddedCluster) -> None:
    read_until(spread, lambda: figure(spread, "copies", "copy_reads") > 50)
    for owner in cluster.primaries:
        with owner.client() as direct:
            try:
                direct.set(HOT, "elsewhere")
            except Exception:  # noqa: BLE001, S112  not this node's slot
                continue
    written = time.monotonic()
    while spread.get(HOT) != b"elsewhere":
        assert time.monotonic() - written < 0.5
    while time.monotonic() - written < 0.5:
        spread.get(HOT)
    assert {spread.get(HOT) for _ in range(30)} == {b"elsewhere"}


def test_nothing_is_left_when_it_is_not_hot_any_more(side: Side, cluster: EmbeddedCluster) -> None:
    rules = [RULES[0] | {"min_hot_ms": 0, "cooling_ms": 100}]
    client = side.protect(
        cluster_client("redis", side, cluster.addresses[0]),
        rules=rules,
        plans={"all": ["copies"]},
        copies=COPIES,
        window=0.5,
    )
    client.set(HOT, "v0")
    read_until(client, lambda: figure(client, "copies", "copy_reads") > 50)
    deadline = time.monotonic() + 15
    while figure(client, "copies", "hot") and time.monotonic() < deadline:
        time.sleep(0.05)
    left = []
    for node in cluster.primaries:
        with node.client() as direct:
            left += list(direct.keys("keyheat:copy:*:c:*"))
    assert left == []
    assert figure(client, "copies", "hot") == 0


def test_copies_can_be_switched_off_while_running(spread: Any) -> None:
    read_until(spread, lambda: figure(spread, "copies", "copy_reads") > 50)
    for switch, value in (("copies", False), ("shadow", True)):
        setattr(spread.keyheat, switch, value)
        before = figure(spread, "copies", "copy_reads")
        for _ in range(100):
            assert spread.get(HOT) == b"v0"
        assert figure(spread, "copies", "copy_reads") == before
        assert spread.keyheat.explain(HOT)["plan"] == []
        setattr(spread.keyheat, switch, not value)


def test_the_local_cache_fills_from_the_primary_beside_copies(side: Side, cluster: EmbeddedCluster) -> None:
    client = side.protect(
        cluster_client("redis", side, cluster.addresses[0]),
        plans={"all": ["local_cache", "coalesce", "copies"]},
        copies=COPIES,
    )
    client.set(HOT, "v0")
    read_until(client, lambda: client.keyheat.stats()["local_hits"] > 500)
    # A reply that depends on chance is never kept: it goes to copies.
    client.sadd("s:hot", "a", "b", "c")
    deadline = time.monotonic() + 10
    while figure(client, "copies", "copy_reads") < 20:
        assert client.srandmember("s:hot") in {b"a", b"b", b"c"}
        assert time.monotonic() < deadline
    for number in range(50):
        client.set(HOT, number)
        assert client.get(HOT) == b"%d" % number


def test_options_reach_the_reply_of_a_copy(spread: Any) -> None:
    spread.zadd("z:hot", {"a": 1, "b": 2})
    deadline = time.monotonic() + 10
    while figure(spread, "copies", "copy_reads") < 50:
        found = spread.zrange("z:hot", 0, -1, withscores=True)
        assert [tuple(pair) for pair in found] == [(b"a", 1.0), (b"b", 2.0)]
        assert time.monotonic() < deadline


def test_a_hot_key_is_read_from_a_replica_and_own_writes_are_seen(
    halved: Any, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    read_until_away(halved)
    before = calls(pair[1])
    for _ in range(200):
        assert halved.get(HOT) == b"v0"
    assert calls(pair[1]) - before >= 190
    assert halved.keyheat.explain(HOT)["plan"] == ["replica_reads"]
    for number in range(100):
        halved.set(HOT, number)
        assert halved.get(HOT) == b"%d" % number
        pipelined(halved, "incr", HOT)
        assert halved.get(HOT) == b"%d" % (number + 1)
    halved.keyheat.replica_reads = False
    before = calls(pair[1])
    for _ in range(100):
        halved.get(HOT)
    assert calls(pair[1]) == before


def test_another_clients_write_is_seen_by_reads_from_replicas(
    side: Side, halved: Any, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    other = halving(side, pair[0])
    read_until_away(halved)
    for number in range(200):
        other.set(HOT, number)
        assert halved.get(HOT) == b"%d" % number


def test_an_allowlisted_entity_gets_a_longer_expiry(side: Side, valkey: str) -> None:
    now = time.time()
    sale = Entity(name="sale", patterns=(b"shop:7:*",), starts_s=now - 1, ends_s=now + 60, ttl_s=600)
    client = side.protect(single_client("redis", side, valkey), allowlist=Allowlist([sale]))
    client.set("shop:7:item", "v", ex=60)
    client.set("shop:8:item", "v", ex=60)
    pipelined(client, "execute_command", "SETEX", "shop:7:other", 60, "v")
    assert client.ttl("shop:7:item") > 500
    assert client.ttl("shop:7:other") > 500
    assert client.ttl("shop:8:item") <= 60
    client.delete("shop:7:item", "shop:8:item", "shop:7:other")


@pytest.mark.parametrize("nx_is_lock", [True, False])
def test_a_lock_among_the_keys_of_an_entity_keeps_its_expiry(
    side: Side, valkey: str, nx_is_lock: bool
) -> None:
    now = time.time()
    sale = Entity(name="sale", patterns=(b"shop:7:*",), starts_s=now - 1, ends_s=now + 60, ttl_s=600)
    client = side.protect(
        single_client("redis", side, valkey), allowlist=Allowlist([sale]), nx_is_lock=nx_is_lock
    )
    assert client.setnx("shop:7:lock", "me")
    assert client.expire("shop:7:lock", 60)
    pipelined(client, "execute_command", "SET", "shop:7:other", "me", "NX")
    pipelined(client, "execute_command", "EXPIRE", "shop:7:other", 60)
    for name in ("shop:7:lock", "shop:7:other"):
        assert (client.ttl(name) <= 60) is nx_is_lock
    client.delete("shop:7:lock", "shop:7:other")


def test_copies_are_refused_for_one_server(side: Side, valkey: str) -> None:
    with pytest.raises(ConfigError, match="copies are for a Cluster"):
        side.protect(single_client("redis", side, valkey), plans={"all": ["copies"]})


def test_a_client_that_is_dropped_leaves_no_thread(
    sync: Side, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    client = keyheat.protect(
        single_client("redis", sync, pair[0].address),
        rules=RULES,
        plans={"all": ["replica_reads"]},
        replica_reads=REPLICAS,
    )
    client.set(HOT, "v0")
    read_until_away(client)
    assert "keyheat-routes" in {thread.name for thread in threading.enumerate()}
    client.close()
    del client
    deadline = time.monotonic() + 10
    while {thread.name for thread in threading.enumerate()} & {"keyheat-routes", "keyheat-replica-reads"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_commands_to_a_node_that_is_down_end_at_once(side: Side, own_server: EmbeddedServer) -> None:
    client = side.protect(
        single_client("redis", side, own_server.address),
        node_breaker=BreakerSettings(calls_min=3, open_s=0.2, open_max_s=0.2, recovery_s=0, probes_needed=1),
    )
    client.set(HOT, "v0")
    own_server.kill()
    outcomes: list[BaseException] = []
    for _ in range(10):
        with pytest.raises(redis.ConnectionError) as caught:
            client.get(HOT)
        outcomes.append(caught.value)
    assert {type(error).__name__ for error in outcomes[:2]} == {"ConnectionError"}
    assert all(isinstance(error, CircuitOpenError) for error in outcomes[-5:])
    with pytest.raises(CircuitOpenError):
        pipelined(client, "get", HOT)
    assert client.keyheat.stats()["breakers"]["the server"]["state"] == "open"
    own_server.restart()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert client.get(HOT) in {None, b"v0"}
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert client.keyheat.stats()["breakers"]["the server"]["state"] == "closed"


def test_a_breaker_of_one_node_leaves_the_others_alone(side: Side, own_cluster: EmbeddedCluster) -> None:
    client = side.protect(
        cluster_client("redis", side, own_cluster.addresses[0], socket_timeout=0.2),
        node_breaker=BreakerSettings(calls_min=3, error_rate=0.1, open_s=30, open_max_s=30),
    )
    keys = [f"k{number}" for number in range(60)]
    for key in keys:
        client.set(key, key)
    own_cluster.primaries[0].kill()
    failed: dict[str, int] = dict.fromkeys(keys, 0)
    began = time.monotonic()
    for _ in range(4):
        for key in keys:
            try:
                assert client.get(key) == key.encode()
            except redis.RedisError:
                failed[key] += 1
    states = {stats["state"] for stats in client.keyheat.stats()["breakers"].values()}
    assert states <= {"open", "closed"}
    assert "open" in states, (failed, time.monotonic() - began)
    assert {count > 0 for count in failed.values()} == {True, False}
    client.keyheat.node_breaker = False
    assert not client.keyheat.node_breaker


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"node_breaker": True}, "node_breaker: accepted: a keyheat.BreakerSettings"),
        ({"node_breaker": False}, "node_breaker: accepted"),
        ({"allowlist": ["a:*"]}, "allowlist: accepted: a keyheat.Allowlist"),
        ({"replica_reads": True, "plans": {"all": ["replica_reads"]}}, "replica_reads: accepted"),
        ({"copies": {}}, "copies: accepted"),
        ({"breaker": True}, "breaker: accepted"),
        ({"loading": {"loads_max": 3}}, "loading: accepted"),
        ({"lease": None}, "lease: accepted"),
        ({"plans": ["copies"]}, "plans: accepted: a mapping"),
        ({"plans": {"all": "copies"}}, "plans: accepted: a mapping"),
        ({"plans": {"all": None}}, "plans: accepted: a mapping"),
        ({"rules": "rules.toml"}, "rules: accepted: a list"),
        ({"rules": []}, "rules: accepted: a list"),
    ],
)
def test_a_wrong_object_is_named_and_the_client_stays_as_it_was(
    side: Side, valkey: str, settings: dict[str, Any], names: str
) -> None:
    plain = single_client("redis", side, valkey)
    before = type(plain)
    with pytest.raises(ConfigError, match=names):
        side.protect(plain, **settings)
    assert type(plain) is before
    side.wrap(plain)


def test_equal_settings_share_an_engine(side: Side, valkey: str) -> None:
    first, other = (
        side.protect(single_client("redis", side, valkey), node_breaker=BreakerSettings(calls_min=3))
        for _ in range(2)
    )
    assert raw(first).keyheat.binding is raw(other).keyheat.binding
    assert first.keyheat.explain(7)["key"] == b"7"
