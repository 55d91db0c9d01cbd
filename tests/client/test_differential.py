"""Random commands through a protected client, reply by reply the same as an unprotected client's.

The oracle is a plain client of the same kind at another server. One thread asks both in lock step, so
every reply must be equal at once: what this client writes, its next read sees. The seed is printed.
"""

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from keyheat.server.embedded import EmbeddedServer
from tests.client.sides import Side, hits, shape

COMMANDS = 2500
KEYS_OF_A_KIND = 3
# Few enough to collide often, and of every kind of argument a client takes.
VALUES: list[Any] = ["a", "b", "7", "-3", 5, 2.5, b"\x00\x01", "ü", "", b"12", "x" * 300]
MEMBERS = ["a", "b", "c", "7"]
SCORES = [0, 1, 2.5, -1, "inf"]
Make = Callable[[random.Random, str], tuple[Any, ...]]


def pick(rng: random.Random, among: list[Any]) -> Any:
    """One of them."""
    return rng.choice(among)


STRING: dict[str, Make] = {
    "get": lambda _, k: ("get", k),
    "getrange": lambda r, k: ("getrange", k, r.randint(-3, 3), r.randint(-3, 5)),
    "strlen": lambda _, k: ("strlen", k),
    "getbit": lambda r, k: ("getbit", k, r.randint(0, 9)),
    "bitcount": lambda _, k: ("bitcount", k),
    "bitpos": lambda r, k: ("bitpos", k, r.randint(0, 1)),
    "exists": lambda _, k: ("exists", k),
    "type": lambda _, k: ("type", k),
    "set": lambda r, k: ("set", k, pick(r, VALUES)),
    "setnx": lambda r, k: ("setnx", k, pick(r, VALUES)),
    "append": lambda _, k: ("append", k, "z"),
    "setrange": lambda r, k: ("setrange", k, r.randint(0, 5), "q"),
    "setbit": lambda r, k: ("setbit", k, r.randint(0, 30), 1),
    "incr": lambda _, k: ("incr", k),
    "incrbyfloat": lambda _, k: ("incrbyfloat", k, 0.5),
    "getset": lambda r, k: ("getset", k, pick(r, VALUES)),
    "getdel": lambda _, k: ("getdel", k),
    "getex": lambda _, k: ("getex", k),
    "mset": lambda r, k: ("mset", {k: pick(r, VALUES), k + "'": "1"}),
    "mget": lambda _, k: ("mget", [k, "string:0"]),
    "delete": lambda _, k: ("delete", k),
    "expire": lambda _, k: ("expire", k, 1000),
    "expired": lambda _, k: ("pexpire", k, 0),
    "persist": lambda _, k: ("persist", k),
    "ttl": lambda _, k: ("ttl", k),
    "rename": lambda _, k: ("rename", k, "string:1"),
    "copy": lambda _, k: ("copy", k, "string:2", None, True),
    "eval": lambda _, k: ("eval", "return redis.call('SET', KEYS[1], ARGV[1])", 1, k, "scripted"),
    "eval_read": lambda _, k: ("eval", "return redis.call('GET', KEYS[1])", 1, k),
    "eval_hidden": lambda _, k: ("eval", f"return redis.call('SET', '{k}', 'hidden')", 0),
}
LIST: dict[str, Make] = {
    "lrange": lambda _, k: ("lrange", k, 0, -1),
    "lindex": lambda r, k: ("lindex", k, r.randint(-2, 2)),
    "llen": lambda _, k: ("llen", k),
    "lpos": lambda _, k: ("lpos", k, "a"),
    "rpush": lambda r, k: ("rpush", k, *r.choices(MEMBERS, k=2)),
    "lpush": lambda r, k: ("lpush", k, pick(r, VALUES)),
    "lpop": lambda _, k: ("lpop", k),
    "rpop": lambda _, k: ("rpop", k, 2),
    "lset": lambda _, k: ("lset", k, 0, "z"),
    "linsert": lambda _, k: ("linsert", k, "BEFORE", "a", "y"),
    "lrem": lambda _, k: ("lrem", k, 1, "a"),
    "ltrim": lambda _, k: ("ltrim", k, 0, 5),
    "lmove": lambda _, k: ("lmove", k, "list:0"),
    "sort": lambda _, k: ("sort", k, None, None, None, None, False, True, "list:1"),
    "blpop": lambda _, k: ("blpop", [k, "list:1"], 0.01),
    "delete": lambda _, k: ("delete", k),
}
SET: dict[str, Make] = {
    "smembers": lambda _, k: ("smembers", k),
    "sismember": lambda r, k: ("sismember", k, pick(r, MEMBERS)),
    "smismember": lambda _, k: ("smismember", k, MEMBERS),
    "scard": lambda _, k: ("scard", k),
    "sadd": lambda r, k: ("sadd", k, *r.choices(MEMBERS, k=2)),
    "srem": lambda r, k: ("srem", k, pick(r, MEMBERS)),
    "smove": lambda r, k: ("smove", k, "set:0", pick(r, MEMBERS)),
    "sunionstore": lambda _, k: ("sunionstore", k, ["set:0", "set:1"]),
    "sinter": lambda _, k: ("sinter", [k, "set:0"]),
    "delete": lambda _, k: ("unlink", k),
}
ZSET: dict[str, Make] = {
    "zrange": lambda _, k: ("zrange", k, 0, -1),
    "zrange_scores": lambda r, k: ("zrange", k, 0, -1, r.random() < 0.5, True),
    "zrange_int": lambda _, k: ("zrange", k, 0, -1, False, True, str),
    "zrangebyscore": lambda _, k: ("zrangebyscore", k, "-inf", 2),
    "zscore": lambda r, k: ("zscore", k, pick(r, MEMBERS)),
    "zmscore": lambda _, k: ("zmscore", k, MEMBERS),
    "zrank": lambda r, k: ("zrank", k, pick(r, MEMBERS)),
    "zcard": lambda _, k: ("zcard", k),
    "zcount": lambda _, k: ("zcount", k, 0, 2),
    "zadd": lambda r, k: ("zadd", k, {pick(r, MEMBERS): pick(r, SCORES)}),
    "zincrby": lambda r, k: ("zincrby", k, 1.5, pick(r, MEMBERS)),
    "zrem": lambda r, k: ("zrem", k, pick(r, MEMBERS)),
    "zpopmin": lambda _, k: ("zpopmin", k),
    "zunionstore": lambda _, k: ("zunionstore", k, ["zset:0", "zset:1"]),
    "zrangestore": lambda _, k: ("zrangestore", k, "zset:0", 0, 1),
    "delete": lambda _, k: ("delete", k),
}
HASH: dict[str, Make] = {
    "hget": lambda r, k: ("hget", k, pick(r, MEMBERS)),
    "hmget": lambda r, k: ("hmget", k, r.sample(MEMBERS, 2)),
    "hgetall": lambda _, k: ("hgetall", k),
    "hexists": lambda r, k: ("hexists", k, pick(r, MEMBERS)),
    "hlen": lambda _, k: ("hlen", k),
    "hstrlen": lambda r, k: ("hstrlen", k, pick(r, MEMBERS)),
    "hset": lambda r, k: ("hset", k, pick(r, MEMBERS), pick(r, VALUES)),
    "hincrby": lambda r, k: ("hincrby", k, pick(r, MEMBERS), 2),
    "hdel": lambda r, k: ("hdel", k, pick(r, MEMBERS)),
    "hexpire": lambda r, k: ("hexpire", k, 1000, pick(r, MEMBERS)),
    "hexpired": lambda r, k: ("hpexpire", k, 0, pick(r, MEMBERS)),
    "delete": lambda _, k: ("delete", k),
}
STREAM: dict[str, Make] = {
    "xrange": lambda _, k: ("xrange", k),
    "xrevrange": lambda _, k: ("xrevrange", k, "+", "-", 2),
    "xlen": lambda _, k: ("xlen", k),
    "xread": lambda _, k: ("xread", {k: "0"}),
    "xadd": lambda r, k: ("xadd", k, {"f": pick(r, VALUES)}, f"{r.randint(1, 10**9)}-1"),
    "xtrim": lambda _, k: ("xtrim", k, 3),
    "delete": lambda _, k: ("delete", k),
}
GEO: dict[str, Make] = {
    "geopos": lambda _, k: ("geopos", k, *MEMBERS),
    "geodist": lambda _, k: ("geodist", k, "a", "b"),
    "geohash": lambda _, k: ("geohash", k, "a"),
    "geosearch": lambda _, k: ("geosearch", k, None, 10, 10, "km", 5000),
    "geoadd": lambda r, k: ("geoadd", k, [r.randint(0, 20), r.randint(0, 20), pick(r, MEMBERS)]),
    "delete": lambda _, k: ("delete", k),
}
KINDS: dict[str, dict[str, Make]] = {
    "string": STRING,
    "list": LIST,
    "set": SET,
    "zset": ZSET,
    "hash": HASH,
    "stream": STREAM,
    "geo": GEO,
}
_READS = {
    *("get", "getrange", "strlen", "getbit", "bitcount", "bitpos", "exists", "type"),
    *("lrange", "lindex", "llen", "lpos", "smembers", "sismember", "smismember", "scard"),
    *("zrange", "zrange_scores", "zrange_int", "zrangebyscore", "zscore", "zmscore", "zrank", "zcard"),
    *("zcount", "hget", "hmget", "hgetall", "hexists", "hlen", "hstrlen", "xrange", "xrevrange", "xlen"),
    *("geopos", "geodist", "geohash", "geosearch"),
}


