"""Through the proxy, a server or a Cluster looks like one server."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from keyheat.server.cluster import EmbeddedCluster


@pytest.fixture(params=["standalone", "cluster"])
def behind(request: pytest.FixtureRequest) -> str:
    """The kind of deployment behind the proxy."""
    return str(request.param)


@pytest.fixture
def proxy(behind: str, request: pytest.FixtureRequest, proxy_factory: Any) -> Any:
    """A proxy before a server, and before a Cluster."""
    if behind == "standalone":
        return proxy_factory(request.getfixturevalue("valkey"))
    cluster: EmbeddedCluster = request.getfixturevalue("cluster")
    return proxy_factory(cluster.url)


@pytest.fixture(params=[2, 3])
def r(proxy: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A redis-py client of either protocol."""
    with connect(proxy, protocol=request.param) as client:
        wait_ready(client)
        yield client


def connect(proxy: Any, **options: Any) -> Any:
    """A redis-py client on the proxy."""
    host, port = proxy.listen.rsplit(":", 1)
    return redis.Redis(host=host, port=int(port), **options)


def wait_ready(client: Any) -> None:
    """Wait until the proxy knows its upstream."""
    deadline = time.monotonic() + 10
    while True:
        try:
            client.exists("x")
        except redis.RedisError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


KEYS = [f"key:{i}" for i in range(50)]


def test_values_of_every_type_come_back(r: Any) -> None:
    assert r.set("s", b"\x00\r\n\xff") is True
    assert r.get("s") == b"\x00\r\n\xff"
    assert r.get("none") is None
    assert r.rpush("l", 1, 2, 3) == 3
    assert r.lrange("l", 0, -1) == [b"1", b"2", b"3"]
    assert r.hset("h", mapping={"a": 1, "b": 2}) == 2
    assert r.hgetall("h") == {b"a": b"1", b"b": b"2"}
    assert r.sadd("set", "a") == 1
    assert r.smembers("set") == {b"a"}
    assert r.zadd("z", {"m": 1.5}) == 1
    assert r.zscore("z", "m") == 1.5
    assert r.incrbyfloat("f", 0.25) == 0.25
    stream_id = r.xadd("x", {"f": "v"})
    assert r.xrange("x") == [(stream_id, {b"f": b"v"})]


def test_an_error_of_the_server_is_passed_on(r: Any) -> None:
    r.set("s", 1)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        r.lpush("s", 1)
    with pytest.raises(redis.ResponseError, match="unknown command 'NOSUCH'"):
        r.execute_command("NOSUCH", "a")
    with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'get' command"):
        r.execute_command("GET")


def test_commands_over_many_keys_are_split_and_merged(r: Any) -> None:
    assert r.mset({k: k for k in KEYS}) is True
    assert r.mget(*KEYS, "none") == [*(k.encode() for k in KEYS), None]
    assert r.exists(*KEYS, "none", KEYS[0]) == len(KEYS) + 1
    assert r.touch(*KEYS) == len(KEYS)
    assert r.delete(*KEYS[:10], "none") == 10
    assert r.unlink(*KEYS) == len(KEYS) - 10
    assert r.dbsize() == 0


def test_the_whole_keyspace_is_seen(r: Any) -> None:
    r.mset({k: k for k in KEYS})
    assert r.dbsize() == len(KEYS)
    assert sorted(r.keys("key:*")) == sorted(k.encode() for k in KEYS)
    assert sorted(r.scan_iter(count=7)) == sorted(k.encode() for k in KEYS)
    assert r.randomkey() in {k.encode() for k in KEYS}
    assert r.flushall() is True
    assert r.dbsize() == 0
    assert r.randomkey() is None


def test_pipelines_answer_in_order(r: Any) -> None:
    pipe = r.pipeline(transaction=False)
    for k in KEYS:
        pipe.set(k, k)
        pipe.get(k)
        pipe.ping()
    expected: list[Any] = []
    for k in KEYS:
        expected += [True, k.encode(), True]
    assert pipe.execute() == expected


def test_transactions_run_as_one(r: Any) -> None:
    pipe = r.pipeline()
    pipe.set("{t}a", 1).incr("{t}a").get("{t}a").ping()
    assert pipe.execute() == [True, 2, b"2", True]
    pipe = r.pipeline()
    assert pipe.execute() == []
    with pytest.raises(redis.ResponseError, match="EXEC without MULTI"):
        r.execute_command("EXEC")


