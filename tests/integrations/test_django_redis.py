"""A cache of django-redis' stays what it was, and its hot keys are answered from memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]

from keyheat.server.embedded import EmbeddedServer
from tests.integrations.conftest import Caches
from tests.integrations.hot import hits, until_local

BACKEND = "django_redis.cache.RedisCache"
CLIENT = {"CLIENT_CLASS": "keyheat.integrations.django_redis.KeyheatClient"}
FACTORY = {"CONNECTION_FACTORY": "keyheat.integrations.django_redis.ConnectionFactory"}
WAYS = {"client": CLIENT, "factory": FACTORY}


def protected(address: str, way: dict[str, str], *, db: int = 1, **options: Any) -> dict[str, Any]:
    """One cache's settings."""
    return {
        "BACKEND": BACKEND,
        "LOCATION": f"redis://{address}/{db}",
        "OPTIONS": {**way, "KEYHEAT": {}, **options},
    }


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    """Both ways to protect a cache of django-redis', one after the other."""
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def _own_pools() -> Iterator[None]:
    """django-redis keeps its pools by URL, whatever else was set; each test makes its own."""
    from django_redis.pool import ConnectionFactory  # type: ignore[import-untyped] # noqa: PLC0415

    yield
    for pool in ConnectionFactory._pools.values():
        pool.disconnect()
    ConnectionFactory._pools.clear()


def keyheat_of(cache: Any) -> Any:
    """The keyheat side of the client that writes."""
    return cache.client.get_client(write=True).keyheat


def test_a_hot_key_is_answered_from_memory(caches: Caches, valkey: str, way: dict[str, str]) -> None:
    cache = caches(default=protected(valkey, way))["default"]
    cache.set("page", [1])
    until_local(keyheat_of(cache), lambda: cache.get("page"))
    for number in range(50):
        found = cache.get("page")
        assert found == [1]
        found.append(number)


def test_what_this_process_writes_its_next_read_sees(
    caches: Caches, valkey: str, way: dict[str, str]
) -> None:
    cache = caches(default=protected(valkey, way, KEYHEAT={"max_staleness": 5.0}))["default"]
    cache.set("n", 0)
    until_local(keyheat_of(cache), lambda: cache.get("n"))
    for number in range(1, 50):
        assert cache.incr("n") == number
        assert cache.get("n") == number
    cache.set("n", "x", timeout=50)
    assert cache.get("n") == "x"
    assert cache.ttl("n") in (49, 50)
    assert cache.persist("n")
    assert cache.ttl("n") is None
    assert cache.expire("n", 70)
    assert cache.pttl("n") > 60_000
    assert cache.touch("n", 10)
    assert sorted(cache.iter_keys("*")) == cache.keys("*") == ["n"]
    assert cache.delete_pattern("n*") == 1
    assert cache.get("n") is None
    assert cache.set("n", 1, nx=True)
    assert not cache.set("n", 2, nx=True)
    cache.clear()
    assert cache.get("n") is None


def test_a_lock_excludes(caches: Caches, valkey: str, way: dict[str, str]) -> None:
    cache = caches(default=protected(valkey, way))["default"]
    for _ in range(30):
        with cache.lock("turn", timeout=5):
            assert not cache.lock("turn", timeout=5, blocking=False).acquire()
        assert cache.get("turn") is None


