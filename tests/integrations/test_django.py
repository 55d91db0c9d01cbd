"""A cache of Django's stays what it was, and its hot keys are answered from memory."""

import asyncio
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache.backends.redis import RedisCache, RedisCacheClient, RedisSerializer  # type: ignore[import-untyped]
from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]

from keyheat.client import ClientSettings
from keyheat.integrations import _django_options
from keyheat.server.embedded import EmbeddedServer
from tests.integrations.conftest import Caches
from tests.integrations.hot import RULES, hits, until_local

BACKEND = "keyheat.integrations.django.KeyheatCache"
DJANGOS = "django.core.cache.backends.redis.RedisCache"


def protected(address: str, *, backend: str = BACKEND, **keyheat: Any) -> dict[str, Any]:
    """One cache's settings."""
    return {"BACKEND": backend, "LOCATION": f"redis://{address}", "OPTIONS": {"KEYHEAT": keyheat}}


class TextSerializer:
    """Not pickle: a serializer of the application's own."""

    def dumps(self, value: object) -> bytes:
        return f"text:{value}".encode()

    def loads(self, data: bytes) -> str:
        return data.decode().removeprefix("text:")


# ---------------------------------------------------------------- hot keys


def test_a_hot_key_is_answered_from_memory(caches: Caches, valkey: str) -> None:
    cache = caches(default=protected(valkey))["default"]
    cache.set("page", {"title": "sale"})
    until_local(cache.keyheat, lambda: cache.get("page"))
    assert cache.get("page") == {"title": "sale"}
    told = cache.keyheat.explain(cache.make_key("page"))
    assert told["is_hot"]
    assert told["local_hits"] > 0


def test_each_get_gives_an_object_of_its_own(caches: Caches, valkey: str) -> None:
    cache = caches(default=protected(valkey))["default"]
    cache.set("basket", [1, 2])
    until_local(cache.keyheat, lambda: cache.get("basket"))
    before = hits(cache.keyheat)
    for _ in range(50):
        found = cache.get("basket")
        assert found == [1, 2]
        found.append(3)
    assert hits(cache.keyheat) > before


def test_what_this_process_writes_its_next_read_sees(caches: Caches, valkey: str) -> None:
    cache = caches(default=protected(valkey, max_staleness=5.0))["default"]
    cache.set("n", 0)
    until_local(cache.keyheat, lambda: cache.get("n"))
    for number in range(1, 100):
        assert cache.incr("n") == number
        assert cache.get("n") == cache.get("n") == number
    cache.set_many({"n": "many", "m": 1})
    assert cache.get("n") == "many"
    assert cache.add("n", "added") is False
    cache.delete("n")
    assert cache.get("n") is None
    assert cache.get_or_set("n", lambda: "made") == "made"
    assert cache.get("n") == "made"
    cache.delete_many(["n", "m"])
    assert cache.get("n", "none") == "none"
    cache.set("n", 1)
    cache.incr_version("n")
    assert cache.get("n") is None
    assert cache.get("n", version=2) == 1


def test_touch_shortens_the_life_of_what_is_kept(
    caches: Caches, valkey: str, eventually: Callable[..., Any]
) -> None:
    cache = caches(default=protected(valkey, max_staleness=5.0))["default"]
    cache.set("n", "x", timeout=100)
    until_local(cache.keyheat, lambda: cache.get("n"))
    assert cache.touch("n", 1)
    until_local(cache.keyheat, lambda: cache.get("n"))
    eventually(lambda: cache.get("n") is None, timeout_s=3)
    assert cache.touch("n") is False


def test_a_cleared_cache_is_empty(caches: Caches, valkey: str) -> None:
    cache = caches(default=protected(valkey, max_staleness=5.0))["default"]
    for number in range(20):
        cache.set("n", number)
        until_local(cache.keyheat, lambda: cache.get("n"))
        cache.clear()
        assert cache.get("n") is None


def test_a_write_made_elsewhere_is_seen_within_the_bound(
    caches: Caches, valkey: str, server: EmbeddedServer
) -> None:
    cache = caches(default=protected(valkey, max_staleness=timedelta(milliseconds=100)))["default"]
    key = cache.make_key("n")
    cache.set("n", 0)
    until_local(cache.keyheat, lambda: cache.get("n"))
    with server.client() as other:
        for number in range(1, 20):
            other.set(key, number)
            written = time.monotonic()
            while cache.get("n") != number:
                assert time.monotonic() - written <= 0.100
    assert hits(cache.keyheat) > 0


def test_asynchronous_methods_do_the_same(caches: Caches, valkey: str) -> None:
    cache = caches(default=protected(valkey))["default"]

    async def run() -> None:
        await cache.aset("n", [1])
        until = time.monotonic() + 10
        while not hits(cache.keyheat):
            assert await cache.aget("n") == [1]
            assert time.monotonic() < until
        assert await cache.aincr("count") == 1

    with pytest.raises(ValueError, match="not found"):
        asyncio.run(run())

    async def more() -> None:
        assert await cache.aget_or_set("made", 7) == 7
        await cache.aset_many({"a": 1, "b": 2})
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        assert await cache.adelete("a") is True
        assert await cache.ahas_key("a") is False

    asyncio.run(more())