def test_watch_sees_a_write_by_another(r: Any, proxy: Any) -> None:
    with connect(proxy) as other, r.pipeline() as pipe:
        r.set("{t}a", 1)
        pipe.watch("{t}a")
        assert pipe.get("{t}a") == b"1"
        other.set("{t}a", 2)
        pipe.multi()
        pipe.set("{t}a", 3)
        with pytest.raises(redis.WatchError):
            pipe.execute()
        assert r.get("{t}a") == b"2"
        pipe.watch("{t}a")
        pipe.multi()
        pipe.set("{t}a", 3)
        assert pipe.execute() == [True]


def test_a_transaction_with_an_error_is_discarded(r: Any) -> None:
    pipe = r.pipeline()
    pipe.set("{t}a", 1)
    pipe.execute_command("NOSUCH")
    with pytest.raises(redis.ResponseError):
        pipe.execute()
    assert r.get("{t}a") is None
    pipe = r.pipeline()
    pipe.set("{t}a", 1)
    pipe.execute_command("SUBSCRIBE", "c")
    with pytest.raises(redis.ResponseError, match="cannot be part of a transaction"):
        pipe.execute()
    assert r.get("{t}a") is None


def test_a_connection_is_given_back_after_exec(r: Any, proxy: Any) -> None:
    for _ in range(50):
        r.pipeline().set("{t}a", 1).execute()
    assert json.loads(proxy.stats())["upstreams"] < 20


def test_blocking_commands_wait_and_are_woken(r: Any, proxy: Any) -> None:
    assert r.blpop("queue", timeout=0.05) is None
    with connect(proxy) as other:
        timer = threading.Timer(0.1, lambda: other.rpush("queue", "job"))
        timer.start()
        assert r.blpop("queue", timeout=5) in ((b"queue", b"job"), [b"queue", b"job"])
        timer.join()
    # Others are not held up meanwhile, and neither is the same client afterwards.
    assert r.ping() is True


def test_a_client_that_leaves_a_blocking_command_takes_nothing(proxy: Any, r: Any) -> None:
    host, port = proxy.listen.split(":")
    with socket.create_connection((host, int(port))) as s:
        s.sendall(b"BLPOP queue 0\r\n")
        time.sleep(0.1)
    time.sleep(0.5)  # what may yet be on its way to it is waited for, a moment
    r.rpush("queue", "job")
    assert r.lpop("queue") == b"job"


def test_subscriptions_receive_what_is_published(r: Any) -> None:
    with r.pubsub() as p:
        p.subscribe("channel")
        p.psubscribe("pattern:*")
        kinds = [p.get_message(timeout=2)["type"] for _ in range(2)]
        assert kinds == ["subscribe", "psubscribe"]
        r.publish("channel", "one")
        r.publish("pattern:x", "two")
        got = [p.get_message(timeout=2)["data"] for _ in range(2)]
        assert got == [b"one", b"two"]
        p.unsubscribe()
        p.punsubscribe()
        kinds = [p.get_message(timeout=2)["type"] for _ in range(2)]
        assert kinds == ["unsubscribe", "punsubscribe"]


def test_scripts_run_where_their_keys_are(r: Any) -> None:
    script = r.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    for i in range(20):
        assert script(keys=[f"n:{i}"], args=[5]) == 5
    assert r.script_exists(script.sha) == [True]
    assert r.eval("return 7", 0) == 7


def test_keys_of_one_command_in_several_slots_are_refused_before_a_cluster(r: Any, behind: str) -> None:
    if behind == "standalone":
        r.set("a", 1)
        assert r.rename("a", "b") is True
        return
    with pytest.raises(redis.RedisError, match="same slot"):
        r.rename("a", "b")


@pytest.mark.parametrize(
    "command",
    ["PSYNC ? -1", "CLIENT TRACKING ON REDIRECT 1", "SCRIPT DEBUG YES", "CLIENT IMPORT-SOURCE ON"],
)
def test_what_is_not_supported_says_so(r: Any, command: str) -> None:
    with pytest.raises(redis.ResponseError, match="keyheat"):
        r.execute_command(*command.split())
    assert r.ping() is True


def test_the_client_sees_a_single_server(r: Any, behind: str) -> None:
    if behind == "standalone":
        with pytest.raises(redis.ResponseError, match="cluster support disabled"):
            r.execute_command("CLUSTER", "INFO")
    assert r.client_setname("me") is True
    assert r.client_getname() in ("me", b"me")
    assert r.client_id() > 0
    assert r.echo("x") == b"x"