def test_the_redis_client_is_one_of_redis_py(caches: Caches, valkey: str, way: dict[str, str]) -> None:
    from django_redis import get_redis_connection  # type: ignore[import-untyped] # noqa: PLC0415

    caches(default=protected(valkey, way))
    client = get_redis_connection("default")
    assert isinstance(client, redis.Redis)
    assert client.set("raw", 1)
    until_local(client.keyheat, lambda: client.get("raw"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [
        {"SERIALIZER": "django_redis.serializers.json.JSONSerializer"},
        {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"},
        {"CONNECTION_POOL_KWARGS": {"max_connections": 3, "protocol": 3}},
        {"SOCKET_CONNECT_TIMEOUT": 5, "SOCKET_TIMEOUT": 5},
        {"CONNECTION_POOL_CLASS": "redis.BlockingConnectionPool"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_keep_their_meaning(
    caches: Caches, valkey: str, way: dict[str, str], options: dict[str, Any]
) -> None:
    plain = {key: value for key, value in protected(valkey, {}, **options).items() if key != "OPTIONS"}
    found = caches(
        hot={**protected(valkey, way, **options), "KEY_PREFIX": "shop", "VERSION": 2},
        plain={**plain, "OPTIONS": options, "KEY_PREFIX": "shop", "VERSION": 2},
    )
    value = {"text": "x" * 2_000, "list": [1, 2]}
    found["plain"].set("n", value)
    until_local(keyheat_of(found["hot"]), lambda: found["hot"].get("n"))
    assert found["hot"].get("n") == found["plain"].get("n") == value
    found["hot"].set("n", [3])
    assert found["plain"].get("n") == [3]
    client = found["hot"].client.get_client(write=True)
    assert client.exists("shop:2:n")
    kwargs = client.connection_pool.connection_kwargs
    for name in ("SOCKET_CONNECT_TIMEOUT", "SOCKET_TIMEOUT"):
        assert kwargs.get(name.lower()) == options.get(name) or name not in options


def test_a_password_is_used(caches: Caches, server_binary: str, way: dict[str, str]) -> None:
    with EmbeddedServer({"requirepass": "secret"}, binary=server_binary) as server:
        cache = caches(default=protected(server.address, way, PASSWORD="secret"))["default"]
        cache.set("n", 1)
        until_local(keyheat_of(cache), lambda: cache.get("n"))


def test_ignored_exceptions_are_ignored(caches: Caches, free_port: int, way: dict[str, str]) -> None:
    found = caches(
        ignoring=protected(f"127.0.0.1:{free_port}", way, IGNORE_EXCEPTIONS=True),
        raising=protected(f"127.0.0.1:{free_port}", way),
    )
    assert found["ignoring"].get("n", "default") == "default"
    assert found["ignoring"].set("n", 1) is None
    with pytest.raises(redis.ConnectionError):
        found["raising"].get("n")


@pytest.mark.filterwarnings("ignore:get on sharded client:UserWarning")  # django-redis' own
@pytest.mark.parametrize("client", ["HerdClient", "ShardClient"])
def test_the_factory_protects_other_client_classes(caches: Caches, valkey: str, client: str) -> None:
    way = {**FACTORY, "CLIENT_CLASS": f"django_redis.client.{client}"}
    made = protected(valkey, way)
    made["LOCATION"] = [f"redis://{valkey}/5"]
    cache = caches(default=made)["default"]
    cache.set("n", [1], timeout=100)
    assert cache.get("n") == [1]
    one = next(iter(cache.client._serverdict.values())) if client == "ShardClient" else None
    keyheat = one.keyheat if one is not None else keyheat_of(cache)
    until_local(keyheat, lambda: cache.get("n"))
    assert cache.get("n") == [1]


def test_the_factory_may_be_set_for_all_caches(caches: Caches, valkey: str) -> None:
    from django.test import override_settings  # type: ignore[import-untyped] # noqa: PLC0415

    with override_settings(DJANGO_REDIS_CONNECTION_FACTORY=FACTORY["CONNECTION_FACTORY"]):
        cache = caches(default=protected(valkey, {}))["default"]
        until_local(keyheat_of(cache), lambda: cache.get("n"))


def test_reads_from_a_replica_always_go_to_it(
    caches: Caches, own_server: EmbeddedServer, server_binary: str, eventually: Callable[..., Any]
) -> None:
    with EmbeddedServer({"replicaof": f"127.0.0.1 {own_server.port}"}, binary=server_binary) as replica:
        made = protected("", CLIENT)
        made["LOCATION"] = [f"{own_server.url}/0", f"{replica.url}/0"]
        cache = caches(default=made)["default"]
        cache.set("n", 1)
        eventually(lambda: cache.get("n") == 1, timeout_s=30)
        for _ in range(300):
            cache.get("n")
        reader = cache.client.get_client(write=False).keyheat
        told = reader.explain(cache.make_key("n"))
        assert (told["is_hot"], told["may_read_locally"], hits(reader)) == (True, False, 0)


def test_the_factory_keeps_nothing_from_a_replica(
    caches: Caches, own_server: EmbeddedServer, server_binary: str, eventually: Callable[..., Any]
) -> None:
    with EmbeddedServer({"replicaof": f"127.0.0.1 {own_server.port}"}, binary=server_binary) as replica:
        made = protected("", FACTORY)
        made["LOCATION"] = [f"{own_server.url}/0", f"{replica.url}/0"]
        cache = caches(default=made)["default"]
        cache.set("n", 1)
        eventually(lambda: cache.get("n") == 1, timeout_s=30)
        reader = cache.client.get_client(write=False).keyheat

        def is_told() -> bool:
            cache.get("n")
            return "not a primary" in str(reader.stats()["not_caching"])

        eventually(is_told)
        assert hits(reader) == 0
        assert reader.stats()["cached_entries"] == 0


def test_a_wrong_option_is_refused_by_name(caches: Caches, valkey: str, way: dict[str, str]) -> None:
    cache = caches(default=protected(valkey, way, KEYHEAT={"max_stale": 1}))["default"]
    with pytest.raises(ImproperlyConfigured, match=r'OPTIONS\["KEYHEAT"\]: no option .max_stale.'):
        cache.get("n")