# ---------------------------------------------------------------- it is Django's


def test_it_is_djangos_cache_and_client(caches: Caches, valkey: str) -> None:
    import redis  # noqa: PLC0415

    cache = caches(default=protected(valkey))["default"]
    assert isinstance(cache, RedisCache)
    assert isinstance(cache._cache, RedisCacheClient)
    assert isinstance(cache._cache.get_client(), redis.Redis)
    assert cache._cache.get_client(write=True) is cache._cache.get_client()


def test_without_options_it_works_as_it_is(caches: Caches, valkey: str) -> None:
    cache = caches(default={"BACKEND": BACKEND, "LOCATION": f"redis://{valkey}"})["default"]
    cache.set("n", 1)
    assert cache.get("n") == 1
    assert cache.keyheat.stats()["max_staleness_ms"] == 100.0


def test_djangos_options_keep_their_meaning(caches: Caches, valkey: str) -> None:
    import redis  # noqa: PLC0415

    made = protected(valkey)
    made["LOCATION"] = [f"redis://{valkey}/3"]
    made["KEY_PREFIX"] = "shop"
    made["VERSION"] = 4
    made["TIMEOUT"] = 70
    made["OPTIONS"] |= {
        "serializer": "tests.integrations.test_django.TextSerializer",
        "pool_class": "redis.BlockingConnectionPool",
        "parser_class": "redis._parsers._RESP3Parser",
        "protocol": 3,
        "max_connections": 2,
        "socket_timeout": 5,
    }
    cache = caches(default=made)["default"]
    cache.set("n", 9)
    until_local(cache.keyheat, lambda: cache.get("n"))
    client = cache._cache.get_client()
    pool = client.connection_pool
    assert isinstance(pool, redis.BlockingConnectionPool)
    assert (pool.max_connections, pool.connection_kwargs["socket_timeout"]) == (2, 5)
    assert client.get("shop:4:n") == b"text:9"
    assert client.ttl("shop:4:n") in (69, 70)
    assert cache.get("n") == "9"
    assert client.connection_pool.connection_kwargs["db"] == 3


def test_any_sequence_of_calls_answers_as_djangos_own(caches: Caches, valkey: str) -> None:
    found = caches(
        plain={"BACKEND": DJANGOS, "LOCATION": f"redis://{valkey}/1"},
        hot=protected(f"{valkey}/2", max_staleness=5.0),
    )
    plain, hot = found["plain"], found["hot"]
    for seed in range(4):
        chance = random.Random(seed)
        for _ in range(1_500):
            method, args = a_call(chance)
            assert outcome(plain, method, args) == outcome(hot, method, args), (seed, method, args)
    assert hits(hot.keyheat) > 0