class Script:
    """Makes up what is said."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def command(self) -> tuple[Any, ...]:
        """A method's name and its arguments. Mostly reads: what is written all the time is not cached."""
        rng = self._rng
        kind = rng.choice(list(KINDS))
        # Now and then a command for a key of another type: errors have to be equal too.
        held = rng.choice(list(KINDS)) if rng.random() < 0.03 else kind
        makers = KINDS[kind]
        is_read = rng.random() < 0.9
        name = rng.choice([name for name in makers if (name in _READS) == is_read])
        return makers[name](rng, f"{held}:{rng.randrange(KEYS_OF_A_KIND)}")

    def batch(self) -> list[tuple[Any, ...]]:
        """Commands for one pipeline."""
        return [self.command() for _ in range(self._rng.randint(1, 6))]

    def chance(self, of: float) -> bool:
        """True now and then."""
        return self._rng.random() < of


def ask(client: Any, command: tuple[Any, ...]) -> Any:
    """What it says, errors included."""
    try:
        return shape(getattr(client, command[0])(*command[1:]))
    except redis.RedisError as error:
        return type(error), str(error)


def ask_together(client: Any, commands: list[tuple[Any, ...]], *, is_transaction: bool) -> Any:
    """What a pipeline says."""
    pipe = client.pipeline(transaction=is_transaction)
    for command in commands:
        getattr(pipe, command[0])(*command[1:])
    try:
        replies = pipe.execute(raise_on_error=False)
    except redis.RedisError as error:
        return type(error), str(error)
    return [(type(r), str(r)) if isinstance(r, Exception) else shape(r) for r in replies]


