"""The decorator: keys from arguments, types kept, functions that stay functions."""

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import redis
import redis.asyncio

from keyheat.errors import ConfigError
from keyheat.mitigate.cached import filled
from keyheat.mitigate.loading import Loader


@pytest.fixture
def client(valkey: str) -> Iterator[redis.Redis]:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as made:
        yield made


@pytest_asyncio.fixture
async def async_client(valkey: str) -> AsyncIterator[redis.asyncio.Redis]:
    host, _, port = valkey.rpartition(":")
    made = redis.asyncio.Redis(host=host, port=int(port))
    yield made
    await made.aclose()


def test_results_are_kept_by_argument_with_their_types(client: redis.Redis) -> None:
    calls: list[tuple[int, str]] = []

    @Loader(client).cached("item:{number}:{lang}", ttl=60)
    def item(number: int, lang: str = "en") -> dict[str, Any]:
        """An item."""
        calls.append((number, lang))
        return {"number": number, "lang": lang}

    assert item(1) == item(number=1) == item(1, lang="en") == {"number": 1, "lang": "en"}
    assert item(1, "de")["lang"] == "de"
    assert calls == [(1, "en"), (1, "de")]
    assert item.key(1) == b"item:1:en"
    assert item.__doc__ == "An item."
    assert item.__wrapped__(2) == {"number": 2, "lang": "en"}
    as_seen: object = item
    assert inspect.isfunction(as_seen)


def test_a_result_can_be_forgotten_and_refreshed(client: redis.Redis) -> None:
    numbers = iter(range(10))

    @Loader(client).cached("n:{name}", ttl=60)
    def number(name: str) -> str:
        return f"{name}{next(numbers)}"

    assert [number("a"), number("a")] == ["a0", "a0"]
    assert number.refresh("a") == "a1"
    assert number("a") == "a1"
    number.invalidate("a")
    assert number("a") == "a2"


async def test_coroutine_functions_too(async_client: redis.asyncio.Redis) -> None:
    numbers = iter(range(10))

    @Loader(async_client).cached("n:{name}", ttl=60)
    async def number(name: str) -> str:
        return f"{name}{next(numbers)}"

    assert [await number("a"), await number("a")] == ["a0", "a0"]
    assert await number.refresh("a") == "a1"
    await number.invalidate("a")
    assert await number("a") == "a2"
    assert inspect.iscoroutinefunction(number)


def test_methods_too(client: redis.Redis) -> None:
    loader = Loader(client)

    class Shop:
        name = "s1"

        @loader.cached("{self.name}:{item}", ttl=60)
        def price(self, item: str) -> str:
            return f"{item} at {self.name}"

    shop = Shop()
    assert shop.price("a") == "a at s1"
    assert client.exists("s1:a")
    shop.price.invalidate(shop, "a")
    assert not client.exists("s1:a")


def test_none_is_remembered(client: redis.Redis) -> None:
    calls = []

    @Loader(client).cached("n:{name}", ttl=60)
    def nothing(name: str) -> None:
        calls.append(name)

    nothing("a")
    nothing("a")
    assert calls == ["a"]


@pytest.mark.parametrize(
    ("template", "arguments", "key"),
    [
        ("item:{n:04d}", {"n": 7}, b"item:0007"),
        ("{name!r}", {"name": "é"}, "'é'".encode()),
        ("k:{raw}", {"raw": b"\xff"}, b"k:\xff"),
        ("{{tag}}:{n}", {"n": 1}, b"{tag}:1"),
    ],
)
def test_templates_are_filled(template: str, arguments: dict[str, Any], key: bytes) -> None:
    assert filled(template, arguments) == key


@pytest.mark.parametrize("template", ["item:{other}", "item:{}", "item:{0}", "item:{"])
def test_a_template_that_does_not_fit_is_refused(client: redis.Redis, template: str) -> None:
    with pytest.raises(ConfigError, match="template"):

        @Loader(client).cached(template, ttl=60)
        def item(number: int) -> int:
            return number


async def test_a_function_that_does_not_fit_the_client_is_refused(
    client: redis.Redis, async_client: redis.asyncio.Redis
) -> None:
    async def later() -> int:
        return 1

    with pytest.raises(ConfigError, match="asyncio"):
        Loader(client).cached("k", ttl=1)(later)
    with pytest.raises(ConfigError, match="blocking"):
        Loader(async_client).cached("k", ttl=1)(lambda: 1)
    with pytest.raises(ConfigError, match="ttl"):
        Loader(client).cached("k", ttl=0)
