"""What the shop does with Redis: as it is usually written (`Shop`), and with keyheat (`ProtectedShop`).

| | usually | with keyheat |
| --- | --- | --- |
| item page | GET, else the catalogue, then SET | `Loader`: the same, one load for all who wait |
| price, stock on the page | GET | GET, answered from memory while the key is hot |
| views of the item on sale | INCR | `AsyncHotCounter`: one command for the views of 100 ms |
| an order | a script takes one off the stock | the same: what decides is never cached |
| payment | a lock per item | the same lock, through `LockRelief`: who waits stands in line |
"""

import asyncio
import json
from typing import Any, Final

import redis.asyncio
from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from keyheat import protect
from keyheat.mitigate import AsyncHotCounter, CounterSettings, Loader, LockRelief

SALE_ITEM: Final = 1
ITEM_TTL_S: Final = 5
# The catalogue is slow, and slower still for those who come while it is busy.
_CATALOGUE_S: Final = 0.020
_CATALOGUE_AT_ONCE: Final = 4
_PAYMENT_S: Final = 0.002
_PAYMENT_WAIT_S: Final = 5.0

# One off the stock, and the order into the books, or neither.
_TAKE: Final = """
local left = tonumber(redis.call('GET', KEYS[1]) or '0')
if left < 1 then return -1 end
redis.call('DECR', KEYS[1])
redis.call('RPUSH', KEYS[2], ARGV[1])
return left - 1
"""


class Catalogue:
    """The source: a database that takes its time."""

    def __init__(self) -> None:
        self.loads = 0
        self.loads_of_sale = 0
        self._turns = asyncio.Semaphore(_CATALOGUE_AT_ONCE)

    async def item(self, item: int) -> dict[str, Any]:
        """What the database knows of an item."""
        self.loads += 1
        self.loads_of_sale += item == SALE_ITEM
        async with self._turns:
            await asyncio.sleep(_CATALOGUE_S)
        return {"item": item, "name": f"Item {item}", "text": "words " * 60}


class Shop:
    """The shop as it is usually written."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.catalogue = Catalogue()
        self._take = client.register_script(_TAKE)

    async def page(self, item: int) -> dict[str, Any]:
        """Everything on an item's page."""
        found = dict(await self.described(item))
        found["price"] = int(await self.client.get(f"price:{item}") or 0)
        found["in_stock"] = int(await self.client.get(f"stock:{item}") or 0) > 0
        await self.viewed(item)
        return found

    async def described(self, item: int) -> dict[str, Any]:
        """The item, from the cache or the catalogue."""
        raw = await self.client.get(f"item:{item}")
        if raw is not None:
            kept: dict[str, Any] = json.loads(raw)
            return kept
        found = await self.catalogue.item(item)
        await self.client.set(f"item:{item}", json.dumps(found), ex=ITEM_TTL_S)
        return found

    async def viewed(self, item: int) -> None:
        """Count a view."""
        await self.client.incr(f"views:{item}")

    async def buy(self, item: int, visitor: str) -> str:
        """Order an item and pay for it: `sold`, `sold out`, or `busy` (nothing was taken)."""
        if await self._take(keys=[f"stock:{item}", f"orders:{item}"], args=[visitor]) < 0:
            return "sold out"
        turn = self.lock(f"payment:{item}")
        try:
            async with turn:  # the bank settles the orders of one item one by one
                await asyncio.sleep(_PAYMENT_S)
        except LockError:
            await self._give_back(item, visitor)
            return "busy"
        return "sold"

    def lock(self, name: str) -> Lock:
        """A lock that is waited for."""
        return self.client.lock(name, timeout=10, sleep=0.02, blocking_timeout=_PAYMENT_WAIT_S)

    async def close(self) -> None:
        """End it."""
        await self.client.aclose()

    async def _give_back(self, item: int, visitor: str) -> None:
        async with self.client.pipeline() as pipe:
            pipe.incr(f"stock:{item}")
            pipe.lrem(f"orders:{item}", 1, visitor)
            await pipe.execute()


class ProtectedShop(Shop):
    """The shop with keyheat."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(protect(client))
        # Under keys of its own: under `item:` lies what a shop without keyheat has written, in its own form.
        self._described = Loader(self.client).cached("page:{item}", ttl=ITEM_TTL_S)(self.catalogue.item)
        self._relief = LockRelief()
        settings = CounterSettings(interval_ms=100)
        self._views = AsyncHotCounter(self.client, f"views:{SALE_ITEM}", settings)

    async def described(self, item: int) -> dict[str, Any]:
        """The item, from the cache or the catalogue, which is asked by one visitor for all."""
        found: dict[str, Any] = await self._described(item)
        return found

    async def viewed(self, item: int) -> None:
        """Count a view; of the item on sale, the views of 100 ms are sent as one command."""
        if item == SALE_ITEM:
            await self._views.incr()
        else:
            await super().viewed(item)

    def lock(self, name: str) -> Lock:
        """The same lock; one of those who wait asks the server."""
        options = {"timeout": 10, "sleep": 0.02, "blocking_timeout": _PAYMENT_WAIT_S}
        lock: Lock = self._relief.lock(self.client, name, **options)
        return lock

    async def close(self) -> None:
        """End it; what was counted is sent."""
        await self._views.aclose()
        await super().close()
