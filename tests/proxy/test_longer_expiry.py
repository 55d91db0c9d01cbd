"""Keys of a business entity get a longer expiry through the proxy, and nothing else changes."""

import time
from typing import Any

import pytest
import redis

from tests.proxy.test_replicas import connect, stat

HOUR_S = 3_600
DAY_S = 86_400


def entity(**changes: Any) -> dict[str, Any]:
    now = time.time()
    return {
        "name": "sale",
        "match": {"prefix": "shop:7:"},
        "starts_s": now - 60,
        "ends_s": now + DAY_S,
        "ttl_s": HOUR_S,
        **changes,
    }


@pytest.fixture
def client(server: Any, proxy_factory: Any) -> Any:
    proxy = proxy_factory(server.url, longer_expiry=[entity()], longer_expiry_factor_max=100)
    with connect(proxy) as client:
        client.flushall()
        yield client


def soon(seconds: int) -> int:
    return int(time.time()) + seconds


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "shop:7:k", "v", "EX", 60),
        ("SET", "shop:7:k", "v", "px", 60_000, "GET"),
        ("SET", "shop:7:k", "v", "EXAT", "{soon}"),
        ("SET", "shop:7:k", "v", "PXAT", "{soon}000"),
        ("SETEX", "shop:7:k", 60, "v"),
        ("PSETEX", "shop:7:k", 60_000, "v"),
        ("GETEX", "shop:7:k", "EX", 60),
        ("GETEX", "shop:7:k", "PX", 60_000),
        ("EXPIRE", "shop:7:k", 60),
        ("PEXPIRE", "shop:7:k", 60_000),
        ("EXPIREAT", "shop:7:k", "{soon}"),
        ("PEXPIREAT", "shop:7:k", "{soon}000"),
    ],
    ids=lambda words: " ".join(map(str, words[:1] + words[3:4])),
)
def test_an_expiry_is_lengthened(client: redis.Redis, words: tuple[Any, ...]) -> None:
    client.set("shop:7:k", "v")
    client.execute_command(*(str(word).replace("{soon}", str(soon(60))) for word in words))
    assert HOUR_S - 5 < client.ttl("shop:7:k") <= HOUR_S
    assert client.get("shop:7:k") == b"v"


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "shop:8:k", "v", "EX", 60),
        ("SET", "shop:7:k", "v", "EX", 60, "NX"),
        ("SET", "shop:7:k", "v", "NX", "EX", 60),
        ("EXPIRE", "shop:7:k", 60, "NX"),
        ("EXPIRE", "shop:7:k", 60, "LT"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_others_are_left_alone(client: redis.Redis, words: tuple[Any, ...]) -> None:
    if words[0] == "EXPIRE":
        client.set(words[1], "v")
    client.execute_command(*words)
    assert 0 < client.ttl(words[1]) <= 60


def test_what_has_no_expiry_gets_none_and_what_deletes_deletes(client: redis.Redis) -> None:
    client.set("shop:7:k", "EX")
    assert client.ttl("shop:7:k") == -1
    assert client.expire("shop:7:k", -1)
    assert not client.exists("shop:7:k")
    with pytest.raises(redis.ResponseError, match="invalid expire"):
        client.execute_command("SET", "shop:7:k", "v", "EX", 0)
    with pytest.raises(redis.ResponseError, match="not an integer"):
        client.execute_command("SET", "shop:7:k", "v", "EX", "soon")
    with pytest.raises(redis.ResponseError, match="syntax"):
        client.execute_command("SET", "shop:7:k", "v", "KEEPTTL", "EX")


def test_a_binary_value_and_a_pipeline_pass_whole(client: redis.Redis) -> None:
    value = bytes(range(256)) * 1000
    with client.pipeline(transaction=False) as pipe:
        for number in range(50):
            pipe.set(f"shop:7:{number}", value, ex=60)
            pipe.get(f"shop:7:{number}")
        assert pipe.execute() == [True, value] * 50
    with client.pipeline(transaction=True) as pipe:
        pipe.set("shop:7:k", "v", ex=60)
        pipe.ttl("shop:7:k")
        done, ttl_s = pipe.execute()
    assert done
    assert ttl_s > HOUR_S - 5


def test_bounds_time_and_the_count(server: Any, proxy_factory: Any) -> None:
    over = entity(starts_s=time.time() - 100, ends_s=time.time() - 50)
    for entities, most, longest in (
        ([over], {}, 60),
        ([entity()], {}, 24 * 60),
        ([entity()], {"max_s": 90}, 90),
    ):
        settings = {f"longer_expiry_{name}": value for name, value in most.items()}
        proxy = proxy_factory(server.url, longer_expiry=entities, **settings)
        with connect(proxy) as client:
            client.set("shop:7:k", "v", ex=60)
            assert longest - 5 < client.ttl("shop:7:k") <= longest
            assert stat(proxy, "expiries_lengthened") == int(longest > 60)


def test_what_is_taken_for_a_lock_is_left_alone(client: redis.Redis) -> None:
    assert client.setnx("shop:7:lock", "me")
    client.expire("shop:7:lock", 10)
    assert 0 < client.ttl("shop:7:lock") <= 10
    client.set("shop:7:lock", "me", xx=True, px=20_000)
    assert 0 < client.ttl("shop:7:lock") <= 20


@pytest.mark.parametrize("number", ["+60", "060"])
def test_what_the_server_takes_for_no_number_is_none(client: redis.Redis, number: str) -> None:
    with pytest.raises(redis.ResponseError, match="not an integer"):
        client.execute_command("SET", "shop:7:k", "v", "EX", number)
    assert not client.exists("shop:7:k")
