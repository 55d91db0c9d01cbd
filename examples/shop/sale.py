"""One sale: an empty Valkey, the shop in a process of its own, its visitors, and the books at the end."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio

from examples.shop.shop import SALE_ITEM
from examples.shop.visitors import ITEMS, Seen, ask, visit
from keyheat.errors import KeyheatError
from keyheat.server import child
from keyheat.server.embedded import EmbeddedServer

STOCK: Final = 400
# The price of the item on sale follows the market; everybody else's stands.
_PRICE_EVERY_S: Final = 0.1
_ROOT: Final = Path(__file__).resolve().parents[2]


class ShopError(KeyheatError):
    """The shop did not start."""


@dataclass(frozen=True, slots=True)
class Sale:
    """What one sale showed."""

    is_protected: bool
    seconds: float
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    redis_commands: int
    commands_per_request: float
    shop_cpu_ms_per_request: float
    valkey_cpu_ms_per_request: float
    source_loads: int
    sale_item_loads: int
    stock: int
    sold: int
    left: int
    oversold: int
    turned_away: int
    failed: int
    views: int
    stats: dict[str, Any]
    hot_keys: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@contextmanager
def running(url: str, *, is_protected: bool, port: int = 0, is_logging: bool = False) -> Iterator[int]:
    """The shop's process, on a port of 127.0.0.1.

    Raises:
        ShopError: It did not start.
    """
    words = [sys.executable, "-m", "examples.shop.web", "--redis", url, "--port", str(port)]
    words += ["--parent", str(os.getpid())]
    words += ["--protected"] * is_protected + ["--log"] * is_logging
    process = subprocess.Popen(
        words, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not said:
            raise ShopError("the shop did not start: see above")
        yield int(said)
    finally:
        child.end(process)
        if process.stdout is not None:
            process.stdout.close()


def play(server: EmbeddedServer, port: int, *, is_protected: bool, visitors: int, seconds: float) -> Sale:
    """One sale with a shop that is running."""
    with server.client() as books:
        books.flushall()
        books.mset({f"price:{item}": 1_000 + item for item in range(1, ITEMS + 1)})
        books.mset({f"stock:{item}": STOCK for item in range(1, ITEMS + 1)})
        seen, cost, told = asyncio.run(_played(server, port, visitors, seconds))
        return _closed(books, seen, cost, told, is_protected=is_protected)


async def _played(
    server: EmbeddedServer, port: int, visitors: int, seconds: float
) -> tuple[Seen, "_Cost", dict[str, Any]]:
    async with redis.asyncio.Redis(host="127.0.0.1", port=server.port) as market:
        earlier = await ask(port, "/figures")
        before = await _Cost.so_far(market, earlier)
        prices = _prices(market, time.monotonic() + seconds)
        seen, written = await asyncio.gather(visit(port, visitors=visitors, seconds=seconds), prices)
        told = await ask(port, "/figures")
        cost = (await _Cost.so_far(market, told)).since(before)
        # The market's commands are not the shop's.
        cost.commands -= written
        return seen, cost, told


@dataclass(slots=True)
class _Cost:
    """What the requests took."""

    commands: int
    valkey_cpu_s: float
    shop_cpu_s: float

    @classmethod
    async def so_far(cls, market: redis.asyncio.Redis, told: dict[str, Any]) -> "_Cost":
        info = await market.info()
        cpu_s = info["used_cpu_user"] + info["used_cpu_sys"]
        return cls(info["total_commands_processed"], cpu_s, told["cpu_s"])

    def since(self, before: "_Cost") -> "_Cost":
        return _Cost(
            self.commands - before.commands,
            self.valkey_cpu_s - before.valkey_cpu_s,
            self.shop_cpu_s - before.shop_cpu_s,
        )


async def _prices(market: redis.asyncio.Redis, until_s: float) -> int:
    """Write the price of the item on sale, until then; returns how often."""
    written = 0
    while time.monotonic() < until_s:
        await market.incrby(f"price:{SALE_ITEM}", 1)
        written += 1
        await asyncio.sleep(_PRICE_EVERY_S)
    return written


def _closed(books: redis.Redis, seen: Seen, cost: _Cost, told: dict[str, Any], *, is_protected: bool) -> Sale:
    requests = len(seen.latencies_s)
    sold, left = _number(books.llen(f"orders:{SALE_ITEM}")), _number(books.get(f"stock:{SALE_ITEM}"))
    return Sale(
        is_protected=is_protected,
        seconds=round(seen.seconds, 2),
        requests=requests,
        requests_per_s=round(requests / seen.seconds, 1),
        p50_ms=round(seen.percentile_ms(0.50), 2),
        p99_ms=round(seen.percentile_ms(0.99), 2),
        redis_commands=cost.commands,
        commands_per_request=round(cost.commands / requests, 3),
        shop_cpu_ms_per_request=round(1_000 * cost.shop_cpu_s / requests, 4),
        valkey_cpu_ms_per_request=round(1_000 * cost.valkey_cpu_s / requests, 4),
        source_loads=told["source_loads"],
        sale_item_loads=told["sale_item_loads"],
        stock=STOCK,
        sold=sold,
        left=left,
        oversold=max(0, sold - STOCK),
        turned_away=seen.statuses.get(503, 0),
        failed=sum(count for status, count in seen.statuses.items() if status not in {200, 201, 410, 503}),
        views=_number(books.get(f"views:{SALE_ITEM}")),
        stats=told.get("stats", {}),
        hot_keys=told.get("hot_keys", []),
    )


def _number(reply: object) -> int:
    return int(reply or 0)  # type: ignore[call-overload, no-any-return]
