"""Keys keyheat writes itself are told apart from the application's, whatever their prefix."""

from typing import Any

import redis

from keyheat.mitigate.copies import Copies
from keyheat.mitigate.hot_counter import CounterSettings, HotCounter
from keyheat.mitigate.lease_keys import keys_for
from keyheat.mitigate.own_keys import is_own_key
from keyheat.mitigate.replica_reads import ReplicaReads
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer


def test_all_a_counter_writes_but_its_own_key_is_told_apart(own_server: EmbeddedServer) -> None:
    with own_server.client() as client:
        for settings in (CounterSettings(), CounterSettings(shards=4, prefix=b"mine:")):
            with HotCounter(client, "page", settings) as counted:
                counted.incr()
                counted.flush()
                counted.incr()
                counted.flush()
        counted.fold()
        written: Any = client.keys("*")
        assert len(written) > 3
        assert [name for name in written if not is_own_key(name)] == [b"page"]


def test_leases_are_and_data_keys_are_not() -> None:
    for data in (b"item:1", b"{item}:1", b"a}b", b""):
        keys = keys_for(data, b"keyheat:")
        assert is_own_key(keys.lease)
        assert is_own_key(keys.wake)
        assert not is_own_key(data)


def test_no_remedy_takes_them(cluster: EmbeddedCluster) -> None:
    with (
        redis.RedisCluster("127.0.0.1", cluster.primaries[0].port) as client,
        Copies(client) as copies,
        ReplicaReads(client) as reads,
    ):
        remedies: tuple[Copies | ReplicaReads, ...] = (copies, reads)
        for remedy in remedies:
            assert not remedy.heat(b"keyheat:counter:{1}:m:page")
            assert not remedy.heat("keyheat:copy:{1}:c:item")
            assert remedy.heat("item")