def a_call(chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    """One call of a cache's method, reads mostly."""
    key = chance.choice("ab")
    value = chance.choice([1, 2, "text", [1, {"x": None}], b"\x00", 1.5, True])
    writes: list[tuple[str, tuple[Any, ...]]] = [
        ("set", (key, value)),
        ("set", (key, value, 0)),
        ("add", (key, value)),
        ("incr", (key,)),
        ("decr", (key, 2)),
        ("delete", (key,)),
        ("touch", (key, 50)),
        ("set_many", ({"a": value, "b": 3},)),
        ("get_or_set", (key, value)),
        ("delete_many", (["a", "b"],)),
        ("clear", ()),
    ]
    reads: list[tuple[str, tuple[Any, ...]]] = [
        ("get", (key,)),
        ("get", (key, "default")),
        ("has_key", (key,)),
        ("get_many", (["a", "b", "c"],)),
    ]
    return chance.choice(writes if chance.random() < 0.05 else reads)


def outcome(cache: Any, method: str, args: tuple[Any, ...]) -> tuple[str, Any]:
    """What a call returned or raised, with its type."""
    try:
        value = getattr(cache, method)(*args)
    except Exception as error:  # noqa: BLE001
        return type(error).__name__, str(error)
    return type(value).__name__, value


# ---------------------------------------------------------------- threads, processes, replicas


def test_a_new_thread_finds_what_is_hot_already(caches: Caches, valkey: str) -> None:
    found = caches(default=protected(valkey))
    found["default"].set("n", 1)
    until_local(found["default"].keyheat, lambda: found["default"].get("n"))
    engine = found["default"].keyheat.binding
    told: list[Any] = []

    def request() -> None:
        cache = found["default"]
        before = hits(cache.keyheat)
        cache.get("n")
        told.append((cache.keyheat.binding is engine, hits(cache.keyheat) > before))

    for _ in range(3):
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
    assert told == [(True, True)] * 3


def test_an_engine_outlives_the_cache_objects_but_not_the_settings(caches: Caches, valkey: str) -> None:
    found = caches(default=protected(valkey))
    binding = found["default"].keyheat.binding
    del found["default"]
    assert found["default"].keyheat.binding is binding
    assert binding in _django_options._engines
    caches(default={"BACKEND": "django.core.cache.backends.locmem.LocMemCache"})
    assert binding not in _django_options._engines


FORKS = """
import os, sys, time
from django.conf import settings  # type: ignore[import-untyped]
settings.configure(CACHES={"default": {"BACKEND": "keyheat.integrations.django.KeyheatCache",
    "LOCATION": sys.argv[1], "OPTIONS": {"KEYHEAT": {"rules": %r}}}})
from django.core.cache import cache  # type: ignore[import-untyped]
def local():
    until = time.monotonic() + 10
    while not cache.keyheat.stats()["local_hits"]:
        assert cache.get("n") == [1] and time.monotonic() < until
cache.set("n", [1])
local()
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        status = 1
        try:
            assert cache.keyheat.stats()["local_hits"] == 0
            local()
            cache.incr("count")
            status = 0
        finally:
            os._exit(status)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
local()
print(cache.get("count"))
"""


def test_a_forked_worker_starts_empty_and_finds_its_own(valkey: str, server: EmbeddedServer) -> None:
    with server.client() as client:
        client.set(":1:count", 0)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS % RULES, f"redis://{valkey}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("2", 0), done.stderr


def test_reads_from_a_replica_always_go_to_it(
    caches: Caches, own_server: EmbeddedServer, server_binary: str, eventually: Callable[..., Any]
) -> None:
    with EmbeddedServer({"replicaof": f"127.0.0.1 {own_server.port}"}, binary=server_binary) as replica:
        made = protected("", max_staleness=5.0)
        made["LOCATION"] = [own_server.url, replica.url]
        cache = caches(default=made)["default"]
        cache.set("n", 1)
        eventually(lambda: cache.get("n") == 1, timeout_s=30)
        for _ in range(500):
            cache.get("n")
        reader = cache._cache.get_client().keyheat
        told = reader.explain(cache.make_key("n"))
        assert (told["is_hot"], told["may_read_locally"], hits(reader)) == (True, False, 0)
        assert reader.stats()["joins"] == 0
        with own_server.client() as primary, replica.client() as direct:
            for number in range(20):
                primary.set(cache.make_key("n"), number)
                primary.wait(1, 5_000)
                assert int(direct.get(cache.make_key("n"))) == number
                assert cache.get("n") == number


# ---------------------------------------------------------------- settings

WRONG: dict[str, tuple[Any, str]] = {
    "no dict": ([], r"accepted: a dict with any of .*max_staleness"),
    "unknown": ({"max_stale": 1}, r"no option 'max_stale'; accepted: .*max_staleness"),
    "too long": ({"max_staleness": 10_000}, r"max_staleness: accepted: 0 "),
    "no time": ({"max_staleness": "1s"}, r"max_staleness: accepted: seconds"),
    "no truth": ({"local_cache": "no"}, r"local_cache: accepted: True or False"),
    "no settings": ({"settings": {}}, r"settings: accepted: a keyheat.ClientSettings"),
    "rule": ({"rules": [{"name": "a", "match": {"any": True}}]}, r"rules\[0\].levels: is missing"),
    "too much": ({"cache_bytes": 10**30}, r"cache_bytes: accepted: an integer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_refused_by_name(caches: Caches, valkey: str, name: str) -> None:
    options, message = WRONG[name]
    made = protected(valkey)
    made["OPTIONS"]["KEYHEAT"] = options
    with pytest.raises(ImproperlyConfigured, match=rf'CACHES: OPTIONS\["KEYHEAT"\]: .*{message}'):
        _ = caches(default=made)["default"].keyheat


def test_a_wrong_option_is_refused_when_the_cache_is_loaded(caches: Caches) -> None:
    found = caches(default=protected("127.0.0.1:1", window=0))
    with pytest.raises(ImproperlyConfigured, match="window: accepted"):
        _ = found["default"]


def test_settings_may_come_as_one_object(caches: Caches, valkey: str) -> None:
    made = protected(valkey, settings=ClientSettings(max_staleness=0.05), coalesce=False)
    keyheat = caches(default=made)["default"].keyheat
    assert (keyheat.stats()["max_staleness_ms"], keyheat.coalesce) == (50.0, False)


def test_values_lie_on_the_server_as_djangos_own(caches: Caches, valkey: str) -> None:
    found = caches(default=protected(valkey), plain={"BACKEND": DJANGOS, "LOCATION": f"redis://{valkey}"})
    found["default"].set("n", [1])
    found["plain"].set("m", [1])
    client = found["default"]._cache.get_client()
    assert client.get(":1:n") == client.get(":1:m") == RedisSerializer().dumps([1])
    assert pickle.loads(client.get(":1:n")) == found["plain"].get("n") == [1]  # noqa: S301


def test_importing_keyheat_imports_no_framework() -> None:
    names = {"django", "django_redis", "fastapi", "opentelemetry", "prometheus_client"}
    code = f"import sys, keyheat, keyheat.integrations; print(sorted({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