@pytest.fixture
def oracle(server_binary: str) -> Iterator[EmbeddedServer]:
    """Another server."""
    with EmbeddedServer(binary=server_binary) as running:
        yield running


@pytest.mark.parametrize("is_text", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("protocol", [2, 3], ids=["resp2", "resp3"])
def test_every_reply_is_the_one_without_protection(
    side: Side, own_server: EmbeddedServer, oracle: EmbeddedServer, protocol: int, is_text: bool
) -> None:
    seed = int(os.environ.get("KEYHEAT_SEED", random.randrange(1 << 30)))
    print(f"KEYHEAT_SEED={seed}")  # noqa: T201  shown where the test fails
    options: dict[str, Any] = {
        "protocol": protocol,
        "decode_responses": is_text,
        "encoding_errors": "replace",
    }
    client = side.protected(own_server.address, {"max_staleness": 2.0}, **options)
    # A second client of the same engine, so that writes by one and reads by the other alternate.
    others = [client, side.protected(own_server.address, {"max_staleness": 2.0}, **options)]
    plain = side.plain(oracle.address, **options)
    script = Script(seed)
    for number in range(COMMANDS):
        asked = others[script.chance(0.3)]
        if script.chance(0.05):
            commands, is_transaction = script.batch(), script.chance(0.5)
            found = ask_together(asked, commands, is_transaction=is_transaction)
            wanted = ask_together(plain, commands, is_transaction=is_transaction)
            assert found == wanted, f"seed {seed}, step {number}: pipeline {commands}"
            continue
        command = script.command()
        found, wanted = ask(asked, command), ask(plain, command)
        assert found == wanted, f"seed {seed}, step {number}: {command}"
    stats = client.keyheat.stats()
    assert hits(client) > COMMANDS / 10, stats
