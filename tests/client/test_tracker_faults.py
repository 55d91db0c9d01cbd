"""Tracking connections that are refused or redirected: no storm, a reason, and the other keys served on."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.sides import Side, hits, until_local

Eventually = Callable[..., Any]

# Without the pauses some thirty connections were opened in this time.
READ_FOR_S = 1.5


def stats(client: Any) -> dict[str, Any]:
    """What the engine says of itself."""
    told: dict[str, Any] = client.keyheat.stats()
    return told


def read_for(client: Any, *keys: str, seconds: float = READ_FOR_S) -> None:
    """Read for a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for key in keys:
            client.get(key)


def allow(node: EmbeddedServer, *rights: str) -> None:
    """Let a user do all but what `rights` take."""
    with node.client() as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", *rights)


def test_a_right_that_is_missing_opens_one_connection_and_no_storm(
    side: Side, own_server: EmbeddedServer
) -> None:
    allow(own_server, "-pttl")
    client = side.protected(own_server.address, username="limited", password="secret")
    read_for(client, "hot")
    told = stats(client)
    assert told["tracking_opened"] == 1
    assert "'pttl'" in told["not_caching"][0]
    assert hits(client) == 0


def test_a_cluster_without_exists_opens_one_connection_and_no_storm(
    side: Side, own_cluster: EmbeddedCluster
) -> None:
    for node in own_cluster.nodes:
        allow(node, "-exists")
    client = side.cluster(own_cluster.primaries[0].address, username="limited", password="secret")
    read_for(client, "hot")
    told = stats(client)
    assert told["tracking_opened"] == 1
    assert "'exists'" in told["not_caching"][0]
    assert hits(client) == 0


def test_a_right_that_is_given_back_is_noticed(sync: Side, own_server: EmbeddedServer) -> None:
    allow(own_server, "-pttl")
    client = sync.protected(own_server.address, username="limited", password="secret")
    read_for(client, "hot", seconds=0.5)
    assert stats(client)["not_caching"]
    allow(own_server, "+pttl")
    until_local(client, lambda: client.get("hot"), timeout_s=20)
    assert stats(client)["not_caching"] == []


def test_a_script_that_runs_long_is_waited_for_without_a_storm(
    sync: Side, own_server: EmbeddedServer, eventually: Eventually
) -> None:
    with own_server.client() as admin:
        admin.config_set("lua-time-limit", 20)
        client = sync.protected(own_server.address)
        until_local(client, lambda: client.get("hot"))
        opened = stats(client)["tracking_opened"]
        script = "local t = redis.call('TIME') while redis.call('TIME')[1] - t[1] < 3 do end"
        admin.eval(script, 0)
        assert stats(client)["tracking_opened"] - opened <= 8  # 20, 40, 80 ms…
        eventually(lambda: client.get("hot") is None)
        until_local(client, lambda: client.get("hot"))


class Move:
    """A slot on its way from one primary to another."""

    def __init__(self, cluster: EmbeddedCluster, key: str) -> None:
        self.source = cluster.owner(key)
        self.target = next(node for node in cluster.primaries if node is not self.source)
        self._nodes = cluster.primaries
        with self.source.client() as a, self.target.client() as b:
            self.slot = a.execute_command("CLUSTER KEYSLOT", key)
            self._ids = {
                node: each.execute_command("CLUSTER MYID").decode()
                for node, each in ((self.source, a), (self.target, b))
            }

    def begin(self) -> None:
        """From now on a key that is not at the source is asked for at the target (`ASK`)."""
        with self.source.client() as a, self.target.client() as b:
            b.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", self._ids[self.source])
            a.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", self._ids[self.target])

    def migrate(self, *keys: str) -> None:
        """Move keys."""
        host, port = self.target.address.split(":")
        with self.source.client() as a:
            for key in keys:
                a.execute_command("MIGRATE", host, port, key, 0, 5000)

    def end(self) -> None:
        """The target owns the slot (`MOVED`)."""
        for node in (self.target, *(each for each in self._nodes if each is not self.target)):
            with node.client() as each:
                each.execute_command("CLUSTER SETSLOT", self.slot, "NODE", self._ids[self.target])


@pytest.fixture
def move(own_cluster: EmbeddedCluster) -> Move:
    """The slot of `{moving}`, not on its way yet."""
    return Move(own_cluster, "{moving}")


def other_key(cluster: EmbeddedCluster, move: Move) -> str:
    """A key of another slot of the same primary."""
    keys = (f"other:{i}" for i in range(10_000))
    return next(key for key in keys if cluster.owner(key) is move.source)


def test_a_slot_that_moves_costs_no_tracking_connection(
    side: Side, own_cluster: EmbeddedCluster, move: Move
) -> None:
    other = other_key(own_cluster, move)
    client = side.cluster(own_cluster.primaries[0].address)
    client.set("{moving}there", "v")
    until_local(client, lambda: client.get("{moving}there"), lambda: client.get(other))
    before = stats(client)
    move.begin()
    read_for(client, "{moving}missing", other, seconds=1)  # behind ASK
    move.migrate("{moving}there")
    read_for(client, "{moving}there", "{moving}missing", other, seconds=1)
    move.end()
    read_for(client, "{moving}there", "{moving}missing", other, seconds=1)  # behind MOVED
    after = stats(client)
    assert after["tracking_lost"] == before["tracking_lost"]
    until_local(client, lambda: client.get(other), timeout_s=1)
    # At its new primary the key is kept again, once it has been left alone for its while.
    until_local(client, lambda: client.get("{moving}there"), timeout_s=20)
    client.set("{moving}there", "w")
    assert client.get("{moving}there") == b"w"
    with move.target.client() as elsewhere:
        elsewhere.set("{moving}there", "x")
    time.sleep(2 * stats(client)["max_staleness_ms"] / 1e3)
    assert client.get("{moving}there") == b"x"