def test_the_protocol_can_change_on_the_way(proxy: Any, r: Any) -> None:
    host, port = proxy.listen.split(":")
    r.hset("h", "f", "v")
    with socket.create_connection((host, int(port))) as s, s.makefile("rb") as f:
        s.sendall(b"HGETALL h\r\nHELLO 3\r\nHGETALL h\r\nHELLO 2\r\nHGETALL h\r\nQUIT\r\n")
        reply = f.read()
    assert reply.startswith(b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n%7\r\n")
    assert b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n*14\r\n" in reply
    assert reply.endswith(b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n+OK\r\n")


def test_databases_are_apart(valkey: str, proxy_factory: Any) -> None:
    proxy = proxy_factory(valkey)
    with connect(proxy) as zero, connect(proxy, db=3) as three:
        wait_ready(zero)
        zero.set("k", 0)
        three.set("k", 3)
        for _ in range(500):
            assert zero.get("k") == b"0"
            assert three.get("k") == b"3"
        with pytest.raises(redis.ResponseError, match="out of range"):
            zero.execute_command("SELECT", 999)
        assert zero.get("k") == b"0"


def test_a_password_upstream_is_asked_of_clients(own_server: Any, proxy_factory: Any) -> None:
    with own_server.client() as direct:
        direct.config_set("requirepass", "secret")
    proxy = proxy_factory(f"redis://:secret@{own_server.address}")
    with connect(proxy) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.get("k")
    with connect(proxy, password="wrong") as wrong, pytest.raises(redis.AuthenticationError):
        wrong.get("k")
    for protocol in (2, 3):
        with connect(proxy, password="secret", protocol=protocol) as right:
            wait_ready(right)
            assert right.set("k", 1) is True
            assert right.get("k") == b"1"


async def test_asyncio_clients_work(proxy: Any, r: Any) -> None:
    host, port = proxy.listen.split(":")
    for protocol in (2, 3):
        async with redis.asyncio.Redis(host=host, port=int(port), protocol=protocol) as client:
            await client.set("k", "v")
            assert await asyncio.gather(*(client.get("k") for _ in range(90))) == [b"v"] * 90
            async with client.pipeline() as pipe:
                pipe.incr("{t}n")
                pipe.incr("{t}n")
                assert await pipe.execute() == [1, 2]
            await client.delete("{t}n")
    assert r.get("k") == b"v"


def test_hot_reads_of_every_cacheable_type_are_answered_locally_and_stay_right(proxy: Any, r: Any) -> None:
    r.set("hot:s", "v")
    r.rpush("hot:l", "a", "b")
    r.hset("hot:h", mapping={"f": "1", "g": "2"})
    r.sadd("hot:set", "m")
    r.zadd("hot:z", {"m": 1.5, "n": 2})
    reads: dict[str, Callable[[], Any]] = {
        "get": lambda: r.get("hot:s"),
        "strlen": lambda: r.strlen("hot:s"),
        "lrange": lambda: r.lrange("hot:l", 0, -1),
        "hget": lambda: r.hget("hot:h", "f"),
        "hmget": lambda: r.hmget("hot:h", "f", "none"),
        "smembers": lambda: r.smembers("hot:set"),
        "zrange": lambda: r.zrange("hot:z", 0, -1, withscores=True),
        "zscore": lambda: r.zscore("hot:z", "m"),
        "missing": lambda: r.get("hot:none"),
    }
    first = {name: read() for name, read in reads.items()}
    deadline = time.monotonic() + 5
    while json.loads(proxy.stats())["local_hits"] < 3000 and time.monotonic() < deadline:
        for name, read in reads.items():
            assert read() == first[name], name
    assert json.loads(proxy.stats())["local_hits"] >= 3000
    r.set("hot:s", "longer")
    r.rpush("hot:l", "c")
    r.hset("hot:h", "f", "3")
    r.zadd("hot:z", {"m": 9})
    assert r.get("hot:s") == b"longer"
    assert r.strlen("hot:s") == 6
    assert r.lrange("hot:l", 0, -1) == [b"a", b"b", b"c"]
    assert r.hget("hot:h", "f") == b"3"
    assert r.zscore("hot:z", "m") == 9


def test_hash_fields_that_expire_are_not_served_past_their_time(proxy: Any, r: Any) -> None:
    r.hset("hot:h", mapping={"f": "1", "g": "2"})
    deadline = time.monotonic() + 5
    while json.loads(proxy.stats())["local_hits"] < 100 and time.monotonic() < deadline:
        r.hget("hot:h", "f")
    assert json.loads(proxy.stats())["local_hits"] >= 100
    r.execute_command("HPEXPIRE", "hot:h", 200, "FIELDS", 1, "f")
    ends = time.monotonic() + 0.2
    while r.hget("hot:h", "f") is not None:
        assert time.monotonic() < ends + 0.05
    assert r.hget("hot:h", "g") == b"2"
