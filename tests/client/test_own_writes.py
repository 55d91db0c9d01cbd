"""What this process writes, its next read returns: whoever writes, whichever way.

Here the tracking connection is held up, so that no invalidation can arrive, and the staleness bound is
long: only what the client itself notes about its writes keeps the old value from being served.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from keyheat.client.pipelines import queued
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.libraries import cluster_client
from tests.client.relays import FaultyRelay
from tests.client.sides import KINDS, Side, hits, is_local, raw, side_of, until_local

LONG = {"max_staleness": 5.0}
Eventually = Callable[..., Any]

# Stands for what DUMP says of the value 2.
DUMPED = b"dumped"
# A key of its own for each: how it is made, how it is read, what changes it. `K` stands for the key.
CHANGES: dict[str, tuple[list[str], list[str], list[Any]]] = {
    "set": (["SET K 1"], ["GET K"], ["SET", "K", "2"]),
    "set_get": (["SET K 1"], ["GET K"], ["SET", "K", "2", "GET"]),
    "setex": (["SET K 1"], ["GET K"], ["SETEX", "K", 100, "2"]),
    "psetex": (["SET K 1"], ["GET K"], ["PSETEX", "K", 100_000, "2"]),
    "getset": (["SET K 1"], ["GET K"], ["GETSET", "K", "2"]),
    "getdel": (["SET K 1"], ["GET K"], ["GETDEL", "K"]),
    "append": (["SET K 1"], ["GET K", "STRLEN K"], ["APPEND", "K", "2"]),
    "incr": (["SET K 1"], ["GET K"], ["INCR", "K"]),
    "incrbyfloat": (["SET K 1"], ["GET K"], ["INCRBYFLOAT", "K", "0.5"]),
    "setrange": (["SET K 1"], ["GETRANGE K 0 -1"], ["SETRANGE", "K", 1, "2"]),
    "setbit": (["SET K 1"], ["GETBIT K 3", "BITCOUNT K"], ["SETBIT", "K", 4, 1]),
    "bitfield": (["SET K 1"], ["GET K"], ["BITFIELD", "K", "SET", "u8", 0, 7]),
    "mset": (["SET K 1"], ["GET K"], ["MSET", "other", "1", "K", "2"]),
    "del": (["SET K 1"], ["GET K", "EXISTS K", "TYPE K"], ["DEL", "other", "K"]),
    "unlink": (["SET K 1"], ["GET K"], ["UNLINK", "K"]),
    "expire_now": (["SET K 1"], ["GET K"], ["PEXPIRE", "K", 0]),
    "expireat_past": (["SET K 1"], ["GET K"], ["EXPIREAT", "K", 1]),
    "rename_from": (["SET K 1"], ["GET K"], ["RENAME", "K", "K:away"]),
    "rename_to": (["SET K 1", "SET K:src 2"], ["GET K"], ["RENAME", "K:src", "K"]),
    "copy": (["SET K 1", "SET K:src 2"], ["GET K"], ["COPY", "K:src", "K", "REPLACE"]),
    "move": (["SET K 1"], ["GET K"], ["MOVE", "K", 9]),
    "restore": (["SET K 1"], ["GET K"], ["RESTORE", "K", 0, DUMPED, "REPLACE"]),
    "bitop": (["SET K 1", "SET K:src 2"], ["GET K"], ["BITOP", "NOT", "K", "K:src"]),
    "created": ([], ["GET K", "EXISTS K"], ["SET", "K", "1"]),
    "hset": (["HSET K f 1 g 2"], ["HGET K f", "HMGET K f g"], ["HSET", "K", "f", "9"]),
    "hincrby": (["HSET K f 1"], ["HGET K f"], ["HINCRBY", "K", "f", "9"]),
    "hdel": (["HSET K f 1 g 2"], ["HGET K f", "HEXISTS K f"], ["HDEL", "K", "f"]),
    "rpush": (["RPUSH K a b"], ["LRANGE K 0 -1", "LLEN K"], ["RPUSH", "K", "c"]),
    "lpop": (["RPUSH K a b"], ["LRANGE K 0 -1", "LINDEX K 0"], ["LPOP", "K"]),
    "lset": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LSET", "K", 0, "z"]),
    "linsert": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LINSERT", "K", "BEFORE", "b", "z"]),
    "lrem": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LREM", "K", 0, "a"]),
    "ltrim": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LTRIM", "K", 0, 0]),
    "lmove_from": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LMOVE", "K", "K:to", "LEFT", "LEFT"]),
    "lmove_to": (
        ["RPUSH K a", "RPUSH K:src b"],
        ["LRANGE K 0 -1"],
        ["LMOVE", "K:src", "K", "LEFT", "LEFT"],
    ),
    "lmpop": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["LMPOP", 2, "none", "K", "LEFT"]),
    "blpop": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["BLPOP", "none", "K", 1]),
    "blmpop": (["RPUSH K a b"], ["LRANGE K 0 -1"], ["BLMPOP", 1, 2, "none", "K", "LEFT"]),
    "sort_store": (["RPUSH K 2 1"], ["LRANGE K 0 -1"], ["SORT", "K", "STORE", "K"]),
    "sadd": (["SADD K a"], ["SMEMBERS K", "SCARD K"], ["SADD", "K", "b"]),
    "spop": (["SADD K a"], ["SISMEMBER K a"], ["SPOP", "K"]),
    "smove": (["SADD K a", "SADD K:src b"], ["SMEMBERS K"], ["SMOVE", "K:src", "K", "b"]),
    "sunionstore": (["SADD K a", "SADD K:src b"], ["SMEMBERS K"], ["SUNIONSTORE", "K", "K", "K:src"]),
    "zadd": (["ZADD K 1 a"], ["ZRANGE K 0 -1 WITHSCORES", "ZSCORE K a"], ["ZADD", "K", 2, "a"]),
    "zincrby": (["ZADD K 1 a"], ["ZSCORE K a"], ["ZINCRBY", "K", 2, "a"]),
    "zpopmin": (["ZADD K 1 a"], ["ZCARD K"], ["ZPOPMIN", "K"]),
    "zmpop": (["ZADD K 1 a"], ["ZCARD K"], ["ZMPOP", 2, "none", "K", "MIN"]),
    "bzpopmin": (["ZADD K 1 a"], ["ZCARD K"], ["BZPOPMIN", "none", "K", 1]),
    "zunionstore": (
        ["ZADD K 1 a", "ZADD K:src 1 b"],
        ["ZRANGE K 0 -1"],
        ["ZUNIONSTORE", "K", 2, "K", "K:src"],
    ),
    "zrangestore": (
        ["ZADD K 1 a", "ZADD K:src 1 b"],
        ["ZRANGE K 0 -1"],
        ["ZRANGESTORE", "K", "K:src", 0, -1],
    ),
    "zremrangebyrank": (["ZADD K 1 a"], ["ZCARD K"], ["ZREMRANGEBYRANK", "K", 0, -1]),
    "geoadd": (["GEOADD K 1 1 a"], ["GEOPOS K a"], ["GEOADD", "K", 2, 2, "a"]),
    "georadius_store": (
        ["GEOADD K 1 1 a", "GEOADD K:src 1 1 b"],
        ["ZRANGE K 0 -1"],
        ["GEORADIUS", "K:src", 1, 1, 10, "km", "STORE", "K"],
    ),
    "geosearchstore": (
        ["GEOADD K 1 1 a", "GEOADD K:src 1 1 b"],
        ["ZRANGE K 0 -1"],
        ["GEOSEARCHSTORE", "K", "K:src", "FROMMEMBER", "b", "BYRADIUS", 1, "km"],
    ),
    "xadd": (["XADD K 1-1 f v"], ["XRANGE K - +", "XLEN K"], ["XADD", "K", "2-1", "f", "v"]),
    "xdel": (["XADD K 1-1 f v"], ["XRANGE K - +"], ["XDEL", "K", "1-1"]),
    "xtrim": (["XADD K 1-1 f v"], ["XLEN K"], ["XTRIM", "K", "MAXLEN", 0]),
    "pfmerge": (["SET other2 1"], ["EXISTS K"], ["PFMERGE", "K"]),
    "eval": (["SET K 1"], ["GET K"], ["EVAL", "return redis.call('set', KEYS[1], 2)", 1, "K"]),
    "eval_lower_case": (["SET K 1"], ["GET K"], ["eval", "return redis.call('set', KEYS[1], 2)", 1, "K"]),
    "set_memoryview": (["SET K 1"], ["GET K"], ["SET", "K", memoryview(b"2")]),
    "append_memoryview": (["SET K 1"], ["GET K"], ["APPEND", "K", memoryview(b"2")]),
    "set_bytearray": (["SET K 1"], ["GET K"], ["SET", "K", bytearray(b"2")]),
    "set_float": (["SET K 1"], ["GET K"], ["SET", "K", 2.5]),
    "set_as_bytes": (["SET K 1"], ["GET K"], [b"SET", b"K", b"2"]),
}


def named(words: list[Any], key: str) -> list[Any]:
    """The words with the key in the place of `K`."""

    def one(word: Any) -> Any:
        if isinstance(word, bytes):
            return key.encode() if word == b"K" else word
        is_key = isinstance(word, str) and (word == "K" or word.startswith("K:"))
        return key + word[1:] if is_key else word

    return [one(word) for word in words]


class Held:
    """A protected client whose reads are local and whose tracking connection is held up."""

    def __init__(self, side: Side, relay: FaultyRelay, **options: Any) -> None:
        self.side = side
        self.relay = relay
        self.client = side.protected(relay.address, LONG, **options)

    def hold(self, *reads: Callable[[], Any]) -> None:
        """Make the reads local, then hold invalidations back."""
        until_local(self.client, *reads)
        self.relay.freeze_tracking()


@pytest.fixture
def held(side: Side, relay: FaultyRelay) -> Iterator[Held]:
    """A client of each kind."""
    made = Held(side, relay)
    yield made
    relay.thaw()


def test_without_a_note_the_old_value_is_served(held: Held, own_server: EmbeddedServer) -> None:
    # What the others rest on: here a write from elsewhere is indeed not seen.
    held.client.set("hot", "1")
    held.hold(lambda: held.client.get("hot"))
    with own_server.client() as direct:
        direct.set("hot", "2")
    assert held.client.get("hot") == b"1"
    assert is_local(held.client, lambda: held.client.get("hot"))


def test_every_writing_command_is_seen_by_the_next_read(held: Held, own_server: EmbeddedServer) -> None:
    client = held.client
    reads: list[list[Any]] = []
    for name, (made, read, _) in CHANGES.items():
        for line in made:
            client.execute_command(*named(line.split(), name))
        reads += [named(line.split(), name) for line in read]
    client.set("dumped", "2")
    dumped = client.dump("dumped")
    held.hold(*(lambda read=read: client.execute_command(*read) for read in reads))
    unseen = []
    with own_server.client() as direct:
        for name, (_, read, change) in CHANGES.items():
            client.execute_command(*(dumped if word is DUMPED else word for word in named(change, name)))
            # Twice: a command that cannot be told may have the very next read sent in any case.
            for line in read * 2:
                words = named(line.split(), name)
                if client.execute_command(*words) != direct.execute_command(*words):
                    unseen.append((name, line))
    assert unseen == []


PIPELINES = {
    "transaction": {"transaction": True},
    "no transaction": {"transaction": False},
}


@pytest.mark.parametrize("how", PIPELINES)
def test_writes_in_a_pipeline_are_seen_by_the_next_read(held: Held, how: str) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    pipe = client.pipeline(**PIPELINES[how])
    pipe.set("hot", "2")
    client.get("hot")  # after it was queued and before it is sent
    pipe.get("hot")
    assert pipe.execute() == [True, b"2"]
    assert client.get("hot") == b"2"


def test_a_failing_pipeline_has_its_writes_seen(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    pipe = client.pipeline(transaction=False)
    pipe.set("hot", "2")
    pipe.lpush("hot", "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        pipe.execute()
    assert client.get("hot") == b"2"


def test_immediate_writes_of_a_watching_pipeline_are_seen(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    client.set("other", "1")
    held.hold(lambda: client.get("hot"))
    pipe = client.pipeline()
    pipe.watch("other")
    pipe.set("hot", "2")
    assert client.get("hot") == b"2"
    pipe.unwatch()
    pipe.reset()


@contextmanager
def one_connection(held: Held) -> Iterator[Any]:
    """A client with one connection, of the held one."""
    one = held.client.client()
    try:
        yield one
    finally:
        one.aclose() if held.side.is_aio else one.close()


def test_a_transaction_by_hand_is_seen_after_its_exec(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    with one_connection(held) as one:
        one.execute_command("MULTI")
        one.set("hot", "2")
        # Others go on reading between the queueing and EXEC, and what they read is right by then.
        for _ in range(5):
            assert client.get("hot") == b"1"
        one.execute_command("EXEC")
        assert client.get("hot") == b"2"


def test_flushes_are_seen(held: Held) -> None:
    client = held.client
    for flush in ("flushdb", "flushall"):
        held.relay.thaw()
        client.set("hot", "1")
        held.hold(lambda: client.get("hot"))
        getattr(client, flush)()
        assert client.get("hot") is None


def test_a_script_object_is_seen(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    client.register_script("return redis.call('set', KEYS[1], ARGV[1])")(keys=["hot"], args=["2"])
    assert client.get("hot") == b"2"


def test_a_script_without_keys_is_seen(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    client.eval("return redis.call('set', 'hot', '2')", 0)
    assert client.get("hot") == b"2"


def test_a_function_is_seen(held: Held) -> None:
    client = held.client
    client.function_load(
        "#!lua name=lib\n"
        "redis.register_function('put', function(k, a) return redis.call('SET', k[1], a[1]) end)"
    )
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    client.fcall("put", 1, "hot", "2")
    assert client.get("hot") == b"2"


def test_a_lock_taken_and_released_is_seen(held: Held) -> None:
    client = held.client
    held.hold(lambda: client.get("lock"), lambda: client.exists("lock"))
    lock = client.lock("lock", timeout=30)
    assert lock.acquire() is True
    assert client.get("lock") is not None
    assert lock.locked()
    lock.release()
    assert client.get("lock") is None


def test_a_command_of_two_words_is_seen(held: Held) -> None:
    client = held.client
    client.xadd("hot", {"f": "v"}, id="1-1")
    held.hold(lambda: client.type("hot"), lambda: client.xlen("hot"))
    client.delete("hot")
    client.execute_command("XGROUP CREATE", "hot", "group", "0", "MKSTREAM")
    assert client.type("hot") == b"stream"
    assert client.xlen("hot") == 0


def test_an_unknown_command_voids_what_it_names(held: Held) -> None:
    client = held.client
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    with pytest.raises(redis.ResponseError, match="unknown command"):
        client.execute_command("NOSUCHCOMMAND", "hot")
    assert not is_local(client, lambda: client.get("hot"))


def test_a_write_by_one_client_is_seen_by_all_of_its_engine(held: Held, side: Side) -> None:
    client, relay = held.client, held.relay
    others = [
        side.protected(relay.address, LONG),
        side.protected(relay.address, LONG, decode_responses=True),
        side.protected(relay.address, LONG, protocol=2),
    ]
    client.set("hot", "1")
    everyone = [client, *others]
    held.hold(*(lambda each=each: each.get("hot") for each in everyone))
    for number, writer in enumerate(everyone, start=2):
        writer.set("hot", number)
        for reader in everyone:
            assert as_text(reader.get("hot")) == str(number)


def as_text(value: Any) -> Any:
    """Text, decoded or not."""
    return value.decode() if isinstance(value, bytes) else value


def test_a_blocking_and_an_asyncio_client_see_each_others_writes(relay: FaultyRelay) -> None:
    with side_of("sync") as blocking, side_of("aio") as aio:
        aio.settings = blocking.settings
        one, two = blocking.protected(relay.address, LONG), aio.protected(relay.address, LONG)
        one.set("hot", "1")
        until_local(one, lambda: one.get("hot"), lambda: two.get("hot"))
        relay.freeze_tracking()
        one.set("hot", "2")
        assert two.get("hot") == b"2"
        two.set("hot", "3")
        assert one.get("hot") == b"3"
        relay.thaw()


OTHER_ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "other settings": ({"max_staleness": 4.0}, {}),
    "another user": (LONG, {"username": "other", "password": "secret"}),
    "another database": (LONG, {"db": 1}),
}


@pytest.mark.parametrize("what", OTHER_ENGINES)
def test_a_write_by_a_client_of_another_engine_of_the_server_is_seen(
    held: Held, own_server: EmbeddedServer, what: str
) -> None:
    settings, options = OTHER_ENGINES[what]
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "other", "on", ">secret", "~*", "+@all")
    client = held.client
    client.set("hot", "1")
    other = held.side.protected(held.relay.address, settings, **options)
    held.hold(lambda: client.get("hot"))
    if "db" in options:
        other.copy("src", "hot", destination_db=0, replace=True) if other.set("src", "2") else None
    else:
        other.set("hot", "2")
    assert client.get("hot") == b"2"


def test_a_flush_through_another_database_is_seen(held: Held) -> None:
    client = held.client
    other = held.side.protected(held.relay.address, LONG, db=1)
    client.set("hot", "1")
    held.hold(lambda: client.get("hot"))
    other.flushall()
    assert client.get("hot") is None


def test_reads_under_way_in_threads_never_bring_an_overwritten_value_back(relay: FaultyRelay) -> None:
    # Eight readers keep fills and coalesced reads under way while one thread writes and reads back.
    with side_of("sync") as blocking:
        client = blocking.protected(relay.address, LONG)
        client.set("hot", 0)
        over = threading.Event()
        failures: list[Any] = []

        def read_on() -> None:
            while not over.is_set():
                client.get("hot")

        readers = [threading.Thread(target=read_on) for _ in range(8)]
        for each in readers:
            each.start()
        number, until = 0, time.monotonic() + 2
        while time.monotonic() < until:
            number += 1
            client.set("hot", number)
            if int(client.get("hot")) != number:
                failures.append(number)
        over.set()
        for each in readers:
            each.join()
        assert failures == []
        until_local(client, lambda: client.get("hot"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_through_a_cluster_client_is_seen_at_once(cluster: EmbeddedCluster, kind: str) -> None:
    with side_of(kind) as side:
        client = side.cluster(cluster.primaries[0].address, LONG)
        client.set("hot", 0)
        until_local(client, lambda: client.get("hot"))
        before = hits(client)
        for number in range(1, 300):
            client.set("hot", number)
            for _ in range(4):
                assert int(client.get("hot")) == number
        for number in range(300, 400):
            pipe = client.pipeline()
            pipe.set("hot", number)
            client.get("hot")
            pipe.execute()
            for _ in range(4):
                assert int(client.get("hot")) == number
        assert hits(client) > before


@pytest.mark.parametrize("library", ["redis", "valkey"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_in_a_cluster_pipeline_is_known(cluster: EmbeddedCluster, kind: str, library: str) -> None:
    with side_of(kind) as side:
        client = side.protect(cluster_client(library, side, cluster.primaries[0].address))
        pipe = client.pipeline()
        pipe.set("a", 1)
        pipe.set("b", 2)
        assert [command[:2] for command in queued(raw(pipe))] == [("SET", "a"), ("SET", "b")]
        assert pipe.execute() == [True, True]
